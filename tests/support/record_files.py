"""Writes files of records and reads them through the loader's sources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from pyarrow import parquet

from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.documents import BadRecord, Document
from qwen3_triton_ingest.places import PlaceFinder
from qwen3_triton_ingest.sources import plan_shards, read_shard

Records: TypeAlias = Sequence[Mapping[str, Any]]


def read(
    path: Path, *, dimensions: int | None = None, **options: Any
) -> list[Document | BadRecord]:
    chosen = ReadOptions(**options)
    return [
        item
        for shard in plan_shards([str(path)], chosen)
        for item in read_shard(shard, chosen, dimensions=dimensions)
    ]


def write(folder: Path, kind: str, records: Records) -> Path:
    path = folder / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(list(records)), path)
    else:
        names = list(records[0])
        rows = [names, *([record[name] for name in names] for record in records)]
        quoted = ('"' + str(value).replace('"', '""') + '"' for row in rows for value in row)
        cells = iter(quoted)
        separator = "\t" if kind == "tsv" else ","
        path.write_text("".join(separator.join(next(cells) for _ in names) + "\n" for _ in rows))
    return path


def good(items: list[Document | BadRecord]) -> list[Document]:
    assert all(isinstance(item, Document) for item in items), items
    return [item for item in items if isinstance(item, Document)]


def document(path: Path, content: str | bytes | None = None, **options: Any) -> Document:
    """Read the one document of a file, which is written first if there is content."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (item,) = good(read(path, **options))
    return item


def places(item: Document, *words: str) -> list[dict[str, Any]]:
    """Return the places of the chunks that begin with these words."""
    finder = PlaceFinder(item.text, item.marks)
    return [finder.find(item.text.index(word), len(item.text)) for word in words]


def refusal(path: Path, content: bytes) -> BadRecord:
    """Write a file that cannot be read, and return what is reported of it."""
    path.write_bytes(content)
    (item,) = read(path)
    assert isinstance(item, BadRecord)
    return item


def reasons(items: list[Document | BadRecord]) -> list[str]:
    return [item.reason for item in items if isinstance(item, BadRecord)]
