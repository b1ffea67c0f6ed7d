"""Write chunks to a table of any layout, and delete them, in the caller's transaction.

Everything is sent in PostgreSQL's binary formats. What costs time is the text format of a vector,
about 20 KB that both sides parse, and not whether INSERT or COPY is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any
from uuid import UUID

from psycopg import sql

from ..database import Connection
from ..documents import Chunk, EmbeddedChunk
from ..layouts import Table, escaped_identifier
from .binary import (
    BinaryDumper,
    BinaryValue,
    column_types,
    copy_stream,
    embedded_fields,
    metadata_fields,
    pack_id,
)

_UPSERT_ROWS = 1000  # held at once, to find chunks with the same id


def copy_chunks(connection: Connection, table: Table, chunks: Iterable[EmbeddedChunk]) -> int:
    """Write chunks whose ids are not in the table, and return how many were written.

    Holds about 256 KiB at a time, however many chunks there are.

    Raises:
        psycopg.errors.UniqueViolation: An id is in the table already, or occurs twice.
        ValueError: The table has vectors of other dimensions.
    """
    statement = copy_statement(table)
    if statement is None:
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
    """Write chunks, replacing rows of the same ids, and return how many rows were written.

    If chunks share an id, the last one wins.

    Raises:
        ValueError: The table has vectors of other dimensions.
    """
    written = 0
    stream = iter(chunks)
    while batch := list(islice(stream, _UPSERT_ROWS)):
        last = {each.chunk.id: each for each in batch}
        written += _insert(connection, table, last.values(), upsert=True)
    return written


def update_chunks(connection: Connection, table: Table, chunks: Sequence[Chunk]) -> None:
    """Update metadata and places of existing rows; texts and vectors stay."""

    def parameters() -> Iterator[list[BinaryValue]]:
        for chunk in chunks:
            seq = [chunk.seq.to_bytes(4, "big")] if table.layout.name == "own" else []
            fields = [*seq, *metadata_fields(table, chunk), pack_id(table, chunk.id)]
            yield [BinaryValue(field) for field in fields]

    _run_many(connection, update_statement(table), parameters())


def count_chunks(connection: Connection, table: Table) -> int:
    """Count the rows of a table."""
    # Vectors are stored outside the heap, so this reads little.
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table.identifier)).fetchone()
    return row[0] if row else 0


def delete_chunks(connection: Connection, table: Table, ids: Sequence[UUID]) -> int:
    """Delete rows by their ids and return how many existed."""
    values: list[Any] = list(ids) if table.layout.id_type == "uuid" else [str(each) for each in ids]
    return connection.execute(delete_statement(table), [values]).rowcount


def _insert(
    connection: Connection, table: Table, chunks: Iterable[EmbeddedChunk], *, upsert: bool
) -> int:
    # Pipelined and prepared, one INSERT per row is as fast as COPY into a temporary table and one
    # INSERT from there, and needs no right to create temporary tables.
    parameters = ([BinaryValue(field) for field in embedded_fields(table, each)] for each in chunks)
    return _run_many(connection, insert_statement(table, upsert=upsert), parameters)


def _run_many(connection: Connection, statement: Any, parameters: Iterable[Any]) -> int:
    with connection.cursor() as cursor:
        cursor.adapters.register_dumper(BinaryValue, BinaryDumper)
        cursor.executemany(statement, parameters)
        return max(0, cursor.rowcount)


def copy_statement(table: Table) -> sql.Composed | None:
    """Return the COPY of rows into the table, None if PostgreSQL has to compute columns."""
    if table.vector_type != "vector" or table.metadata_columns or table.tsv_column:
        return None
    columns = sql.SQL(", ").join(map(sql.Identifier, column_types(table)))
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(table.identifier, columns)


def insert_statement(table: Table, *, upsert: bool) -> sql.Composed:
    """Return the INSERT of one row; its parameters are `binary.embedded_fields`.

    Args:
        table: The table to write to.
        upsert: Whether a row of the same id gets the new values.
    """
    types = column_types(table)
    values = sql.SQL(", ").join(
        sql.SQL("%b::{}").format(_type(table, kind)) for kind in types.values()
    )
    sources: list[sql.Composable] = [
        sql.SQL("(VALUES ({})) AS sent ({})").format(values, _names(types))
    ]
    computed: dict[str, sql.Composable] = {
        name: sql.SQL("filled.{}").format(escaped_identifier(name))
        for name in table.metadata_columns
    }
    if table.metadata_columns:
        sources.append(_filled(table))
    if table.tsv_column:
        text = sql.SQL("sent.{}").format(escaped_identifier(table.layout.content))
        computed[table.tsv_column] = text_search_vector(table.tsv_config, text)
    statement = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
        table.escaped_identifier,
        _names([*types, *computed]),
        sql.SQL(", ").join([sql.SQL("sent.*"), *computed.values()]),
        sql.SQL(", ").join(sources),
    )
    if not upsert:
        return statement
    columns = [escaped_identifier(name) for name in [*types, *computed] if name != table.layout.id]
    return sql.SQL(" ").join([statement, on_conflict(escaped_identifier(table.layout.id), columns)])


def on_conflict(id_column: sql.Identifier, columns: Iterable[sql.Identifier]) -> sql.Composed:
    """Return the clause that gives a row of the same id the new values of these columns."""
    return sql.SQL("ON CONFLICT ({}) DO UPDATE SET {}").format(
        id_column,
        sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(each) for each in columns),
    )


def update_statement(table: Table) -> sql.Composed:
    """Return the UPDATE of one row's metadata and place: seq (our own layout), metadata, id.

    If the table has metadata columns, a JSON object of their values precedes the id.
    """
    layout = table.layout
    assigned = [sql.SQL("seq = %b::int4").format()] if layout.name == "own" else []
    metadata_type = sql.SQL(table.metadata_type)
    assigned.append(
        sql.SQL("{} = %b::{}").format(escaped_identifier(layout.metadata), metadata_type)
    )
    source = sql.SQL("")
    for name in table.metadata_columns:
        assigned.append(sql.SQL("{0} = filled.{0}").format(escaped_identifier(name)))
    if table.metadata_columns:
        source = sql.SQL(" FROM {}").format(_filled(table))
    return sql.SQL("UPDATE {} AS t SET {}{} WHERE t.{} = %b::{}").format(
        table.escaped_identifier,
        sql.SQL(", ").join(assigned),
        source,
        escaped_identifier(layout.id),
        sql.SQL(layout.id_type),  # pyright: ignore[reportArgumentType]
    )


def delete_statement(table: Table) -> sql.Composed:
    """Return the DELETE of rows by an array of their ids."""
    return sql.SQL("DELETE FROM {} WHERE {} = ANY(%b)").format(
        table.escaped_identifier, escaped_identifier(table.layout.id)
    )


def text_search_vector(config: str | None, text: sql.Composable) -> sql.Composed:
    """Return the expression of a text's `tsvector`; None means the database's configuration."""
    if config is None:
        return sql.SQL("to_tsvector({})").format(text)
    return sql.SQL("to_tsvector({}::regconfig, {})").format(sql.Literal(config), text)


def _filled(table: Table) -> sql.Composed:
    # Converts each JSON value to the type of its column, arrays included.
    return sql.SQL("json_populate_record(NULL::{}, %b::json) AS filled").format(
        table.escaped_identifier
    )


def _type(table: Table, kind: str) -> sql.Composable:
    return sql.Identifier(table.vector_schema, "vector") if kind == "vector" else sql.SQL(kind)  # pyright: ignore[reportArgumentType]


def _names(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(escaped_identifier, names))
