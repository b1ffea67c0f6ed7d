"""Write rows through an SQLAlchemy connection, whatever its driver, in PostgreSQL's binary formats.

All drivers can pass on the bytes of a binary COPY. psycopg2 has no binary parameters, and asyncpg
would need a codec for vectors that other users of the same connection would notice. So rows are
copied to a temporary table and merged from there, in the caller's transaction.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from psycopg import sql

from qwen3_triton_client import Vector

from ..errors import TableError
from .binary import copy_stream, pack_vector
from .chunks import on_conflict, text_search_vector

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

_BATCH_ROWS = 1000  # about 5 MB, which fit into the default `temp_buffers` of 8 MB
_STAGE = "qwen3_staged_rows"
_STAGE_COLUMNS = ("id", "content", "metadata", "columns", "embedding")
_ENCODINGS = "SELECT current_setting('client_encoding'), current_setting('server_encoding')"
_UTF8 = "UTF8"
_LITERALLY = {"no_parameters": True}  # a percent sign in a name is not a placeholder


@dataclass(frozen=True, slots=True)
class StagedRow:
    """One row to write.

    Attributes:
        metadata: JSON text.
        columns: JSON object of the values of the metadata columns.
    """

    id: str
    content: str = field(repr=False)
    vector: Vector = field(repr=False)
    metadata: str | None = field(repr=False)
    columns: str | None = field(default=None, repr=False)

    def without_escapes(self) -> StagedRow:
        """Return the row with characters in JSON as they are, not as escapes such as `\\u00e9`.

        PostgreSQL converts an escape to `jsonb` only in a database of an encoding that it knows.
        """

        def plain(document: str | None) -> str | None:
            if document is None or "\\u" not in document:
                return document
            return json.dumps(json.loads(document), ensure_ascii=False)

        return replace(self, metadata=plain(self.metadata), columns=plain(self.columns))

    def packed(self) -> list[bytes | None]:
        texts = (self.id, self.content, self.metadata, self.columns)
        encoded = [None if text is None else text.encode() for text in texts]
        return [*encoded, pack_vector(self.vector)]


@dataclass(frozen=True, slots=True)
class StagedTable:
    """A table, and those of its columns that are written.

    Attributes:
        types: By column, its type as SQL and the schema of the type.
    """

    schema: str
    name: str
    id: str
    content: str
    embedding: str
    metadata: str | None
    types: Mapping[str, tuple[str, str]]
    metadata_columns: tuple[str, ...] = ()
    tsv_column: str | None = None
    tsv_config: str | None = None

    def create_stage(self) -> str:
        vector_schema = self.types[self.embedding][1]
        return _text(
            "CREATE TEMPORARY TABLE {} (id text, content text, metadata text, columns text, "
            "embedding {}) ON COMMIT DROP",
            sql.Identifier(_STAGE),
            sql.Identifier(vector_schema, "vector"),
        )

    def merge_stage(self) -> str:
        """Return the statement that moves the staged rows, replacing rows of the same ids."""
        values: dict[str, sql.Composable] = {
            self.id: self._cast("id", self.id),
            self.content: self._cast("content", self.content),
            self.embedding: self._cast("embedding", self.embedding),
        }
        if self.metadata is not None:
            values[self.metadata] = self._cast("metadata", self.metadata)
        for name in self.metadata_columns:
            values[name] = sql.SQL("filled.{}").format(sql.Identifier(name))
        if self.tsv_column:
            text = sql.SQL("staged.content")
            values[self.tsv_column] = text_search_vector(self.tsv_config, text)
        table = sql.Identifier(self.schema, self.name)
        # Converts each JSON value to the type of its column, arrays included.
        filled = ", json_populate_record(NULL::{}, staged.columns::json) AS filled"
        columns = [sql.Identifier(name) for name in values]
        return _text(
            "INSERT INTO {} ({}) SELECT {} FROM {} AS staged{} {}",
            table,
            sql.SQL(", ").join(columns),
            sql.SQL(", ").join(values.values()),
            sql.Identifier("pg_temp", _STAGE),
            sql.SQL(filled).format(table) if self.metadata_columns else sql.SQL(""),
            on_conflict(columns[0], columns[1:]),
        )

    def _cast(self, staged: str, column: str) -> sql.Composed:
        kind: Any = self.types[column][0]  # as PostgreSQL itself writes the type
        return sql.SQL("staged.{}::{}").format(sql.Identifier(staged), sql.SQL(kind))


def write_rows(connection: Connection, table: StagedTable, rows: Iterable[StagedRow]) -> None:
    """Write rows, replacing those of the same ids; if rows share an id, the last one wins.

    Args:
        connection: In whose transaction it happens; with psycopg2 or psycopg.
        table: The table to write to.
        rows: What to write.
    """
    driver = connection.connection.driver_connection
    client, server = connection.exec_driver_sql(_ENCODINGS).one()
    connection.exec_driver_sql(table.create_stage(), execution_options=_LITERALLY)
    for number, batch in enumerate(_batches(rows, server)):
        if number:
            connection.exec_driver_sql(_empty_stage())
        connection.exec_driver_sql(_set_encoding(_UTF8))
        _copy(driver, copy_stream(batch))
        connection.exec_driver_sql(_set_encoding(client))
        connection.exec_driver_sql(table.merge_stage(), execution_options=_LITERALLY)


async def write_rows_async(
    connection: AsyncConnection, table: StagedTable, rows: Iterable[StagedRow]
) -> None:
    """Write rows as `write_rows` does, with asyncpg or psycopg."""
    driver = (await connection.get_raw_connection()).driver_connection
    client, server = (await connection.exec_driver_sql(_ENCODINGS)).one()
    await connection.exec_driver_sql(table.create_stage(), execution_options=_LITERALLY)
    for number, batch in enumerate(_batches(rows, server)):
        if number:
            await connection.exec_driver_sql(_empty_stage())
        await connection.exec_driver_sql(_set_encoding(_UTF8))
        await _copy_async(driver, copy_stream(batch))
        await connection.exec_driver_sql(_set_encoding(client))
        await connection.exec_driver_sql(table.merge_stage(), execution_options=_LITERALLY)


def is_autocommit(pooled: Any) -> bool:
    """Return whether a pooled connection commits each statement, which drops what was staged."""
    return bool(getattr(pooled.dbapi_connection, "autocommit", False))


def _set_encoding(name: str) -> str:
    # Until the end of the transaction: what is copied is UTF-8, whatever the client's encoding is.
    return f"SET LOCAL client_encoding TO '{name}'"


def _batches(rows: Iterable[StagedRow], server: str) -> Iterator[list[Sequence[bytes | None]]]:
    # One INSERT cannot write a row twice.
    last = {row.id: row if server == _UTF8 else row.without_escapes() for row in rows}
    ordered = list(last.values())
    for start in range(0, len(ordered), _BATCH_ROWS):
        yield [row.packed() for row in ordered[start : start + _BATCH_ROWS]]


def _copy(driver: Any, blocks: Iterator[bytes]) -> None:
    kind = _driver_name(driver)
    with driver.cursor() as cursor:
        if kind == "psycopg2":
            cursor.copy_expert(_copy_statement(), io.BytesIO(b"".join(blocks)))
        elif kind == "psycopg":
            with cursor.copy(_copy_statement()) as copy:
                for block in blocks:
                    copy.write(block)
        else:
            raise TableError(_unknown_driver(kind, "psycopg2 or psycopg"))


async def _copy_async(driver: Any, blocks: Iterator[bytes]) -> None:
    kind = _driver_name(driver)
    if kind == "asyncpg":
        # This takes a table and not a statement: asyncpg writes the COPY itself.
        await driver.copy_to_table(
            _STAGE,
            source=_asynchronous(blocks),
            schema_name="pg_temp",
            columns=_STAGE_COLUMNS,
            format="binary",
        )
    elif kind == "psycopg":
        async with driver.cursor() as cursor, cursor.copy(_copy_statement()) as copy:
            for block in blocks:
                await copy.write(block)
    else:
        raise TableError(_unknown_driver(kind, "asyncpg or psycopg"))


async def _asynchronous(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block


def _copy_statement() -> str:
    columns = sql.SQL(", ").join(map(sql.Identifier, _STAGE_COLUMNS))
    stage = sql.Identifier("pg_temp", _STAGE)
    return _text("COPY {} ({}) FROM STDIN (FORMAT binary)", stage, columns)


def _empty_stage() -> str:
    return _text("TRUNCATE {}", sql.Identifier("pg_temp", _STAGE))


def _driver_name(driver: Any) -> str:
    return type(driver).__module__.partition(".")[0]


def _unknown_driver(kind: str, allowed: str) -> str:
    return f"The engine's driver is {kind}, which cannot copy rows here. Connect with {allowed}."


def _text(template: Any, *parts: sql.Composable) -> str:
    return sql.SQL(template).format(*parts).as_string(None)
