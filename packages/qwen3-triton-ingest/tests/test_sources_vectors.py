"""Precomputed vectors: float32 all the way, and rejected if a search could not find them."""

from __future__ import annotations

import re
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from qwen3_triton_ingest.documents import Document
from record_files import good, read, reasons, write

VECTORS = [[0.1 * row + 0.01 * column + 0.5 for column in range(4)] for row in range(6)]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32(), 4),
        pa.list_(pa.float32()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float64()),
        pa.list_(pa.float16(), 4),
        pa.large_list(pa.float64()),
    ],
    ids=str,
)
def test_parquet_vectors_are_float32(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    vectors = pa.array(VECTORS, pa.list_(pa.float64())).cast(kind)
    table = pa.table({"text": list("abcdef"), "vector": vectors, "x": list(range(6))})
    parquet.write_table(table.slice(1), path, row_group_size=2)
    documents = good(read(path, vector_column="vector", dimensions=4))
    assert [document.metadata for document in documents] == [{"x": x} for x in range(1, 6)]
    for document, expected in zip(documents, VECTORS[1:], strict=True):
        assert isinstance(document.vector, array)
        assert document.vector.typecode == "f"
        assert document.vector.tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("source", ["jsonl", "parquet", "fixed"])
def test_vectors_that_a_search_cannot_find_are_rejected(tmp_path: Path, source: str) -> None:
    good_one = [0.5, 0.5, 0.5, 0.5]
    vectors: list[Any] = [good_one, None, [0.0] * 4, [1.0, 2.0, 3.0, 1e300], good_one]
    words = ["is null", "is all zeros", "holds NaN or infinity"]
    if source != "fixed":
        vectors[-1:-1] = [[1.0, 2.0], [0.5, None, 0.5, 0.5], []]
        words += ["has 2 dimensions instead of 4", "null|not a number", "has 0 dimensions"]
    records = [{"id": str(i), "text": "t", "v": vector} for i, vector in enumerate(vectors)]
    if source == "jsonl":
        path = write(tmp_path, "jsonl", records)
    else:
        path = tmp_path / "a.parquet"
        kind = pa.list_(pa.float64(), 4) if source == "fixed" else pa.list_(pa.float64())
        columns = {name: [record[name] for record in records] for name in ("id", "text")}
        parquet.write_table(pa.table({**columns, "v": pa.array(vectors, kind)}), path)
    items = read(path, vector_column="v", dimensions=4)
    assert [item.doc_id for item in items] == [record["id"] for record in records]
    assert [type(item) for item in (items[0], items[-1])] == [Document, Document]
    found = reasons(items)
    assert len(found) == len(words)
    assert all(re.search(w, r) for w, r in zip(words, found, strict=True)), found


def test_a_vector_column_of_another_type_is_rejected(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", [{"text": "t", "v": "abc"}])
    assert "The vector column is of type string" in reasons(read(path, vector_column="v"))[0]
    path = write(tmp_path, "jsonl", [{"text": "t", "v": {"a": 1}}])
    assert "The vector is of type dict" in reasons(read(path, vector_column="v"))[0]


def test_csv_vectors_are_written_as_pgvector_writes_them(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", [{"text": "t", "v": "[0.25,-0.5]"}, {"text": "u", "v": "[x"}])
    items = read(path, vector_column="v")
    assert isinstance(items[0], Document)
    assert items[0].vector == array("f", [0.25, -0.5])
    assert reasons(items) == ["The vector is a string that is not a list of numbers."]


@pytest.mark.slow
def test_vectors_of_one_large_row_group_stream_through(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows, size = 20_000, 1024
    values = pa.array(array("f", [0.03125]) * (rows * size), pa.float32())
    vectors = pa.FixedSizeListArray.from_arrays(values, size)
    table = pa.table({"text": [f"text {i}" for i in range(rows)], "v": vectors})
    parquet.write_table(table, path, use_dictionary=False, compression="none")
    del table, vectors, values
    script = f"""
from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.sources import plan_shards, read_shard
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
options = ReadOptions(vector_column="v")
shards = list(plan_shards([{str(path)!r}], options))
before, count = peak(), 0
for shard in shards:
    for item in read_shard(shard, options):
        count += len(item.vector) == {size}
print(count, (peak() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=200
    )
    count, grown_mib = map(int, done.stdout.split())
    assert count == rows
    assert grown_mib < 64  # of 78 in the one row group
