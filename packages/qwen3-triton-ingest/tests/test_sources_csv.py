"""CSV files as people have them: every separator, quote, line end, header and encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen3_triton_ingest.documents import Document
from qwen3_triton_ingest.errors import SourceError
from record_files import good, read, reasons

EXPECTED = [("1", "One, two"), ("2", "It's; three"), ("3", "Four\nfive")]


def content_of(
    tmp_path: Path, text: str | bytes, name: str = "a.csv", **options: Any
) -> list[tuple[str, str]]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(document.doc_id, document.text) for document in good(read(path, **options))]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_separator_and_line_ends_are_found(tmp_path: Path, delimiter: str, end: str) -> None:
    rows = [["id", "text", "n"], ["1", '"One, two"', "5"], ["2", '"It\'s; three"', "6"]]
    rows.append(["3", f'"Four{end}five"', "7"])
    text = "".join(delimiter.join(row) + end for row in rows)
    found = content_of(tmp_path, text)
    assert [(key, value.replace("\r\n", "\n")) for key, value in found] == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nid;text\n1;a, b, c\n",
        "SEP=|\r\nid|text\r\n1|a, b, c\r\n",
        "'id';'text'\n'1';'a, b, c'\n",
        "id,text\n1,'a, b, c'\n",
        "Export of 2026-01-02\n\n;;\nid;text;\n1;a, b, c;\n",
        "ID; Text \n1;a, b, c\n",
        '"id","text"\n"1","a, b, c"\n,\n"",""\n',
        'id,text,more\n1,"a, b, c"\n',
        '\ufeffid;text\n1;"a, b, c"\n',
    ],
    ids=str,
)
def test_what_programs_write_is_understood(tmp_path: Path, text: str) -> None:
    assert content_of(tmp_path, text) == [("1", "a, b, c")]


def test_quotes_with_backslashes_are_understood(tmp_path: Path) -> None:
    text = '"id","text"\n"1","He said \\"hi\\", and left"\n"2","C:\\\\dir"\n'
    assert content_of(tmp_path, text) == [("1", 'He said "hi", and left'), ("2", "C:\\dir")]


def test_a_file_with_one_column_is_not_divided(tmp_path: Path) -> None:
    lines = "Text\nOne, two, three\nFour; five\nIt's six\n"
    assert [text for _, text in content_of(tmp_path, lines)] == [
        "One, two, three",
        "Four; five",
        "It's six",
    ]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("id~text\n1~a; b; c\n", {"delimiter": "~"}),
        ("id\ttext\n1\ta; b; c\n", {"delimiter": "tab"}),
        ("id,text\n1,$a; b; c$\n", {"quote": "$"}),
        ("1,x\n1,a; b; c\n", {"delimiter": ",", "has_header": False, "text_column": "2"}),
    ],
)
def test_separator_quote_and_header_can_be_set(
    tmp_path: Path, text: str, options: dict[str, Any]
) -> None:
    assert content_of(tmp_path, text, **options)[-1][1] == "a; b; c"


def test_quotes_can_be_text(tmp_path: Path) -> None:
    assert content_of(tmp_path, 'id;text\n1;"a" and b\n', quote="none") == [("1", '"a" and b')]


def test_a_file_without_a_header_is_read_by_numbers(tmp_path: Path) -> None:
    text = "1;One\n2;Two\n"
    with pytest.raises(SourceError, match=r"columns are '1', 'One'.*--no-header"):
        content_of(tmp_path, text)
    options: dict[str, Any] = {"has_header": False, "text_column": "2", "id_column": "1"}
    assert content_of(tmp_path, text, **options) == [("1", "One"), ("2", "Two")]


def test_columns_match_whatever_their_case(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Key,BODY,Size,size,Note\na,one,1,2,x\n")
    options: dict[str, Any] = {
        "text_column": "body",
        "id_column": "key",
        "metadata_columns": ("note", "size"),
    }
    (document,) = good(read(path, **options))
    assert (document.doc_id, document.text) == ("a", "one")
    assert document.metadata == {"Note": "x", "size": "2"}


def test_ragged_records_load_or_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text,n\n1,one\n2,two,2,,\n3\n4,four, and,4\n5,five,5\n")
    items = read(path)
    assert [item.doc_id for item in items if isinstance(item, Document)] == ["1", "2", "5"]
    assert reasons(items) == [
        "The record has 1 fields, but the header has 3.",
        "The record has 4 fields, but the header has 3. Quote fields that contain ','.",
    ]
    # A record that is not loaded keeps vanished documents of the file only if its id is unknown.
    assert [item.doc_id for item in items if not isinstance(item, Document)] == ["3", None]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252", "gb18030"])
@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_encodings_of_spreadsheets_are_found(tmp_path: Path, encoding: str, end: str) -> None:
    word = "水泵的密封件磨损时压力会下降" if encoding == "gb18030" else "Maße für größere Öfen"
    text = f'id\ttext{end}1\t"{word}\nand more"{end}'
    assert content_of(tmp_path, text.encode(encoding), "a.tsv") == [("1", f"{word}\nand more")]


@pytest.mark.parametrize("option", [{"delimiter": ";;"}, {"quote": ""}, {"delimiter": "\n"}])
def test_a_separator_is_one_character(tmp_path: Path, option: dict[str, str]) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(SourceError, match="must be one character"):
        content_of(tmp_path, "text\na\n", **option)


def test_a_long_first_record_hides_nothing(tmp_path: Path) -> None:
    text = '"a; b\n' + "x\n" * 60_000 + '"'
    found = content_of(tmp_path, f"id;text\n1;{text}\n2;two\n")
    assert [key for key, _ in found] == ["1", "2"]
