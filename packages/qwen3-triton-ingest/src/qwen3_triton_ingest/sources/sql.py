"""Rows of an SQL query, streamed from PostgreSQL."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any, cast

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.rows import dict_row

from ..config import ReadOptions
from ..database import Connection, change_settings, connect, explain, neutral_settings
from ..documents import BadRecord, Document, Origin, text_digest
from ..errors import SourceError
from .encodings import is_utf8
from .records import ID_COLUMN, RecordReader
from .shards import Shard, shown_source, source_name
from .values import as_json

_MAX_SHOWN_CHARACTERS = 200


def plan_sql(source: str, options: ReadOptions) -> Shard:
    """Return the one shard of a query.

    Raises:
        SourceError: The query is missing.
    """
    place = shown_source(source)
    if not (options.query or "").strip(" \t\r\n;"):
        msg = f"{place} needs a `query`, such as SELECT id, text FROM articles."
        raise SourceError(msg)
    key = text_digest("sql", place, options.query or "")
    return Shard(source_name(source, options), f"query on {place}", key, "sql")


def read_sql(
    shard: Shard, dsn: str, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    """Read the rows of the query one by one; the server waits while they are processed.

    Raises:
        SourceError: The server rejects the query or disconnects.
        DatabaseError: The server refuses the connection.
    """
    query = options.query or ""
    id_columns = {options.id_column or ID_COLUMN}
    path = " ".join(query.split())
    if len(path) > _MAX_SHOWN_CHARACTERS:
        path = path[:_MAX_SHOWN_CHARACTERS] + "..."
    try:
        with connect(dsn) as connection:
            connection.read_only = True
            change_settings(connection, neutral_settings(connection))
            _set_encoding(connection, options)
            _load_all_values(connection)
            cursor = connection.cursor(row_factory=dict_row)
            # A named cursor would hold thousands of rows at a time, whatever their size. A stream
            # that is left early must be closed, and so canceled, before its connection.
            stream = cast("Generator[dict[str, Any]]", cursor.stream(query.encode()))
            with closing(stream) as rows:
                for number, row in enumerate(rows, start=1):
                    record = {name: as_json(value) for name, value in row.items()}
                    for name in id_columns & row.keys():
                        if isinstance(row[name], Decimal):
                            record[name] = str(row[name])
                    yield reader.read(record, Origin(shard.source, path, number))
    except psycopg.Error as error:
        msg = f"The query on {shard.source} failed: {explain(error)}."
        if isinstance(error, psycopg.errors.CharacterNotInRepertoire):
            msg += (
                " The database has the encoding SQL_ASCII, which can be any: set the one of its "
                "texts with `--encoding`."
            )
        if error.sqlstate is None and isinstance(error, psycopg.ProgrammingError):
            msg = f"The query on {shard.source} returns no rows: `{path}`. Write a SELECT."
        raise SourceError(msg) from None


def _load_all_values(connection: Connection) -> None:
    """Have dates and times that Python cannot represent arrive as PostgreSQL's text.

    Such as `infinity`, years before 1 and after 9999, and 24:00.
    """
    for name in ("date", "time", "timetz", "timestamp", "timestamptz", "interval"):
        known = connection.adapters.get_loader(connection.adapters.types[name].oid, Format.TEXT)
        assert known is not None
        connection.adapters.register_loader(name, _or_text(known))


def _or_text(known: Callable[[int, AdaptContext | None], Any]) -> type[Loader]:
    class OrText(Loader):
        def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
            super().__init__(oid, context)
            self._known = known(oid, context)

        def load(self, data: Buffer) -> Any:
            try:
                return self._known.load(data)
            except (psycopg.DataError, ValueError, OverflowError):
                return bytes(data).decode()

    return OrText


def _set_encoding(connection: Connection, options: ReadOptions) -> None:
    """Read the texts of a database that does not know their encoding as the options say."""
    row = connection.execute("SHOW server_encoding").fetchone()
    if row == ("SQL_ASCII",) and not is_utf8(options):
        name = codecs.lookup(options.encoding).name.replace("cp125", "windows-125")
        connection.execute("SELECT set_config('client_encoding', %s, true)", (name,))
