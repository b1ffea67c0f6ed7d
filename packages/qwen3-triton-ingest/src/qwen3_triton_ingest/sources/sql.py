"""The rows of an SQL query, as they come from PostgreSQL."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from ..config import ReadOptions
from ..database import connect, explain
from ..documents import BadRecord, Document, Origin, text_digest
from ..errors import SourceError
from .finding import normalized, shown
from .plain_values import as_json
from .records import RecordReader
from .shards import Shard

__all__ = ["is_sql", "plan_sql", "read_sql", "source_name"]

TARGET_DATABASE = "sql"
_SCHEMES = ("postgresql://", "postgres://")
_MAX_SHOWN_CHARACTERS = 200


def is_sql(source: str) -> bool:
    """Tell whether a SOURCE is a database."""
    return source.startswith(_SCHEMES) or source == TARGET_DATABASE


def source_name(source: str) -> str:
    """Return the SOURCE as `Shard.source` names it: a path with `/`, a database without secrets.

    Raises:
        SourceError: A URI that libpq cannot read.
    """
    if not is_sql(source):
        return shown(normalized(source))
    if source == TARGET_DATABASE:
        return source
    try:
        known = conninfo_to_dict(source)
    except psycopg.ProgrammingError:
        msg = "the SOURCE's URI cannot be read; write postgresql://user:password@host:5432/database"
        raise SourceError(msg) from None  # libpq's message quotes the URI
    host, port = known.get("host") or "localhost", known.get("port") or 5432
    return f"postgresql://{host}:{port}/{known.get('dbname') or ''}"


def plan_sql(source: str, options: ReadOptions) -> Shard:
    """Make the one shard of a query.

    Raises:
        SourceError: There is no query.
    """
    name = source_name(source)
    if not options.query:
        msg = f"{name} needs a `query`: SELECT id, text, ... FROM ..."
        raise SourceError(msg)
    return Shard(name, f"query of {name}", text_digest("sql", name, options.query), "sql")


def read_sql(
    shard: Shard, dsn: str, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    """Read the rows of the query one by one; the server waits while they are worked on.

    Raises:
        SourceError: The server refuses the query or goes away.
        DatabaseError: The server refuses the connection.
    """
    query = options.query or ""
    path = " ".join(query.split())
    if len(path) > _MAX_SHOWN_CHARACTERS:
        path = path[:_MAX_SHOWN_CHARACTERS] + "..."
    try:
        with connect(dsn) as connection:
            connection.read_only = True
            cursor = connection.cursor(row_factory=dict_row)
            # A named cursor would hold thousands of rows, of whatever size, at a time. What is
            # left before its end must be closed, and so canceled, before the connection.
            stream = cast("Generator[dict[str, Any]]", cursor.stream(query.encode()))
            with closing(stream) as rows:
                for number, row in enumerate(rows, start=1):
                    record = {name: as_json(value) for name, value in row.items()}
                    yield reader.read(record, Origin(shard.source, path, number))
    except psycopg.Error as error:
        msg = f"the query of {shard.source} failed: {explain(error)}"
        raise SourceError(msg) from None
