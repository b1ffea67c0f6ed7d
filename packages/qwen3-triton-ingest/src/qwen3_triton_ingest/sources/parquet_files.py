"""Parquet files, read with Arrow in batches of a few megabytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from qwen3_triton_client import Vector

from ..config import ReadOptions
from ..documents import BadRecord, Document, Origin
from .records import ID_COLUMN, RecordReader, missing_column, needed_columns
from .shards import Shard, SourceFile, file_shard, shown
from .values import FLOAT_BYTES, UnreadableError, as_json, checked_vector

BATCH_BYTES = 4 << 20
MAX_BATCH_ROWS = 4096
_BUFFER_BYTES = 1 << 20


def plan_parquet(source: str, file: SourceFile, shard_bytes: int) -> Iterator[Shard]:
    """Divide a file into shards of whole row groups, each of about `shard_bytes` uncompressed."""
    pa, parquet = _arrow()
    try:
        with parquet.ParquetFile(file.path) as opened:
            meta = opened.metadata
            sizes: list[int] = [
                meta.row_group(index).total_byte_size for index in range(meta.num_row_groups)
            ]
    except (OSError, pa.ArrowException):
        yield file_shard(source, "parquet", (file,))  # reading it reports the problem
        return
    start = size = 0
    for index, more in enumerate(sizes):
        if index > start and size + more > shard_bytes:
            yield _part(source, file, start, index, len(sizes))
            start, size = index, 0
        size += more
    yield _part(source, file, start, len(sizes), len(sizes))


def find_missing_in_parquet(file: SourceFile, options: ReadOptions) -> str | None:
    """Return the message that a file lacks a column; None if it does not, or cannot be read."""
    pa, parquet = _arrow()
    try:
        with parquet.ParquetFile(file.path) as opened:
            return _missing(opened.schema_arrow.names, options)
    except (OSError, pa.ArrowException):
        return None


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
                if shard.start == 0:  # once per file
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
        if isinstance(error, MemoryError):
            raise
        first_line = str(error).partition("\n")[0]
        msg = f"The file is not a valid Parquet file: {first_line}"
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
                msg = f"The row cannot be read ({type(record).__name__})."
                raise UnreadableError(msg)
            vector = vectors.take(index, reader.dimensions) if vectors else None
        except UnreadableError as error:
            yield reader.refuse(record, origin, str(error))
        else:
            yield reader.read(record, origin, vector=vector)


def _records(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """Yield the rows of a batch, or the error of a row that Python cannot represent."""
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):  # invalid UTF-8, a date after the year 9999
        rows = []
        for index in range(batch.num_rows):
            try:
                rows += batch.slice(index, 1).to_pylist()
            except (ValueError, OverflowError) as error:
                rows.append(error)
    for row in rows:
        yield row if isinstance(row, Exception) else {k: as_json(v) for k, v in row.items()}


def _in_microseconds(batch: Any) -> Any:
    """Truncate timestamps to microseconds, the resolution of Python's."""
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
    """Return the message for the first column in the options that is not in the file."""
    for what, column in needed_columns(options).items():
        # Text and id may be nested in another column; vectors have their own.
        root = column if what == "vector" else _root(names, column)
        if root not in names:
            return missing_column(what, column, names)
    return None


def _columns(names: list[str], options: ReadOptions) -> list[str]:
    """Return the columns to read, in file order."""
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


class VectorColumn:
    """A column of vectors, copied from Arrow's buffers without a Python number in between."""

    def __init__(self, column: Any) -> None:
        """Convert the values to float32 if needed.

        Raises:
            UnreadableError: The column is not one of lists of numbers.
        """
        pa: Any = import_module("pyarrow")
        kind = column.type
        self._size: int | None = None
        if pa.types.is_fixed_size_list(kind):
            self._size = kind.list_size
            wanted = pa.list_(pa.float32(), self._size)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            wanted = pa.large_list(pa.float32())
        else:
            msg = f"The vector column is of type {kind}, not lists of numbers."
            raise UnreadableError(msg)
        try:
            self._column = column if kind == wanted else column.cast(wanted, safe=False)
        except pa.ArrowException:
            msg = f"The vector column is of type {kind}, not lists of numbers."
            raise UnreadableError(msg) from None
        self._values = self._column.values
        data = self._values.buffers()[1]
        self._data = memoryview(data if data is not None else b"").cast("B")

    def take(self, row: int, dimensions: int | None) -> Vector:
        """Return a row's vector.

        Raises:
            UnreadableError: It is null, or `checked_vector` rejects it.
        """
        if not self._column[row].is_valid:
            raise UnreadableError("The vector is null.")
        if self._size is not None:
            start = (self._column.offset + row) * self._size
            stop = start + self._size
        else:
            start, stop = (self._column.offsets[row + i].as_py() for i in (0, 1))
        if self._values.null_count and self._values.slice(start, stop - start).null_count:
            raise UnreadableError("The vector contains null.")
        vector: Vector = array("f")
        first = self._values.offset
        vector.frombytes(self._data[(first + start) * FLOAT_BYTES : (first + stop) * FLOAT_BYTES])
        return checked_vector(vector, dimensions)
