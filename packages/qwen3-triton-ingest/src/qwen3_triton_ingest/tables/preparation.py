"""Find a table, check that it can be used as it is, and create it where it is missing."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from ..database import Connection
from ..errors import TableError
from ..layouts import LAYOUTS, MAX_NAME_BYTES, Layout, LayoutName, Table
from .catalog import (
    Relation,
    columns_of,
    current_user,
    find_relation,
    missing_rights,
    split_name,
)
from .ddl import check_version, create_extension, create_table, version_warning
from .shapes import detect_layout, read_shape
from .unique_ids import (
    duplicates_message,
    not_unique_message,
    unique_index_query,
    unique_index_statement,
)

__all__ = ["find_table", "prepare_table", "version_warning"]

MAX_DIMENSIONS = 16_000  # of pgvector's `vector`
_WRITING = ("SELECT", "INSERT", "UPDATE", "DELETE")
_LOCK = 0x71776E33_7461626C  # "qwn3tabl": only one process at a time creates tables


def prepare_table(connection: Connection, name: str, layout: LayoutName, dimensions: int) -> Table:
    """Return the table that rows can be written to; create it, and pgvector, if missing.

    No vector index is made here: building it after the load is several times as fast.

    Args:
        connection: All happens in its transaction, or in one of its own.
        name: `table` or `schema.table`; without a schema, the first of the `search_path`. For
            LlamaIndex the name that `PGVectorStore` is given, without `data_`.
        layout: Whose table.
        dimensions: Length of the vectors to come.

    Raises:
        TableError: The table has another shape or other dimensions, or this user may not create
            it or write to it.
    """
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        msg = f"`dimensions` is {dimensions}; allowed are 1 to {MAX_DIMENSIONS}"
        raise TableError(msg)
    schema, table_name = _resolve(connection, name, LAYOUTS[layout])
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        create_extension(connection)
        if find_relation(connection, schema, table_name) is None:
            create_table(connection, schema, table_name, LAYOUTS[layout], dimensions)
        table = find_table(connection, name, layout, rights=_WRITING)
        if table.dimensions != dimensions:
            raise TableError(_other_dimensions(table, dimensions))
        _make_ids_unique(connection, table)
    return table


def find_table(
    connection: Connection,
    name: str,
    layout: LayoutName | None = None,
    *,
    rights: Sequence[str] = ("SELECT",),
) -> Table:
    """Return the table that is there.

    Args:
        connection: To the database; nothing is changed.
        name: `table` or `schema.table`; without a schema, the first of the `search_path`. For
            LlamaIndex the name that `PGVectorStore` is given, without `data_`.
        layout: Whose table; None tells it by the columns.
        rights: What this user must be allowed to do.

    Raises:
        TableError: There is no such table, it has another shape, this user may not use it, or
            pgvector is missing or too old.
    """
    check_version(connection)
    relation = _find(connection, name, layout)
    if relation.kind not in "rp":
        msg = f"{relation} is not a table (its kind is `{relation.kind}`); name a table"
        raise TableError(msg)
    columns = columns_of(connection, relation)
    found = LAYOUTS[layout] if layout else detect_layout(relation, columns)
    grants = missing_rights(connection, relation, rights)
    if grants:
        user = current_user(connection)
        msg = f"user {user!r} may not use {relation}; its owner can run: {' '.join(grants)}"
        raise TableError(msg)
    return read_shape(relation, columns, found, writing="INSERT" in rights)


def _resolve(connection: Connection, name: str, layout: Layout) -> tuple[str, str]:
    given, table_name = split_name(name)
    # Asked for in any case: so a connection without autocommit is in its transaction from here on.
    row = connection.execute("SELECT coalesce(%s, current_schema()::text)", [given]).fetchone()
    schema: str | None = row[0] if row else None
    if schema is None:
        msg = f"`table` is {name!r}, but the search_path names no schema; write SCHEMA.{name}"
        raise TableError(msg)
    if layout.name == "llamaindex":  # as its `PGVectorStore` does
        schema, table_name = schema.lower(), f"{layout.table_prefix}{table_name.lower()}"
        if len(table_name.encode()) > MAX_NAME_BYTES:
            msg = f"`table` is {name!r}; with LlamaIndex' `data_` before it, it is too long"
            raise TableError(msg)
    return schema, table_name


def _find(connection: Connection, name: str, layout: LayoutName | None) -> Relation:
    layouts = [LAYOUTS[layout]] if layout else [LAYOUTS["own"], LAYOUTS["llamaindex"]]
    tried: list[str] = []
    for each in layouts:
        schema, table_name = _resolve(connection, name, each)
        relation = find_relation(connection, schema, table_name)
        if relation is not None:
            return relation
        tried.append(f"{schema}.{table_name}")
    msg = (
        f"there is no table {' or '.join(tried)}; check `table`, the database of the DSN and the "
        "search_path, or load into it first"
    )
    raise TableError(msg)


def _make_ids_unique(connection: Connection, table: Table) -> None:
    """Make sure that a row can be found again by its id; LlamaIndex' tables do not say so."""
    names = table.schema, table.name, table.layout.id
    if connection.execute(unique_index_query(*names)).fetchone():
        return
    try:
        with connection.transaction():
            connection.execute(unique_index_statement(*names))
    except psycopg.errors.UniqueViolation:
        newest = "id" if table.layout.name == "llamaindex" else "ctid"
        raise TableError(duplicates_message(*names, newest=newest)) from None
    except psycopg.errors.InsufficientPrivilege:
        raise TableError(not_unique_message(*names)) from None


def _other_dimensions(table: Table, dimensions: int) -> str:
    return (
        f"`dimensions` is {dimensions}, but {table} holds vectors of {table.dimensions}: name "
        f"another table with --table, ask the gateway for --dimensions {table.dimensions}, or "
        "move the table to the new vectors with --reembed"
    )
