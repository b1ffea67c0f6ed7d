"""The table to be replaced: its key, columns and indexes, and what forbids replacing it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, LiteralString, cast

from psycopg import sql

from .. import queries
from ..database import Connection
from ..errors import TableError
from ..index.plan import BuildStatement
from ..layouts import Table
from ..tables.catalog import Relation, columns_of, current_user
from .state import TRIGGERS

MAX_INDEXED_DIMENSIONS = {"vector": 2000, "halfvec": 4000, "bit": 64000}
_SIZED_TYPE = r"\b(vector|halfvec|bit)\({}\)"


@dataclass(frozen=True, slots=True)
class OldIndex:
    """An index of the old table.

    Attributes:
        constraint: Definition of the constraint that it serves, such as `UNIQUE (node_id)`.
    """

    name: str
    statement: BuildStatement
    constraint: str | None
    is_primary: bool
    is_vector: bool


@dataclass(frozen=True, slots=True)
class OldTable:
    """A table as PostgreSQL knows it.

    Attributes:
        key: Column of the primary key.
        key_type: Its type as PostgreSQL writes it.
        copied_columns: All columns but the embedding and the generated ones.
        size_bytes: Of the table and its indexes.
    """

    oid: int
    key: str
    key_type: sql.SQL
    copied_columns: tuple[str, ...]
    indexes: tuple[OldIndex, ...]
    size_bytes: int


def examine(connection: Connection, table: Table, dimensions: int) -> OldTable:
    """Describe a table, and check that one with vectors of `dimensions` can replace it.

    Raises:
        TableError: This user does not own it, it has something that a new table would not have or
            no primary key of one column, or one of its indexes cannot hold such vectors.
    """
    row = connection.execute(
        "SELECT c.oid::bigint, pg_total_relation_size(c.oid), pg_has_role(c.relowner, 'USAGE'), "
        "c.relowner::regrole FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s",
        (table.schema, table.name),
    ).fetchone()
    if row is None:
        raise TableError(f"The table {table} no longer exists.")
    oid, size_bytes, is_owner, owner = row
    if not is_owner:
        user = current_user(connection)
        msg = f"{table} belongs to `{owner}`, and only its owner can replace it, not `{user}`."
        raise TableError(msg)
    _check_obstacles(connection, table, oid)
    key, key_type = _key(connection, table, oid)
    columns = columns_of(connection, Relation(oid, table.schema, table.name, "r")).values()
    indexes = connection.execute(queries.INDEX_DEFINITIONS, (oid,))
    return OldTable(
        oid,
        key,
        _server_text(key_type),
        tuple(
            column.name
            for column in columns
            if not column.is_generated and column.name != table.layout.embedding
        ),
        tuple(_old_index(table, index, dimensions) for index in indexes),
        size_bytes,
    )


def _check_obstacles(connection: Connection, table: Table, oid: int) -> None:
    found = connection.execute(queries.OBSTACLES, {"oid": oid, "own_triggers": list(TRIGGERS)})
    if obstacles := "; ".join(row[0] for row in found):
        msg = (
            f"{table} cannot be re-embedded, because replacing it would lose: {obstacles}. Save "
            "the definitions (pg_dump --schema-only), drop them, re-embed, and create them again; "
            "or load the sources into a new `--table`."
        )
        raise TableError(msg)


def _key(connection: Connection, table: Table, oid: int) -> tuple[str, str]:
    rows = connection.execute(queries.PRIMARY_KEY, (oid,)).fetchall()
    if len(rows) != 1:
        found = f"one of {len(rows)} columns" if rows else "none"
        msg = (
            f"{table} needs a primary key of one column to be re-embedded in parts, and has "
            f"{found}. If `{table.layout.id}` is unique, run: ALTER TABLE {table} "
            f"ADD PRIMARY KEY ({table.layout.id})"
        )
        raise TableError(msg)
    return rows[0]


def _old_index(table: Table, row: tuple[Any, ...], dimensions: int) -> OldIndex:
    name, method, prefix, definition, is_unique, is_primary, constraint, opclass, options = row
    tail = definition.removeprefix(prefix)
    is_vector = method in {"hnsw", "ivfflat"}
    if is_vector:
        _check_length(table, name, opclass.partition("_")[0], dimensions)
        tail = re.sub(_SIZED_TYPE.format(table.dimensions), rf"\1({dimensions})", tail)
    statement = BuildStatement(
        name,
        _server_text(tail),
        method=method,
        unique=is_unique,
        bytes_per_dimension=2 if opclass.startswith("halfvec") else 4,
        m=next((int(option[2:]) for option in options if option.startswith("m=")), 16),
    )
    return OldIndex(name, statement, constraint, is_primary, is_vector)


def _check_length(table: Table, name: str, kind: str, dimensions: int) -> None:
    limit = MAX_INDEXED_DIMENSIONS.get(kind)
    if limit is not None and dimensions > limit:
        msg = (
            f"The index {name} of {table} holds `{kind}` values of at most {limit} dimensions, and "
            f"the gateway's vectors have {dimensions}. Drop the index and create one on `halfvec` "
            "afterwards, or ask for fewer `--dimensions`."
        )
        raise TableError(msg)


def _server_text(text: str) -> sql.SQL:
    return sql.SQL(cast("LiteralString", text))  # written and quoted by the server
