"""What a table consists of beside its rows: all that its successor must have too."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import LiteralString, cast

from psycopg import sql

from ..database import Connection
from ..errors import TableError
from ..index.plan import BuildStatement
from ..layouts import Table
from ..tables.catalog import current_user

__all__ = ["Anatomy", "OldIndex", "check_movable", "examine"]

MAX_INDEXED_DIMENSIONS = {"vector": 2000, "halfvec": 4000, "bit": 64000}
_SIZED_TYPE = r"\b(vector|halfvec|bit)\({}\)"


@dataclass(frozen=True, slots=True)
class OldIndex:
    """Describe an index, or the constraint that it serves."""

    name: str
    statement: BuildStatement
    constraint: str | None
    """The constraint's definition, such as `UNIQUE (node_id)`."""
    is_primary: bool
    is_vector: bool


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Describe a table in PostgreSQL."""

    oid: int
    key: str
    """The column of the primary key."""
    key_type: str
    columns: tuple[tuple[str, str, bool], ...]
    """Name, type, and whether it is computed; in their order."""
    indexes: tuple[OldIndex, ...]
    size_bytes: int
    """Of the table and its indexes."""


def examine(connection: Connection, table: Table, dimensions: int) -> Anatomy:
    """Describe a table whose vectors are to have so many dimensions.

    Raises:
        TableError: It has no primary key of one column, or the new vectors are too long for one
            of its indexes.
    """
    row = connection.execute(
        "SELECT c.oid::bigint, pg_total_relation_size(c.oid) FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        (table.schema, table.name),
    ).fetchone()
    if row is None:
        raise TableError(f"the table {table} is gone")
    oid, size = row
    columns = connection.execute(_COLUMNS, (oid,)).fetchall()
    key, key_type = _key(connection, table, oid)
    return Anatomy(
        oid,
        key,
        key_type,
        tuple((name, kind, computed) for name, kind, computed in columns),
        tuple(_old_index(table, each, dimensions) for each in connection.execute(_INDEXES, (oid,))),
        size,
    )


def check_movable(connection: Connection, table: Table, anatomy: Anatomy) -> None:
    """See that nothing would be lost by replacing the table.

    Raises:
        TableError: Something depends on the table that cannot be carried over, or this user does
            not own it.
    """
    row = connection.execute(_OWNED, (anatomy.oid,)).fetchone()
    if row is not None and not row[0]:
        user = current_user(connection)
        msg = f"{table} belongs to `{row[1]}`, and only its owner can replace it, not `{user}`"
        raise TableError(msg)
    obstacles = [each[0] for each in connection.execute(_OBSTACLES, {"oid": anatomy.oid})]
    if obstacles:
        named = "; ".join(obstacles)
        msg = (
            f"{table} cannot be replaced by a new table, for this depends on it: {named}. Drop "
            "these (keep their definitions: pg_dump --schema-only), re-embed, and create them anew"
        )
        raise TableError(msg)


def _key(connection: Connection, table: Table, oid: int) -> tuple[str, str]:
    rows = connection.execute(_PRIMARY_KEY, (oid,)).fetchall()
    if len(rows) != 1:
        found = f"one of {len(rows)} columns" if rows else "none"
        msg = (
            f"{table} needs a primary key of one column to be re-embedded in parts, and has "
            f"{found}. Where `{table.layout.id}` is unique: ALTER TABLE {table} "
            f"ADD PRIMARY KEY ({table.layout.id})"
        )
        raise TableError(msg)
    return rows[0]


def _old_index(table: Table, row: tuple[object, ...], dimensions: int) -> OldIndex:
    name, method, unique, primary, constraint, prefix, definition, opclass, options = row
    text = str(definition).removeprefix(str(prefix))
    is_vector = str(method) in {"hnsw", "ivfflat"}
    if is_vector:
        kind = str(opclass).partition("_")[0]
        _check_length(table, str(name), kind, dimensions)
        text = re.sub(_SIZED_TYPE.format(table.dimensions), rf"\1({dimensions})", text)
    statement = BuildStatement(
        str(name),
        sql.SQL(cast("LiteralString", text)),
        method=str(method),
        unique=bool(unique),
        bytes_per_dimension=2 if str(opclass).startswith("halfvec") else 4,
        m=_option(cast("list[str]", options), "m", 16),
    )
    text_of_constraint = None if constraint is None else str(constraint)
    return OldIndex(str(name), statement, text_of_constraint, bool(primary), is_vector)


def _check_length(table: Table, name: str, kind: str, dimensions: int) -> None:
    limit = MAX_INDEXED_DIMENSIONS.get(kind)
    if limit is not None and dimensions > limit:
        msg = (
            f"the index {name} of {table} holds `{kind}`, of at most {limit} dimensions, and the "
            f"gateway's vectors have {dimensions}. Drop it first, and build one of `halfvec` "
            f"after, or ask for fewer `--dimensions`"
        )
        raise TableError(msg)


def _option(options: list[str], name: str, default: int) -> int:
    values = [option.partition("=")[2] for option in options if option.startswith(f"{name}=")]
    return int(values[0]) if values else default


_COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), attgenerated <> ''
FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""

_PRIMARY_KEY = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) k (attnum)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = %s AND i.indisprimary
"""

# `prefix` is what stands in a definition before its tail, quoted by the server as it quotes there.
_INDEXES = """
SELECT c.relname, am.amname, i.indisunique, i.indisprimary, pg_get_constraintdef(k.oid),
    format('CREATE %%sINDEX %%I ON %%I.%%I USING ', CASE WHEN i.indisunique THEN 'UNIQUE ' END,
        c.relname, n.nspname, t.relname),
    pg_get_indexdef(i.indexrelid), o.opcname, coalesce(c.reloptions, '{}')
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_am am ON am.oid = c.relam
JOIN pg_opclass o ON o.oid = i.indclass[0]
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
    AND k.conrelid = i.indrelid
WHERE i.indrelid = %s AND i.indisvalid
ORDER BY i.indisprimary DESC, c.oid
"""

_OWNED = "SELECT pg_has_role(relowner, 'USAGE'), relowner::regrole FROM pg_class WHERE oid = %s"

# What depends on the table and is no part of it, and what it is a part of.
_OBSTACLES = """
SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_depend d
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s AND d.deptype = 'n'
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE oid = d.objid AND conrelid = %(oid)s)
    AND NOT EXISTS (SELECT FROM pg_trigger WHERE oid = d.objid AND tgrelid = %(oid)s)
    AND NOT EXISTS (SELECT FROM pg_policy WHERE oid = d.objid AND polrelid = %(oid)s)
    AND NOT EXISTS (SELECT FROM pg_attrdef WHERE oid = d.objid AND adrelid = %(oid)s)
    AND NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = d.objid AND indrelid = %(oid)s)
    AND NOT EXISTS (SELECT FROM pg_statistic_ext WHERE oid = d.objid AND stxrelid = %(oid)s)
UNION SELECT 'foreign key ' || conname || ' of ' || conrelid::regclass
FROM pg_constraint WHERE confrelid = %(oid)s AND conrelid <> %(oid)s AND contype = 'f'
UNION SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_depend d JOIN pg_type t ON t.oid = d.refobjid AND t.typrelid = %(oid)s
WHERE d.refclassid = 'pg_type'::regclass AND d.deptype = 'n'
UNION SELECT 'rule ' || rulename FROM pg_rules
WHERE (quote_ident(schemaname) || '.' || quote_ident(tablename))::regclass = %(oid)s::regclass
UNION SELECT 'publication ' || p.pubname
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = %(oid)s
UNION SELECT 'being a part of ' || inhparent::regclass FROM pg_inherits WHERE inhrelid = %(oid)s
UNION SELECT 'its own partitions' FROM pg_class WHERE oid = %(oid)s AND relkind = 'p'
UNION SELECT 'being of the type ' || reloftype::regtype
FROM pg_class WHERE oid = %(oid)s AND reloftype <> 0
UNION SELECT 'replica identity by an index'
FROM pg_class WHERE oid = %(oid)s AND relreplident = 'i'
ORDER BY 1
"""
