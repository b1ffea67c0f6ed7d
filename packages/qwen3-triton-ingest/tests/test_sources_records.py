"""Records of every format: the same options, the same reasons."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen3_triton_ingest.documents import text_digest
from qwen3_triton_ingest.errors import SourceError
from record_files import good, read, reasons, write

KINDS = pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])


@KINDS
def test_every_format_has_text_id_and_the_other_columns(tmp_path: Path, kind: str) -> None:
    records = [
        {"id": "x", "text": 'one, "two"\nthree', "lang": "en"},
        {"id": "y", "text": "vier\tfünf", "lang": "de"},
    ]
    documents = good(read(write(tmp_path, kind, records)))
    assert [(d.doc_id, d.text, dict(d.metadata)) for d in documents] == [
        (r["id"], r["text"], {"lang": r["lang"]}) for r in records
    ]
    first, second = (document.origin.position for document in documents)
    assert first < second


@KINDS
def test_columns_are_chosen_by_name(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, [{"n": "7", "body": "b", "x": "1", "y": "2", "id": "no"}])
    (document,) = good(
        read(path, text_column="body", id_column="n", metadata_columns=("y", "absent"))
    )
    assert (document.doc_id, document.text, document.metadata) == ("7", "b", {"y": "2"})


@KINDS
def test_without_an_id_a_digest_of_the_text_identifies_the_document(
    tmp_path: Path, kind: str
) -> None:
    path = write(tmp_path, kind, [{"text": "a"}, {"text": "b"}])
    documents = good(read(path))
    assert [d.doc_id for d in documents] == [f"{path}#{text_digest(t).hex()}" for t in "ab"]


@KINDS
def test_blank_texts_are_rejected_by_id_and_the_others_read(tmp_path: Path, kind: str) -> None:
    records = [{"id": "1", "text": "a"}, {"id": "2", "text": " "}, {"id": "3", "text": "c"}]
    items = read(write(tmp_path, kind, records))
    assert [item.doc_id for item in items] == ["1", "2", "3"]
    assert reasons(items) == ["The text is empty or blank."]


@KINDS
def test_nul_characters_are_rejected_or_replaced(tmp_path: Path, kind: str) -> None:
    if kind in {"csv", "tsv"}:  # where they are bytes, and make the file binary
        path = tmp_path / f"a.{kind}"
        separator = {"csv": b",", "tsv": b"\t"}[kind]
        lines = [b"id", b"text", b"1", b"x" * 9000, b"2", b"a\0b"]
        rows = [separator.join(lines[start : start + 2]) for start in (0, 2, 4)]
        path.write_bytes(b"\n".join(rows))
    else:
        path = write(tmp_path, kind, [{"id": "1", "text": "x"}, {"id": "2", "text": "a\0b"}])
    assert reasons(read(path)) == [
        "The text contains NUL characters, which PostgreSQL cannot store. `--replace-nul` "
        "replaces them with U+FFFD."
    ]
    assert good(read(path, replace_nul=True))[1].text == "a\ufffdb"


def test_nul_characters_in_metadata_too(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"id": "1", "text": "t", "a": {"b\0": ["c\0"]}}])
    assert "The metadata contains NUL characters" in reasons(read(path))[0]
    assert good(read(path, replace_nul=True))[0].metadata == {"a": {"b\ufffd": ["c\ufffd"]}}
    harmless = {"a": r"C:\u0000"}
    path = write(tmp_path, "jsonl", [{"id": "1", "text": "t", **harmless}])
    assert good(read(path))[0].metadata == harmless


@KINDS
def test_a_missing_text_column_is_reported_with_the_existing_ones(
    tmp_path: Path, kind: str
) -> None:
    path = write(tmp_path, kind, [{"id": "1", "body": "a"}, {"id": "2", "body": "b"}])
    items = read(tmp_path)
    expected = (
        "There is no text column 'text'. The columns are 'id', 'body'. Choose one with "
        "`--text-column`."
    )
    # Without a schema, each record is checked.
    assert reasons(items) == [expected] * (2 if kind == "jsonl" else 1)
    if kind != "jsonl":  # a file that is named, not found in a folder, is refused at once
        with pytest.raises(SourceError, match=re.escape(expected)):
            read(path)


@KINDS
def test_metadata_of_many_keys_is_rejected_with_a_way_out(tmp_path: Path, kind: str) -> None:
    many = {f"key{number}": "v" for number in range(6000)}
    path = write(tmp_path, kind, [{"id": "1", "text": "t", **many}])
    (reason,) = reasons(read(path))
    assert reason.startswith("The metadata has 6,000 keys and ")
    assert reason.endswith("is 65,536. Choose columns with `--metadata`.")
    assert good(read(path, metadata_columns=("key7",)))[0].metadata == {"key7": "v"}


def test_a_hundred_thousand_keys_are_counted(tmp_path: Path) -> None:
    record = {"text": "t"} | {f"key{number}": number for number in range(100_000)}
    (reason,) = reasons(read(write(tmp_path, "jsonl", [record])))
    assert "100,000 keys" in reason


@pytest.mark.parametrize(
    ("value", "expected"), [(7, "7"), ("7", "7"), (2**60, str(2**60)), ("é", "é")]
)
def test_ids_are_strings_or_integers(tmp_path: Path, value: Any, expected: str) -> None:
    path = write(tmp_path, "jsonl", [{"key": value, "text": "t"}])
    assert good(read(path, id_column="key"))[0].doc_id == expected


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "t"}, "There is no id column 'key'. The columns are 'text'."),
        ({"key": None, "text": "t"}, "The id column 'key' is null"),
        ({"key": 1.5, "text": "t"}, "The id column 'key' is of type float"),
        ({"key": "", "text": "t"}, "The id is empty."),
        ({"key": "k" * 2001, "text": "t"}, "The id has 2,001 bytes; the limit is 2,000."),
        ({"key": "k", "text": 5}, "The text column 'text' is of type int, not a string"),
        ({"key": "k", "text": None}, "The text column 'text' is null"),
        ({"key": "k", "text": "t" * 1001}, "The text has 1,001 bytes; the limit"),
    ],
)
def test_a_bad_record_has_a_reason(tmp_path: Path, record: Mapping[str, Any], words: str) -> None:
    path = write(tmp_path, "jsonl", [record])
    options = {"id_column": "key", "max_document_bytes": 1000}
    # A line is longer than the text in it.
    options |= {"max_document_bytes": 3000} if "limit is 2,000" in words else {}
    if "1,001" in words:
        path = write(tmp_path, "parquet", [record])
    (reason,) = reasons(read(path, **options))
    assert words in reason


def test_nested_columns_are_reached_by_dots(tmp_path: Path) -> None:
    record = {"doc": {"id": "d", "body": "b", "more": 1}, "meta": {"title": "t", "x": 2}}
    for kind in ("jsonl", "parquet"):
        path = write(tmp_path, kind, [record])
        columns = {"text_column": "doc.body", "id_column": "doc.id"}
        (document,) = good(read(path, **columns))
        assert (document.doc_id, document.text) == ("d", "b")
        assert document.metadata == {"doc": {"more": 1}, "meta": {"title": "t", "x": 2}}
        (document,) = good(read(path, **columns, metadata_columns=("meta.title",)))
        assert document.metadata == {"meta.title": "t"}


@KINDS
def test_an_empty_or_binary_file_is_one_bad_record(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    for content, words in ((b"", "The file is empty."), (b"\x1f\x8b\0\0\n\0\n\0", "NUL bytes")):
        path.write_bytes(content)
        items = read(path)
        assert len(items) == 1
        expected = "The file is not a valid Parquet file" if kind == "parquet" else words
        assert expected in reasons(items)[0]
