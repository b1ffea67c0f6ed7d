"""Parquet files, read by Arrow in batches of a few megabytes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from ..config import ReadOptions
from ..documents import BadRecord, Document, Origin
from .finding import SourceFile, shown
from .parquet_vectors import VectorColumn
from .plain_values import UnreadableError, as_json
from .records import ID_COLUMN, RecordReader, missing_column
from .shards import Shard, file_shard

__all__ = ["plan_parquet", "read_parquet"]

BATCH_BYTES = 4 << 20
MAX_BATCH_ROWS = 4096
_BUFFER_BYTES = 1 << 20


def plan_parquet(source: str, file: SourceFile, shard_bytes: int) -> Iterator[Shard]:
    """Divide a file into shards of whole row groups, of some bytes each when unpacked."""
    pa, parquet = _arrow()
    try:
        with parquet.ParquetFile(file.path) as opened:
            meta = opened.metadata
            sizes: list[int] = [
                meta.row_group(index).total_byte_size for index in range(meta.num_row_groups)
            ]
    except (OSError, pa.ArrowException):
        yield file_shard(source, "parquet", (file,))  # its reading tells what is wrong
        return
    start = size = 0
    for index, more in enumerate(sizes):
        if index > start and size + more > shard_bytes:
            yield _part(source, file, start, index, len(sizes))
            start, size = index, 0
        size += more
    yield _part(source, file, start, len(sizes), len(sizes))


def read_parquet(
    shard: Shard, file: SourceFile, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    """Read the rows of the shard's row groups; the position of each is its row in the file."""
    pa, parquet = _arrow()
    try:
        with parquet.ParquetFile(file.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as opened:
            names: list[str] = opened.schema_arrow.names
            missing = _missing(names, options)
            if missing is not None:
                if shard.start == 0:  # once for the file
                    raise UnreadableError(missing)
                return
            groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
            row: int = sum(group.num_rows for group in groups[: shard.start]) + 1
            for index in range(shard.start, min(shard.stop, len(groups))):
                batches = opened.iter_batches(
                    batch_size=_batch_rows(groups[index]),
                    row_groups=[index],
                    columns=_columns(names, options),
                    use_threads=False,
                )
                for batch in batches:
                    origin = Origin(shard.source, shown(file.path), row)
                    yield from _read_batch(batch, origin, options, reader)
                    row += batch.num_rows
    except pa.ArrowException as error:
        first_line = str(error).partition("\n")[0]
        msg = f"the Parquet file is broken or is none: {first_line}"
        raise UnreadableError(msg) from None


def _read_batch(
    batch: Any, first: Origin, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    vectors: VectorColumn | None = None
    if options.vector_column is not None:
        vectors = VectorColumn(batch.column(options.vector_column))
        batch = batch.drop_columns([options.vector_column])
    for index, record in enumerate(_records(_in_microseconds(batch))):
        origin = Origin(first.source, first.path, first.position + index)
        try:
            if isinstance(record, Exception):
                msg = f"the row cannot be read ({type(record).__name__})"
                raise UnreadableError(msg)
            vector = vectors.take(index, reader.dimensions) if vectors else None
        except UnreadableError as error:
            yield reader.refuse(record, origin, str(error))
        else:
            yield reader.read(record, origin, vector=vector)


def _records(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """Give the rows of a batch; one that Python cannot hold does not take the others with it."""
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is no UTF-8, a date after the year 9999
        rows = []
        for index in range(batch.num_rows):
            try:
                rows += batch.slice(index, 1).to_pylist()
            except (ValueError, OverflowError) as error:
                rows.append(error)
    for row in rows:
        yield row if isinstance(row, Exception) else {k: as_json(v) for k, v in row.items()}


def _in_microseconds(batch: Any) -> Any:
    """Cut nanoseconds off, which Python's times do not have."""
    pa, _ = _arrow()
    for index, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            wanted = pa.timestamp("us", tz=field.type.tz)
            column = batch.column(index).cast(wanted, safe=False)
            batch = batch.set_column(index, field.name, column)
    return batch


def _arrow() -> tuple[Any, Any]:
    return import_module("pyarrow"), import_module("pyarrow.parquet")  # the extra `parquet`


def _part(source: str, file: SourceFile, start: int, stop: int, count: int) -> Shard:
    whole = stop - start == count
    part = "" if whole else f", row groups {start + 1}-{stop} of {count}"
    return file_shard(source, "parquet", (file,), start=start, stop=stop, part=part)


def _missing(names: list[str], options: ReadOptions) -> str | None:
    """Say which column that was named is not in the file."""
    named = {
        "text": options.text_column,
        "id": options.id_column,
        "vector": options.vector_column,
    }
    for what, column in named.items():
        # Text and id may be nested in another column, vectors have one of their own.
        root = _root(names, column) if column and what != "vector" else column
        if column is not None and root not in names:
            return missing_column(what, column, names)
    return None


def _columns(names: list[str], options: ReadOptions) -> list[str]:
    """Return the columns to read, in the order of the file."""
    if options.metadata_columns is None:
        return names
    named = [ID_COLUMN, options.text_column, options.id_column, options.vector_column]
    wanted = {_root(names, name) for name in (*named, *options.metadata_columns) if name}
    return [name for name in names if name in wanted]


def _root(names: list[str], column: str) -> str:
    return column if column in names else column.partition(".")[0]


def _batch_rows(group: Any) -> int:
    row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // row_bytes))
