"""Office files: headings, lists, tables and code arrive as Markdown, and slides as pages."""

from __future__ import annotations

import datetime
import zipfile
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from record_files import document, places, read, reasons, refusal

# The writers of these libraries have no types, or incomplete ones.
docx: Any = import_module("docx")
openpyxl: Any = import_module("openpyxl")
pptx: Any = import_module("pptx")

NAMESPACES = " ".join(
    f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for prefix, name in (
        *(("office", "office"), ("style", "style"), ("text", "text"), ("table", "table")),
        *(("draw", "drawing"), ("meta", "meta")),
    )
)
ODT_STYLES = """
<office:automatic-styles>
  <style:style style:name="P1" style:family="paragraph"
    style:parent-style-name="Preformatted_20_Text"/>
  <text:list-style style:name="L1"><text:list-level-style-number text:level="1"/></text:list-style>
  <text:list-style style:name="L2"><text:list-level-style-bullet text:level="1"/></text:list-style>
</office:automatic-styles>"""
ODT_BODY = """
<text:tracked-changes><text:changed-region><text:deletion><text:p>Gestrichen</text:p>
</text:deletion></text:changed-region></text:tracked-changes>
<text:table-of-content><text:index-body><text:p>Wartung 1</text:p></text:index-body>
</text:table-of-content>
<text:h text:outline-level="1">Wartung &amp; Pflege</text:h>
<text:p>Prüfen Sie die<text:s text:c="2"/><text:span>Dichtung</text:span> jährlich<text:note>
<text:note-citation>1</text:note-citation><text:note-body><text:p>Laut Norm.</text:p>
</text:note-body></text:note> &lt;vor Ort&gt;.</text:p>
<text:h text:outline-level="2">Schritte</text:h>
<text:list text:style-name="L1">
  <text:list-item><text:p>Abschalten</text:p>
    <text:list text:style-name="L2"><text:list-item><text:p>Ventil</text:p></text:list-item>
    </text:list></text:list-item>
  <text:list-item><text:p>Öffnen</text:p></text:list-item>
</text:list>
<text:p text:style-name="P1">if p &lt; 2:</text:p>
<text:p text:style-name="P1"><text:s text:c="4"/>stop()</text:p>
<table:table><table:table-header-rows><table:table-row>
  <table:table-cell><text:p>Teil</text:p></table:table-cell>
  <table:table-cell><text:p>Preis</text:p></table:table-cell></table:table-row>
</table:table-header-rows><table:table-row>
  <table:table-cell><text:p>Dichtung</text:p></table:table-cell>
  <table:table-cell><text:p>12 €</text:p></table:table-cell></table:table-row></table:table>
"""


def odt(path: Path, body: str, manifest: str = "<manifest/>") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        archive.writestr("META-INF/manifest.xml", manifest)
        archive.writestr("styles.xml", f"<office:document-styles {NAMESPACES}/>")
        archive.writestr(
            "meta.xml",
            f'<office:document-meta {NAMESPACES} xmlns:dc="http://purl.org/dc/elements/1.1/">'
            "<office:meta><dc:title>Die Pumpe</dc:title></office:meta></office:document-meta>",
        )
        archive.writestr(
            "content.xml",
            f"<office:document-content {NAMESPACES}>{ODT_STYLES}<office:body><office:text>{body}"
            "</office:text></office:body></office:document-content>",
        )
    return path


def written_docx(path: Path) -> Path:
    made = docx.Document()
    made.core_properties.title = "Die Pumpe"
    made.add_heading("Wartung", 1)
    made.add_paragraph("Prüfen Sie die Dichtung jährlich — laut Norm.")
    made.add_heading("Schritte", 2)
    for step in ("Abschalten", "Öffnen"):
        made.add_paragraph(step, style="List Number")
    for tool in ("Schlüssel", "Öl"):
        made.add_paragraph(tool, style="List Bullet")
    table = made.add_table(2, 2)
    for index, text in enumerate(("Teil", "Preis", "Dichtung", "12 € | netto")):
        table.cell(index // 2, index % 2).text = text
    made.add_paragraph("# keine Überschrift")
    made.save(str(path))
    return path


def test_word_keeps_headings_lists_and_tables(tmp_path: Path) -> None:
    item = document(written_docx(tmp_path / "a.docx"))
    assert (
        item.text
        == dedent(r"""
        # Wartung

        Prüfen Sie die Dichtung jährlich — laut Norm.

        ## Schritte

        1. Abschalten
        2. Öffnen

        * Schlüssel
        * Öl

        | Teil | Preis |
        |---|---|
        | Dichtung | 12 € \| netto |

        \# keine Überschrift""").strip()
    )
    assert (item.markup, item.metadata["title"]) == ("markdown", "Die Pumpe")
    assert places(item, "jährlich", "Öffnen") == [
        {"headings": ["Wartung"]},
        {"headings": ["Wartung", "Schritte"]},
    ]


def test_slides_are_pages(tmp_path: Path) -> None:
    made = pptx.Presentation()
    first, _, third = (made.slides.add_slide(made.slide_layouts[1]) for _ in range(3))
    first.shapes.title.text = "Größe"
    first.placeholders[1].text = "Sie ist klein.\nSie ist leicht."
    first.notes_slide.notes_text_frame.text = "Langsam sprechen."
    third.shapes.title.text = "Preise"
    table = third.shapes.add_table(1, 2, 0, 0, 9999, 9999).table
    table.cell(0, 0).text, table.cell(0, 1).text = "Dichtung", "12 €"
    made.save(str(tmp_path / "a.pptx"))
    item = document(tmp_path / "a.pptx")
    assert places(item, "leicht", "Langsam", "Dichtung") == [
        {"headings": ["Größe"], "page": 1},
        {"headings": ["Größe", "Speaker Notes"], "page": 1},
        {"headings": ["Preise"], "page": 3},
    ]
    assert "| Dichtung | 12 € |" in " ".join(item.text.split())


def test_sheets_are_sections_with_tables(tmp_path: Path) -> None:
    made = openpyxl.Workbook()
    made.active.title = "Preise"
    made.active.append(["Teil", "Preis", "Seit"])
    made.active.append(["Öl", 12.5, datetime.date(2026, 1, 2)])
    made.create_sheet("Lager").append(["Ort", "Zürich"])
    made.save(str(tmp_path / "a.xlsx"))
    item = document(tmp_path / "a.xlsx")
    assert "| Öl | 12.5 | 2026-01-02" in item.text
    assert places(item, "12.5", "Zürich") == [{"headings": ["Preise"]}, {"headings": ["Lager"]}]


def test_open_document_keeps_headings_lists_tables_and_code(tmp_path: Path) -> None:
    item = document(odt(tmp_path / "a.odt", ODT_BODY))
    assert (
        item.text
        == dedent("""
        # Wartung & Pflege

        Prüfen Sie die Dichtung jährlich <vor Ort>.

        Laut Norm.

        ## Schritte

        1. Abschalten
           - Ventil
        2. Öffnen

        ```
        if p < 2:
            stop()
        ```

        | Teil | Preis |
        | --- | --- |
        | Dichtung | 12 € |""").strip()
    )
    assert item.metadata["title"] == "Die Pumpe"
    assert places(item, "Öffnen") == [{"headings": ["Wartung & Pflege", "Schritte"]}]


def test_rich_text_is_plain_text(tmp_path: Path) -> None:
    content = rb"""{\rtf1\ansi\ansicpg1250{\fonttbl{\f0 Times;}}{\info{\title Pumpa}}
\pard\b \'c8erpadlo\b0\par Kontrola \u268?erpadla \u8212? ro\'e8n\'ec.\par
\trowd\cellx9\cellx99 \intbl d\'edl\cell cena\cell\row}"""
    (tmp_path / "a.rtf").write_bytes(content)
    text = document(tmp_path / "a.rtf").text
    assert text.split("\n")[:3] == ["Čerpadlo", "Kontrola Čerpadla — ročně.", "díl|cena|"]


def test_a_file_is_what_it_contains(tmp_path: Path) -> None:
    odt(tmp_path / "a.docx", "<text:p>Ein Absatz.</text:p>")
    assert document(tmp_path / "a.docx").text == "Ein Absatz."
    written_docx(tmp_path / "unnamed")
    assert document(tmp_path / "unnamed", format="office").text.startswith("# Wartung")


ENCRYPTED = "<manifest><encryption-data/></manifest>"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "encrypted, or in a format"),
        ("a.pptx", b"no archive", "not an Office document"),
        ("a.xlsx", b"PK\x03\x04 cut", "damaged"),
        ("a.odt", b"", "empty"),
    ],
)
def test_what_cannot_be_read_is_reported(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    item = refusal(tmp_path / name, content)
    assert words in item.reason
    assert item.doc_id == str(tmp_path / name)


def test_damage_encryption_and_bombs_are_reported(tmp_path: Path) -> None:
    odt(tmp_path / "a.odt", "<text:p>Geheim</text:p>", ENCRYPTED)
    odt(tmp_path / "b.odt", "<text:p>not closed")
    odt(tmp_path / "c.odt", "<text:p>x</text:p>" * 100_000)
    with zipfile.ZipFile(tmp_path / "d.docx", "w") as archive:
        archive.writestr("word/document.xml", "<w:document")
    with zipfile.ZipFile(tmp_path / "f.pptx", "w") as archive:
        archive.writestr("ppt/presentation.xml", "<p:presentation")
    with zipfile.ZipFile(tmp_path / "e.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.txt", "x" * 100_000)
    found = reasons(read(tmp_path, max_document_bytes=1_000_000))
    expected = ["encrypted", "damaged", "the limit", "not a valid .docx", "not a .docx, .pptx"]
    expected.append("not a valid .pptx")
    assert len(found) == len(expected)
    assert all(words in reason for words, reason in zip(expected, found, strict=True)), found
