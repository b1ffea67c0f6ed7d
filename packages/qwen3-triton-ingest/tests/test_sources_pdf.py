"""PDF files: text, pages, forms, and the reasons for what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdf_files import encrypted_pdf, pdf, pdf_of, stream_of
from qwen3_triton_ingest.documents import BadRecord, Document
from qwen3_triton_ingest.places import PlaceFinder
from record_files import read


def document(tmp_path: Path, content: bytes, **options: Any) -> Document:
    (item,) = items(tmp_path, content, **options)
    assert isinstance(item, Document), item
    return item


def reason(tmp_path: Path, content: bytes, **options: Any) -> str:
    (item,) = items(tmp_path, content, **options)
    assert isinstance(item, BadRecord), item
    assert item.doc_id == str(tmp_path / "a.pdf")
    return item.reason


def items(tmp_path: Path, content: bytes, **options: Any) -> list[Document | BadRecord]:
    path = tmp_path / "a.pdf"
    path.write_bytes(content)
    return read(path, **options)


def test_pdf_is_read_page_by_page(tmp_path: Path) -> None:
    item = document(tmp_path, pdf("First page", "Second page", title="On pumps"))
    assert item.text == "First page\n\nSecond page"
    assert item.metadata == {"source": str(tmp_path / "a.pdf"), "title": "On pumps"}


def test_pages_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    item = document(tmp_path, pdf("One", "", "Three", "Four"))
    places = PlaceFinder(item.text, item.marks)
    numbers = {
        word: places.find(item.text.index(word), item.text.index(word) + 3)["page"]
        for word in ("One", "Three", "Four")
    }
    assert numbers == {"One": 1, "Three": 3, "Four": 4}


def widget(details: bytes) -> bytes:
    return b"<< /Type /Annot /Subtype /Widget /Rect [20 100 200 120] /P 4 0 R /F 4 %s >>" % details


def test_the_values_of_all_fields_of_a_form_are_read(tmp_path: Path) -> None:
    state = b"/AP << /N << /On 7 0 R /Off 7 0 R >> >>"
    fields = [
        widget(b"/FT /Tx /T (applicant) /V (Grace Hopper) /DA (/F1 12 Tf 0 g)"),
        widget(b"/FT /Tx /T (f2) /TU (Place of birth) /V <FEFF004D00FC006E006300680065006E>"),
        widget(b"/FT /Tx /T (notes) /Ff 4096 /V (first line\\rsecond line)"),
        widget(b"/FT /Tx /T (empty) /V ()"),
        widget(b"/FT /Btn /T (member) /V /On /AS /On " + state),
        widget(b"/FT /Btn /T (lapsed) /V /Off /AS /Off " + state),
        widget(b"/FT /Ch /Ff 131072 /T (country) /Opt [(France) (Japan)] /V (Japan)"),
        widget(b"/FT /Ch /Ff 2097152 /T (tongues) /Opt [(A) (B) (C)] /V [(A) (C)] /I [0 2]"),
        widget(b"/FT /Btn /Ff 65536 /T (push) /MK << /CA (Send) >>"),
    ]
    numbers = b" ".join(b"%d 0 R" % (8 + index) for index in range(len(fields)))
    look = stream_of(b"", b"/Type /XObject /Subtype /Form /BBox [0 0 9 9]")
    content = pdf_of(
        [stream_of(b"BT /F1 12 Tf 72 700 Td (Application) Tj ET")],
        page=b"/Annots [%s]" % numbers,
        catalog=b"/AcroForm << /Fields [%s] >>" % numbers,
        objects=[look, *fields],
    )
    assert document(tmp_path, content).text == (
        "Application\n\n"
        "applicant: Grace Hopper\nPlace of birth: München\nnotes: first line\nsecond line\n"
        "member: On\ncountry: Japan\ntongues: A, C"
    )


CMAP = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def
/CMapType 2 def 1 begincodespacerange <00> <FF> endcodespacerange 5 beginbfchar
<41> <0633> <42> <06440627> <43> <0645> <44> <FEFB> <45> <0644> <46> <0627> endbfchar
endcmap CMapName currentdict /CMap defineresource pop end end"""


@pytest.mark.parametrize(
    ("glyphs", "text"),
    [
        ("CBA", "سلام"),  # one glyph for lam and alef
        ("CDA", "سلام"),  # the same as a character of its own
        ("CFEA", "سلام"),  # two glyphs
        ("CAEF", "السم"),  # the article, which is alef and lam
        ("CBA CBA", "سلام سلام"),
        ("ACBEF", "اللامس"),
    ],
)
def test_text_from_right_to_left_is_in_its_order(tmp_path: Path, glyphs: str, text: str) -> None:
    content = pdf_of(
        [stream_of(f"BT /F1 12 Tf 72 700 Td ({glyphs}) Tj ET".encode())],
        font=b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >>",
        objects=[stream_of(CMAP.replace(b"5 beginbfchar", b"6 beginbfchar"))],
    )
    assert document(tmp_path, content).text == text


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        (b"(A\\000title)", "A title"),
        (b"<FEFF00410000007400690074006C0065>", "A title"),
        (b"( \\000 )", None),
        (b"<FEFFD83D>", None),
    ],
)
def test_a_title_is_cleaned(tmp_path: Path, title: bytes, expected: str | None) -> None:
    page = stream_of(b"BT /F1 12 Tf 72 700 Td (Text) Tj ET")
    item = document(tmp_path, pdf_of([page], info=b"<< /Title %s >>" % title))
    assert item.metadata.get("title") == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The file is empty."),
        (b"no PDF", "The file is not a valid PDF"),
        (pdf("x")[:200], "The file is not a valid PDF"),
        (pdf("", ""), "The PDF has no text."),
        (pdf("x" * 5000), "the limit (`max_document_bytes`) is 4,000"),
    ],
)
def test_a_pdf_without_text_is_rejected(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in reason(tmp_path, content, max_document_bytes=4000)


IMAGE = stream_of(
    b"q 600 0 0 700 0 0 cm BI /W 1 /H 1 /BPC 8 /CS /G ID \x00 EI Q",
)


def test_a_scan_is_reported_as_such(tmp_path: Path) -> None:
    found = reason(tmp_path, pdf_of([IMAGE, IMAGE]))
    assert found.startswith("The PDF is a scan: 2 of its 2 pages are images without text.")
    assert "ocrmypdf" in found
    text = stream_of(b"BT /F1 12 Tf 72 700 Td (Text) Tj ET")
    item = document(tmp_path, pdf_of([IMAGE, text]))
    assert item.text == "Text"
    assert item.metadata["scanned_pages"] == 1


def test_an_encrypted_pdf_opens_with_its_password(tmp_path: Path) -> None:
    content = encrypted_pdf("secret", "open sesame")
    assert reason(tmp_path, content) == (
        "The PDF is encrypted. Give its password with `--pdf-password`."
    )
    wrong = reason(tmp_path, content, pdf_password="open")
    assert wrong == "The PDF is encrypted, and its password is not the one in `--pdf-password`."
    assert document(tmp_path, content, pdf_password="open sesame").text == "secret"
    assert document(tmp_path, encrypted_pdf("no secret", "")).text == "no secret"
