"""Making and dropping text indexes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import psycopg
from psycopg import sql

from ..database import Connection, explain
from ..errors import TableError
from ..layouts import Table, fit_name
from .text_backends import (
    EXTENSIONS,
    TextBackend,
    TextBackendChoice,
    key_column,
    tsvector_expression,
)
from .text_catalog import DEFAULT_CONFIG, TextIndex, find_text_indexes, tsvector_columns

__all__ = ["create_text_index", "drop_text_indexes", "text_index_statement"]

# Whose names ParadeDB's stemmers share with PostgreSQL's text search configurations.
PARADEDB_STEMMERS = {
    *("arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek"),
    *("hungarian", "italian", "norwegian", "portuguese", "romanian", "russian", "spanish"),
    *("swedish", "tamil", "turkish"),
}
_RENAMED, _KEYLESS = (0, 25), (0, 26)  # releases of pg_search that changed the statement


def create_text_index(
    connection: Connection,
    table: Table,
    backend: TextBackendChoice = "auto",
    config: str = DEFAULT_CONFIG,
) -> TextIndex:
    """Make a text index unless the back-end has one on the table, whatever that one's options.

    Make it after a load: that is faster. To change an index, drop it first. PostgreSQL's own needs
    the words of every text found again to rank it, so on large tables prefer BM25, or give the
    table a generated column of type `tsvector`, which is then indexed and searched.

    Args:
        connection: All happens in its transaction, or in one of its own.
        table: What to index.
        backend: For which back-end; `auto` takes the one whose extension is installed.
        config: Text search configuration; for ParadeDB the language of its stemmer, if any.

    Raises:
        TableError: The extension is missing, the configuration unknown, or the table not yours.
    """
    versions = _extension_versions(connection)
    chosen: TextBackend = _preferred(versions) if backend == "auto" else backend
    extension = EXTENSIONS.get(chosen)
    if extension is not None and extension not in versions:
        msg = (
            f"the text index of {chosen} needs the extension {extension}; run as a superuser: "
            f"CREATE EXTENSION {extension}; or choose tsvector"
        )
        raise TableError(msg)
    existing = _of_backend(connection, table, chosen)
    if existing is not None:
        return existing
    columns = tsvector_columns(connection, table)
    statement = text_index_statement(
        table,
        chosen,
        config,
        version=versions.get(extension or "", ""),
        tsvector_column=next(iter(columns), None),
    )
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.errors.DatabaseError as error:
        msg = f"the text index of {chosen} on {table} cannot be made: {explain(error)}"
        raise TableError(msg) from None
    made = _of_backend(connection, table, chosen)
    assert made is not None
    return made


def drop_text_indexes(
    connection: Connection, table: Table, backend: TextBackendChoice = "auto"
) -> list[TextIndex]:
    """Drop the text indexes of a back-end, or of all (`auto`), and return them."""
    found = find_text_indexes(connection, table)
    dropped = [index for index in found if backend in ("auto", index.backend)]
    for index in dropped:
        connection.execute(sql.SQL("DROP INDEX {}").format(index.identifier))
    return dropped


def text_index_statement(
    table: Table,
    backend: TextBackend,
    config: str = DEFAULT_CONFIG,
    *,
    version: str = "",
    tsvector_column: str | None = None,
) -> sql.Composed:
    """Return the statement that makes a text index.

    Args:
        table: What to index.
        backend: For which back-end.
        config: Text search configuration.
        version: Of pg_search, whose statement changed in 0.25 and 0.26.
        tsvector_column: To index in place of the content.
    """
    content = sql.Identifier(table.layout.content)
    if backend == "tsvector":
        expression = tsvector_expression(table, config)
        key = sql.Identifier(tsvector_column) if tsvector_column else expression
        tail, suffix = sql.SQL("gin ({})").format(key), "_words"
    elif backend == "pg_textsearch":
        template = sql.SQL("bm25 ({}) WITH (text_config = {})")
        tail, suffix = template.format(content, sql.Literal(config)), "_bm25"
    else:
        tail, suffix = _paradedb_tail(table, content, config, _numbers(version)), "_bm25"
    name = sql.Identifier(fit_name(table.name, suffix))
    return sql.SQL("CREATE INDEX {} ON {} USING {}").format(name, table.identifier, tail)


def _paradedb_tail(
    table: Table, content: sql.Identifier, config: str, version: tuple[int, ...]
) -> sql.Composed:
    field: sql.Composable = content
    if config in PARADEDB_STEMMERS:
        tokenizer = sql.SQL("({}::pdb.simple({}))")
        field = tokenizer.format(content, sql.Literal(f"stemmer={config}"))
    key = key_column(table)
    keyed = sql.SQL(" WITH (key_field = {})").format(sql.Literal(key))
    return sql.SQL("{} ({}, {}){}").format(
        sql.SQL("bm25" if version < _RENAMED else "paradedb"),
        sql.Identifier(key),
        field,
        keyed if version < _KEYLESS else sql.SQL(""),
    )


def _of_backend(connection: Connection, table: Table, backend: TextBackend) -> TextIndex | None:
    found = find_text_indexes(connection, table)
    return next((index for index in found if index.backend == backend), None)


def _preferred(versions: Mapping[str, str]) -> TextBackend:
    for backend, extension in EXTENSIONS.items():
        if extension in versions:
            return backend
    return "tsvector"


def _extension_versions(connection: Connection) -> dict[str, str]:
    rows = connection.execute("SELECT extname::text, extversion FROM pg_extension").fetchall()
    return dict(rows)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
