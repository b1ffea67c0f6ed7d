"""Parquet: row groups, and values that JSON does not have."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.documents import BadRecord, Document
from qwen3_triton_ingest.sources import plan_shards, planning
from record_files import good, read, reasons, write


def test_parquet_is_divided_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SHARD_BYTES", 3000)
    path = tmp_path / "a.parquet"
    table = pa.table({"id": list(range(1000)), "text": [f"text {i}" for i in range(1000)]})
    parquet.write_table(table, path, row_group_size=90)
    shards = list(plan_shards([str(path)], ReadOptions()))
    assert len(shards) > 3
    assert shards[0].start == 0
    assert [shard.stop for shard in shards[:-1]] == [shard.start for shard in shards[1:]]
    documents = good(read(path))
    assert [document.doc_id for document in documents] == [str(i) for i in range(1000)]
    assert [document.origin.position for document in documents] == list(range(1, 1001))


def test_parquet_values_become_json_values(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    time = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "text": ["t"],
            "date": [datetime.date(2026, 1, 2)],
            "time": pa.array([time], pa.timestamp("ns", tz="UTC")),
            "price": [decimal.Decimal("1.50")],
            "raw": [b"\x00\xff"],
            "nan": [float("nan")],
            "tags": [["a", "b"]],
            "nested": [{"x": datetime.date(2026, 1, 3)}],
            "kind": pa.array(["k"]).dictionary_encode(),
        }
    )
    parquet.write_table(table, path)
    metadata = dict(good(read(path))[0].metadata)
    assert metadata.pop("time").startswith("2026-01-02T03:04:05.678901")
    assert metadata == {
        "date": "2026-01-02",
        "price": 1.5,
        "raw": "AP8=",
        "nan": None,
        "tags": ["a", "b"],
        "nested": {"x": "2026-01-03"},
        "kind": "k",
    }


def test_a_row_of_bad_text_does_not_affect_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    texts = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xffc"))
    parquet.write_table(pa.table({"id": ["1", "2", "3"], "text": texts}), path)
    items = read(path)
    assert [type(item) for item in items] == [Document, BadRecord, Document]
    assert items[1].origin.position == 2
    assert reasons(items) == ["The row cannot be read (UnicodeDecodeError)."]


def test_a_truncated_parquet_file_is_one_bad_record(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", [{"text": "t"}])
    path.write_bytes(path.read_bytes()[:-20])
    (reason,) = reasons(read(path))
    assert reason.startswith("The file is not a valid Parquet file: ")
