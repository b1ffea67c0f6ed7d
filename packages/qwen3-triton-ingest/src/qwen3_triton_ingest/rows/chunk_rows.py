"""Write chunks to a table, and take them out, in the caller's transaction.

All goes in PostgreSQL's binary forms: what costs time is the text form of a vector, some 20 KB
that both sides parse, and not INSERT instead of COPY.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar
from uuid import UUID

from psycopg import sql

from ..database import Connection
from ..documents import Chunk, EmbeddedChunk
from ..layouts import Table
from .copy_format import copy_stream
from .fields import embedded_fields, metadata_fields
from .packed import Packed, PackedDumper
from .statements import copy_statement, delete_statement, insert_statement, update_statement

__all__ = ["copy_chunks", "count_chunks", "delete_chunks", "update_chunks", "upsert_chunks"]

Item = TypeVar("Item")

_UPSERT_ROWS = 1000  # held at once, to find chunks with the same id


def copy_chunks(connection: Connection, table: Table, chunks: Iterable[EmbeddedChunk]) -> int:
    """Write chunks whose ids are not in the table, and return how many they were.

    Holds some 256 KiB at once, however many chunks come.

    Raises:
        psycopg.errors.UniqueViolation: An id is there already, or comes twice.
        ValueError: A vector has other dimensions than the table.
    """
    statement = copy_statement(table)
    if statement is None:  # PostgreSQL computes columns of the row, which COPY cannot
        return _insert(connection, table, chunks, upsert=False)
    count = 0

    def rows() -> Iterator[list[bytes]]:
        nonlocal count
        for chunk in chunks:
            count += 1
            yield embedded_fields(table, chunk)

    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for block in copy_stream(rows()):
            copy.write(block)
    return count


def upsert_chunks(connection: Connection, table: Table, chunks: Iterable[EmbeddedChunk]) -> int:
    """Write chunks, over the rows of the same ids, and return how many rows were written.

    Of chunks with one id the last wins. Writing the same again leaves the table as it is.

    Raises:
        ValueError: A vector has other dimensions than the table.
    """
    written = 0
    for batch in _batches(chunks, _UPSERT_ROWS):
        last = {each.chunk.id: each for each in batch}
        written += _insert(connection, table, last.values(), upsert=True)
    return written


def update_chunks(connection: Connection, table: Table, chunks: Sequence[Chunk]) -> None:
    """Give rows that are there the chunks' metadata and places; texts and vectors stay."""

    def parameters() -> Iterator[list[Packed]]:
        for chunk in chunks:
            seq = [chunk.seq.to_bytes(4, "big")] if table.layout.name == "own" else []
            fields = [*seq, *metadata_fields(table, chunk), _packed_id(table, chunk.id)]
            yield [Packed(field) for field in fields]

    _run_many(connection, update_statement(table), parameters())


def count_chunks(connection: Connection, table: Table) -> int:
    """Count the rows of a table."""
    # Vectors lie outside the heap, so this reads little.
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table.identifier)).fetchone()
    return row[0] if row else 0


def delete_chunks(connection: Connection, table: Table, ids: Sequence[UUID]) -> int:
    """Remove rows by their ids and return how many there were."""
    values: list[Any] = list(ids) if table.layout.id_type == "uuid" else [str(each) for each in ids]
    return connection.execute(delete_statement(table), [values]).rowcount


def _insert(
    connection: Connection, table: Table, chunks: Iterable[EmbeddedChunk], *, upsert: bool
) -> int:
    # Pipelined and prepared, one INSERT a row is as fast as COPY into a temporary table and one
    # INSERT of all from there, and needs no right to make such tables.
    parameters = ([Packed(field) for field in embedded_fields(table, each)] for each in chunks)
    return _run_many(connection, insert_statement(table, upsert=upsert), parameters)


def _run_many(connection: Connection, statement: Any, parameters: Iterable[Any]) -> int:
    with connection.cursor() as cursor:
        cursor.adapters.register_dumper(Packed, PackedDumper)
        cursor.executemany(statement, parameters)
        return max(0, cursor.rowcount)


def _packed_id(table: Table, each: UUID) -> bytes:
    return each.bytes if table.layout.id_type == "uuid" else str(each).encode()


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
