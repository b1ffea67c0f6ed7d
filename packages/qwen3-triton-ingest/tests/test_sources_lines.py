"""JSONL and CSV: lines of any length and content, in shards of any size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.documents import BadRecord, Document
from qwen3_triton_ingest.sources import plan_shards, planning, read_shard
from record_files import good, read, reasons


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{not json", "The line is not JSON: "),
        (b'["a"]', "The line is not a JSON object but of type array. .*jq -c"),
        (b"5", "not a JSON object but of type int"),
        (b'{"text": "\xff"}', "Byte 24 is not valid utf-8. Set the encoding with `--encoding`"),
        (b'{"text": "\\ud800"}', "The text contains half a surrogate pair at character 0"),
        (b'{"text": "' + b"x" * 3000 + b'"}', "The line is longer than 1,000 bytes"),
    ],
)
def test_a_bad_line_does_not_affect_its_neighbors(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b'\n\n{"text": "b"}')
    items = read(path, max_document_bytes=1000)
    assert [type(item) for item in items] == [Document, BadRecord, Document]
    assert re.search(words, reasons(items)[0])
    assert "not json" not in reasons(items)[0].removeprefix("The line is not JSON")
    # The position points to the line.
    begin = items[1].origin.position
    assert path.read_bytes()[begin - 1 :].startswith(line)


def test_a_file_that_is_written_while_it_is_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "SHARD_BYTES", 56)
    path = tmp_path / "a.jsonl"
    lines = [f'{{"id": "{name}", "text": "text"}}\n' for name in "abcd"]
    path.write_text("".join(lines))
    first, second = plan_shards([str(path)], ReadOptions())
    assert [item.doc_id for item in read_shard(first, ReadOptions())] == ["a", "b"]
    path.write_text("".join(reversed(lines)))  # c and d are where a and b were
    *_, report = read_shard(second, ReadOptions())
    assert isinstance(report, BadRecord)
    assert "changed while it was being loaded" in report.reason
    assert report.doc_id is None  # it may be any record of the file, so none counts as vanished


@given(
    lines=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=20),
    ended=st.booleans(),
    shard_bytes=st.integers(1, 70),
)
@settings(max_examples=200, deadline=None)
def test_shards_of_any_size_yield_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ended: bool, shard_bytes: int
) -> None:
    texts = [line.hex() for line in lines]
    content = "\n".join(json.dumps({"text": text or "-"}) for text in texts)
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_text(content + ("\n" if ended else ""))
    before, planning.SHARD_BYTES = planning.SHARD_BYTES, shard_bytes
    try:
        items = read(path)
    finally:
        planning.SHARD_BYTES = before
    if not path.stat().st_size or path.stat().st_size == 1:
        return
    assert [document.text for document in good(items)] == [text or "-" for text in texts]
    positions = [document.origin.position for document in good(items)]
    assert positions == sorted(set(positions))


@pytest.mark.slow
def test_a_line_of_a_gigabyte_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n' + b"\n" * 9000)
        file.truncate(1 << 30)  # zeros that take no space on disk
        file.seek(0, 2)
        file.write(b'\n{"text": "after"}\n')
    script = f"""
from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.sources import plan_shards, read_shard
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
options = ReadOptions(max_document_bytes=8 << 20)
before = peak()
for shard in plan_shards([{str(path)!r}], options):
    for item in read_shard(shard, options):
        print(getattr(item, "text", None) or item.reason)
print((peak() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=200
    )
    *items, grown_mib = done.stdout.splitlines()
    assert items == [
        "before",
        "The line is longer than 8,388,608 bytes (`max_document_bytes`). "
        "Write one document per line.",
        "after",
    ]
    assert int(grown_mib) < 64


def test_numbers_and_escapes_beyond_the_standard_load_or_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        '{"id": 12345678901234567890123, "text": "a", "big": 98765432109876543210, "n": NaN}',
        '{"id": "b", "text": "b", "low": -Infinity, "in": [1e999, {"x": 18446744073709551616}]}',
        '{"id": "c", "text": "tab\tand 9223372036854775807", "n": 9223372036854775807}',
        '{"id": "d", "text": "\\ud83d alone"}',
        '{"id": "e", "text": "e", "note": "\\udc00"}',
        '{"id": "f", "text": "f", "n": ' + "1" * 5000 + "}",
        '{"id": "g", "text": "g", "n": ' + "[" * 100_000 + "}",
        '{"id": "h", "text": "\\ud83d\\ude00"}',
    ]
    path.write_text("\n".join(lines))
    items = read(path)
    documents = {item.doc_id: item for item in items if isinstance(item, Document)}
    assert list(documents) == ["12345678901234567890123", "b", "c", "h"]
    assert documents["12345678901234567890123"].metadata == {
        "big": "98765432109876543210",
        "n": None,
    }
    assert documents["b"].metadata == {"low": None, "in": [None, {"x": "18446744073709551616"}]}
    assert documents["c"].metadata == {"n": 9223372036854775807}
    assert documents["h"].text == "\N{GRINNING FACE}"
    bad = [item for item in items if isinstance(item, BadRecord)]
    assert [item.doc_id for item in bad] == ["d", "e", None, None]
    assert "surrogate" in bad[0].reason
    assert "surrogates" in bad[1].reason
    assert all("is not JSON" in item.reason for item in bad[2:])


def test_csv_reports_what_is_wrong_with_a_record_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,text\n1,one\n2,two,three\n\n3\n"
        b'4,"four\nlines"\n5,f\xffve\n6,"six"x\n7,seven\n8,' + b"x" * 5000 + b"\n9,nine\n"
    )
    items = read(path, max_document_bytes=4000)
    assert {item.doc_id: item.text for item in items if isinstance(item, Document)} == {
        "1": "one",
        "4": "four\nlines",
        "7": "seven",
        "9": "nine",
    }
    bad = {item.origin.position: item.reason for item in items if isinstance(item, BadRecord)}
    assert bad[3].startswith("The record has 3 fields, but the header has 2.")
    assert bad[5] == "The record has 1 fields, but the header has 2."
    assert bad[8].startswith("Byte 50 is not valid utf-8")
    assert "expected after" in bad[9]
    assert bad[11] == "A line is longer than 4,000 bytes (`max_document_bytes`)."
    assert len(bad) == 5


def test_a_quote_without_an_end_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,one\n2,"two\n3,three\n')
    items = read(path)
    assert [item.doc_id for item in items] == ["1", None]
    assert reasons(items) == ["The record is not valid CSV: unexpected end of data."]


def test_csv_fields_may_have_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 3_000_000 + "\n")
    assert len(good(read(path))[0].text) == 3_000_000


@pytest.mark.parametrize("options", [{"encoding": "latin-1"}, {"encodings": {"a.*": "cp1252"}}, {}])
def test_record_files_may_be_in_other_encodings(tmp_path: Path, options: dict[str, Any]) -> None:
    for kind, content in (("csv", "text\ngrößer\n"), ("jsonl", '{"text": "größer"}\n')):
        path = tmp_path / f"a.{kind}"
        path.write_text(content, encoding="latin-1")
        assert good(read(path, **options))[0].text == "größer"
