"""Notebooks, MDX, JSON, XML, messages, books and reStructuredText."""

from __future__ import annotations

import json
import zipfile
from email.message import EmailMessage
from pathlib import Path
from textwrap import dedent

import pytest

from qwen3_triton_ingest.documents import Document
from record_files import document, places, read, reasons, refusal


def test_a_notebooks_cells_are_markdown(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Größe\n", "\n", "Wie groß?\n"]},
        {"cell_type": "code", "source": "# no heading\nsize()", "outputs": [{"text": "12"}]},
        {"cell_type": "code", "source": []},
        {"cell_type": "raw", "source": "Roh"},
    ]
    notebook = {"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4}
    item = document(tmp_path / "a.ipynb", json.dumps(notebook))
    assert item.text == "# Größe\n\nWie groß?\n\n```python\n# no heading\nsize()\n```\n\nRoh"
    assert (item.markup, places(item, "size")) == ("markdown", [{"headings": ["Größe"]}])


def test_a_notebook_of_version_3_is_read(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": "Old"},
        {"cell_type": "code", "input": "print 1", "language": "python"},
    ]
    item = document(tmp_path / "a.ipynb", json.dumps({"worksheets": [{"cells": cells}]}))
    assert item.text == "## Old\n\n```\nprint 1\n```"


def test_mdx_is_markdown_without_its_imports(tmp_path: Path) -> None:
    page = """\
        ---
        title: Pumps
        ---
        import Tabs from '@theme/Tabs';
        import {
          A,
        } from './a';

        export const answer = 42;

        # Seals

        Important seals: import them.

        ```js
        import x from 'y';
        ```
        """
    item = document(tmp_path / "a.mdx", dedent(page))
    assert item.text.startswith("# Seals\n\nImportant seals")
    assert "import x from 'y';" in item.text
    assert item.metadata["title"] == "Pumps"
    assert places(item, "# Seals") == [{"headings": ["Seals"], "line": 11}]


def test_json_arrays_have_records(tmp_path: Path) -> None:
    records = [{"id": 7, "text": "Öl", "n": 1}, {"id": 8}, "Text", {"text": "Fett"}]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=2))
    items = read(tmp_path / "a.json")
    first, last = (item for item in items if isinstance(item, Document))
    assert (first.doc_id, first.text, first.metadata) == ("7", "Öl", {"n": 1})
    assert (last.text, last.origin.position) == ("Fett", 4)
    missing, other = reasons(items)
    assert "'text'" in missing
    assert "str, not an object" in other


def test_a_json_object_is_a_record_or_a_text(tmp_path: Path) -> None:
    content = '{"body": {"de": "Öl"}, "id": "x"}'
    assert document(tmp_path / "a.json", content, text_column="body.de").doc_id == "x"
    item = document(tmp_path / "a.json", content)
    assert (item.doc_id, item.text) == (str(tmp_path / "a.json"), content)


def test_xml_is_the_text_of_its_elements(tmp_path: Path) -> None:
    content = """<?xml version="1.0" encoding="iso-8859-1"?>
        <!DOCTYPE doc [<!ENTITY file SYSTEM "file:///etc/passwd"><!ENTITY p "Pumpe">]>
        <doc a="b"><title>Die Pumpe</title><!-- not this --><p>Prüfen Sie <b>alles</b> oft.</p>
        <p>&file;Ende&p;</p><p/><row><c>1</c><c>2 &lt; 3</c></row></doc>"""
    item = document(tmp_path / "a.xml", content.encode("latin-1"))
    assert item.text.split("\n") == [
        "Die Pumpe",
        "Prüfen Sie alles oft.",
        "EndePumpe",
        "1",
        "2 < 3",
    ]
    assert item.metadata["title"] == "Die Pumpe"


def test_xhtml_is_read_as_html(tmp_path: Path) -> None:
    page = '<html xmlns="http://www.w3.org/1999/xhtml"><body><h1>Öl</h1><p>Gut.</p></body></html>'
    assert document(tmp_path / "a.xml", page).text == "# Öl\n\nGut."


def message(**headers: str) -> EmailMessage:
    made = EmailMessage()
    for name, value in headers.items():
        made[name] = value
    return made


def test_a_message_has_its_headers_and_its_html_part(tmp_path: Path) -> None:
    made = message(Subject="Grüße — Pumpe", From="Zoë <zoe@example.com>", To="a@example.com")
    made.set_content("Nur Text")
    made.add_alternative("<h2>Preise</h2><ul><li>Öl</li></ul>", subtype="html")
    made.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="Änderung.pdf")
    item = document(tmp_path / "a.eml", bytes(made))
    assert (
        item.text
        == dedent("""
        # Grüße — Pumpe

        From: Zoë <zoe@example.com>
        To: a@example.com
        Attached: Änderung.pdf

        ## Preise

        - Öl""").strip()
    )
    assert item.metadata["title"] == "Grüße — Pumpe"
    assert item.metadata["from"] == "Zoë <zoe@example.com>"
    assert places(item, "Öl") == [{"headings": ["Grüße — Pumpe", "Preise"]}]


def test_a_plain_message_is_text(tmp_path: Path) -> None:
    made = message(Subject="Pumpe", From="a@example.com")
    made.set_content("Größe: 2\n\n# kein Titel\n", charset="iso-8859-1")
    item = document(tmp_path / "a.eml", bytes(made))
    assert item.text == "# Pumpe\n\nFrom: a@example.com\n\nGröße: 2\n\n# kein Titel"
    assert item.markup == "text"


def epub(path: Path, pages: dict[str, str], **members: str) -> Path:
    items = "".join(
        f'<item id="{name}" href="text/{name}%20x.xhtml" media-type="application/xhtml+xml"/>'
        for name in sorted(pages)
    )
    spine = "".join(f'<itemref idref="{name}"/>' for name in pages)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "OEBPS/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" '
            'xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>Pumpen</dc:title>'
            f"</metadata><manifest>{items}</manifest><spine>{spine}</spine></package>",
        )
        for name, body in pages.items():
            page = f'<html xmlns="http://www.w3.org/1999/xhtml"><body>{body}</body></html>'
            archive.writestr(f"OEBPS/text/{name} x.xhtml", page)
        for name, content in members.items():
            archive.writestr(f"META-INF/{name}.xml", content)
    return path


def test_a_books_pages_follow_its_spine(tmp_path: Path) -> None:
    pages = {"z": "<h1>Erstes</h1><p>Öl.</p>", "a": "<h1>Zweites</h1><h2>Fett</h2><p>Käse.</p>"}
    item = document(epub(tmp_path / "a.epub", pages))
    assert item.text == "# Erstes\n\nÖl.\n\n# Zweites\n\n## Fett\n\nKäse."
    assert places(item, "Öl", "Käse") == [
        {"headings": ["Erstes"]},
        {"headings": ["Zweites", "Fett"]},
    ]
    assert item.metadata["title"] == "Pumpen"


def test_a_book_is_bounded_and_may_be_encrypted(tmp_path: Path) -> None:
    bomb = "<p>" + "x" * 600_000 + "</p>"
    epub(tmp_path / "a.epub", {"a": bomb, "b": bomb})
    method = '<EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#aes128-cbc"/>'
    epub(tmp_path / "b.epub", {"a": "x"}, encryption=f"<encryption>{method}</encryption>")
    found = reasons(read(tmp_path, max_document_bytes=1_000_000))
    assert ["limit" in found[0], "encrypted" in found[1]] == [True, True], found


def test_titles_of_restructured_text_are_headings(tmp_path: Path) -> None:
    content = """\
        =====
        Pumpe
        =====

        Einleitung
        ==========

        Ein Absatz.

        .. code::

            Kein Titel
            ----------

        ----

        Öl
        ~~

        Gut.

        ====  ====
        a     b
        ====  ====
        """
    item = document(tmp_path / "a.rst", dedent(content))
    found = [(mark.level, mark.value) for mark in item.marks if mark.kind == "heading"]
    assert found == [(1, "Pumpe"), (2, "Einleitung"), (3, "Öl")]
    assert places(item, "Gut") == [{"headings": ["Pumpe", "Einleitung", "Öl"], "line": 20}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.ipynb", b'{"a": 1}', "not a Jupyter notebook"),
        ("a.ipynb", b"[1", "not JSON"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "--format jsonl"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.xml", b"<a><b></a>", "damaged"),
        ("a.epub", b"PK\x03\x04", "not an EPUB book"),
        ("a.eml", b"no message\n", "not a message"),
    ],
)
def test_what_cannot_be_read_is_reported(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    item = refusal(tmp_path / name, content)
    assert words in item.reason
