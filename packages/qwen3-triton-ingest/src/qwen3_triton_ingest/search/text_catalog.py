"""Which text indexes a table has, and which back-end serves it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from ..config import IndexOptions
from ..database import Connection
from ..errors import TableError
from ..layouts import Table
from .filters import ROW
from .text_backends import EXTENSIONS, TextAccess, TextBackend, TextBackendChoice

__all__ = [
    "DEFAULT_CONFIG",
    "TextIndex",
    "detect_text_backend",
    "find_text_access",
    "find_text_indexes",
    "tsvector_columns",
]

DEFAULT_CONFIG = IndexOptions().text_search_config

_FIND = """
SELECT c.relname::text, a.amname::text, e.extname::text, coalesce(c.reloptions, '{}'),
    ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, true) FROM generate_series(1, i.indnatts) n)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace s ON s.oid = t.relnamespace
LEFT JOIN pg_depend d
    ON d.classid = 'pg_am'::regclass AND d.objid = a.oid AND d.deptype = 'e'
LEFT JOIN pg_extension e ON e.oid = d.refobjid
WHERE s.nspname = %s AND t.relname = %s AND i.indisvalid AND i.indpred IS NULL
    AND (a.amname = 'gin' OR e.extname IN ('pg_search', 'pg_textsearch'))
ORDER BY c.oid"""
# Columns of type tsvector, with the expression that fills them if PostgreSQL does.
_FIND_COLUMNS = """
SELECT a.attname::text, pg_get_expr(d.adbin, d.adrelid)
FROM pg_attribute a
JOIN pg_class t ON t.oid = a.attrelid
JOIN pg_namespace s ON s.oid = t.relnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum AND a.attgenerated <> ''
WHERE s.nspname = %s AND t.relname = %s AND a.atttypid = 'tsvector'::regtype
    AND NOT a.attisdropped
ORDER BY a.attnum"""
_CONFIG = re.compile(r"to_tsvector\('((?:[^']|'')+)'::regconfig, (.+)\)")


@dataclass(frozen=True, slots=True)
class TextIndex:
    """Describe an index that texts are found by."""

    schema: str
    name: str
    backend: TextBackend
    config: str | None
    """Text search configuration; None where the index does not say."""
    keys: tuple[str, ...]
    """Columns and expressions, as PostgreSQL writes them."""
    key_field: str | None = None
    """Of ParadeDB's index: the column that it knows rows by."""

    @property
    def identifier(self) -> sql.Identifier:
        """Return the quoted, qualified name."""
        return sql.Identifier(self.schema, self.name)


def find_text_indexes(connection: Connection, table: Table) -> list[TextIndex]:
    """Return the valid text indexes on the table's content, oldest first."""
    columns = tsvector_columns(connection, table)
    rows = connection.execute(_FIND, (table.schema, table.name)).fetchall()
    found = (_read(table, columns, row) for row in rows)
    return [index for index in found if index is not None]


def detect_text_backend(connection: Connection, table: Table) -> TextBackend:
    """Return the back-end that serves the table best: BM25 where there is an index for it."""
    return _best(find_text_indexes(connection, table))


def find_text_access(
    connection: Connection,
    table: Table,
    backend: TextBackendChoice = "auto",
    config: str | None = None,
) -> TextAccess:
    """Return how the table's texts are found by words.

    Args:
        connection: To the database; nothing is changed.
        table: Where.
        backend: By which back-end; `auto` takes the best that there is an index for.
        config: Text search configuration of `tsvector`; None takes the index's, else `english`.

    Raises:
        TableError: The back-end has no index on the table, and cannot do without.
    """
    indexes = find_text_indexes(connection, table)
    if backend == "auto":
        backend = _best(indexes)
    fitting = [index for index in indexes if index.backend == backend]
    if backend == "tsvector":
        return _tsvector_access(connection, table, fitting, config)
    if not fitting:
        if backend == "paradedb":  # its operators say themselves what is missing
            return TextAccess(backend, "")
        msg = (
            f"{table} has no index of {backend} on {table.layout.content}; make one with "
            f"`create_text_index` or `load --text-index {backend}`, or search with "
            "`text_backend` tsvector"
        )
        raise TableError(msg)
    index = fitting[0]
    return TextAccess(backend, index.config or "", index.identifier, key=index.key_field)


def _best(indexes: Sequence[TextIndex]) -> TextBackend:
    present = {index.backend for index in indexes}
    for backend in EXTENSIONS:  # BM25 first
        if backend in present:
            return backend
    return "tsvector"


def _tsvector_access(
    connection: Connection, table: Table, indexes: Sequence[TextIndex], config: str | None
) -> TextAccess:
    columns = tsvector_columns(connection, table)
    # An index on a column before one on an expression, whose words are found anew for each row.
    for index in sorted(indexes, key=lambda index: index.keys[0] not in columns):
        if config in (None, index.config):
            known = index.config or DEFAULT_CONFIG
            return TextAccess("tsvector", known, index.identifier, _vector(index.keys[0], columns))
    for name, known in columns.items():
        if config in (None, known):
            column = sql.Identifier(ROW, name)
            return TextAccess("tsvector", known or DEFAULT_CONFIG, None, column)
    return TextAccess("tsvector", config or DEFAULT_CONFIG)


def _vector(key: str, columns: Mapping[str, str | None]) -> sql.Composable:
    if key in columns:
        return sql.Identifier(ROW, key)
    return sql.SQL("{}").format(sql.SQL(key.replace("%", "%%").replace("{", "{{")))  # pyright: ignore[reportArgumentType] - PostgreSQL's own words


def tsvector_columns(connection: Connection, table: Table) -> dict[str, str | None]:
    """Return the columns of type `tsvector` with their configurations, None where unknown."""
    rows = connection.execute(_FIND_COLUMNS, (table.schema, table.name)).fetchall()
    columns: dict[str, str | None] = {}
    for name, expression in rows:
        match = _CONFIG.search(expression or "")
        given = table.tsv_config if name == table.tsv_column else None
        columns[name] = _config_name(match[1]) if match else _config_name(given)
    return columns


def _config_name(config: str | None) -> str | None:
    return config.removeprefix("pg_catalog.") if config else None


def _read(table: Table, columns: Mapping[str, str | None], row: Sequence[Any]) -> TextIndex | None:
    """Return what a row of the catalog describes, None if it is no index on the content."""
    name, method, extension, options, keys = row
    on_content = re.compile(rf"\b{re.escape(table.layout.content)}\b")
    given: dict[str, str] = dict(option.split("=", 1) for option in options)
    if method == "gin":
        if keys[0] in columns:
            return TextIndex(table.schema, name, "tsvector", columns[keys[0]], tuple(keys))
        match = _CONFIG.fullmatch(keys[0])
        if match is None or not on_content.search(match[2]):
            return None
        return TextIndex(table.schema, name, "tsvector", _config_name(match[1]), tuple(keys))
    if not any(on_content.search(key) for key in keys):
        return None
    if extension == "pg_textsearch":
        config = given.get("text_config")
        return TextIndex(table.schema, name, "pg_textsearch", config, tuple(keys))
    key_field = given.get("key_field", keys[0].strip('"'))
    return TextIndex(table.schema, name, "paradedb", None, tuple(keys), key_field)
