"""What PostgreSQL's catalog says of the tables, rights and extensions that matter here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from ..database import Connection
from ..errors import TableError
from ..layouts import MAX_NAME_BYTES

__all__ = [
    "Column",
    "Relation",
    "columns_of",
    "current_user",
    "find_relation",
    "missing_rights",
    "pgvector_version",
    "split_name",
]

_NAME_PART = r'(?:"(?:[^"]|"")+"|[^".]+)'
_NAME = re.compile(rf"(?:({_NAME_PART})\.)?({_NAME_PART})")


@dataclass(frozen=True, slots=True)
class Relation:
    """Name something in PostgreSQL that has columns."""

    oid: int
    schema: str
    name: str
    kind: str
    """`r` for a table, `p` for a partitioned one; others cannot be filled."""

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Column:
    """Describe a column."""

    name: str
    type: str
    type_schema: str
    type_modifier: int
    """Of pgvector's types the dimensions, -1 where they were left open."""
    fills_itself: bool
    """Whether a row may leave it out: nullable, or with a default or an identity."""
    generated: bool


def split_name(name: str) -> tuple[str | None, str]:
    """Divide `schema.table` or `table`; parts may be quoted as in SQL.

    Raises:
        TableError: The name cannot be read or is too long.
    """
    match = _NAME.fullmatch(name)
    if match is None or "\0" in name:
        msg = (
            f"`table` is {name!r}; write TABLE or SCHEMA.TABLE, with double quotes around a part "
            "that has a dot in it"
        )
        raise TableError(msg)
    parts = [
        part[1:-1].replace('""', '"') if part and part.startswith('"') else part
        for part in match.groups()
    ]
    for part in parts:
        if part and len(part.encode()) > MAX_NAME_BYTES:
            msg = f"`table` is {name!r}; PostgreSQL allows {MAX_NAME_BYTES} bytes for each part"
            raise TableError(msg)
    return parts[0], parts[1] or ""


def find_relation(connection: Connection, schema: str, name: str) -> Relation | None:
    """Look a table up by its exact name."""
    query = """
        SELECT c.oid::bigint, c.relkind::text
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relname = %s"""
    row = connection.execute(query, [schema, name]).fetchone()
    return None if row is None else Relation(row[0], schema, name, row[1])


def columns_of(connection: Connection, relation: Relation) -> dict[str, Column]:
    """Return the columns by name, in their order."""
    query = """
        SELECT a.attname::text, t.typname::text, n.nspname::text, a.atttypmod,
            NOT a.attnotnull OR a.atthasdef OR a.attidentity <> '', a.attgenerated <> ''
        FROM pg_attribute a
            JOIN pg_type t ON t.oid = a.atttypid
            JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attnum"""
    rows = connection.execute(query, [relation.oid])
    return {row[0]: Column(*row) for row in rows}


def missing_rights(connection: Connection, relation: Relation, rights: Sequence[str]) -> list[str]:
    """Return the GRANT statements that this user would need before using the table.

    Args:
        connection: Of the user.
        relation: The table.
        rights: Such as `SELECT`.
    """
    user = sql.Identifier(current_user(connection)).as_string(connection)
    schema = sql.Identifier(relation.schema).as_string(connection)
    table = relation.identifier.as_string(connection)
    grants: list[str] = []
    query = "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s"
    if connection.execute(query, [relation.schema]).fetchone() == (False,):
        grants.append(f"GRANT USAGE ON SCHEMA {schema} TO {user};")
    query = """
        SELECT wanted FROM unnest(%s::text[]) AS wanted
        WHERE NOT has_table_privilege(%s::oid, wanted)"""
    missing = [row[0] for row in connection.execute(query, [list(rights), relation.oid])]
    if missing:
        grants.append(f"GRANT {', '.join(missing)} ON {table} TO {user};")
    if "INSERT" in rights:
        # Those that defaults of its columns draw from; identities need no right.
        query = """
            SELECT s.relname::text FROM pg_depend d JOIN pg_class s ON s.oid = d.objid
            WHERE d.classid = 'pg_class'::regclass AND d.refobjid = %s AND d.deptype = 'a'
                AND CASE s.relkind  -- in this order, for the function fails for anything else
                    WHEN 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE') ELSE false END"""
        for row in connection.execute(query, [relation.oid]):
            sequence = sql.Identifier(relation.schema, row[0]).as_string(connection)
            grants.append(f"GRANT USAGE ON SEQUENCE {sequence} TO {user};")
    return grants


def current_user(connection: Connection) -> str:
    """Return who the connection acts as."""
    row = connection.execute("SELECT current_user").fetchone()
    return row[0] if row else ""


def pgvector_version(connection: Connection) -> str | None:
    """Return the version of the extension in this database, None where it was not created."""
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    found = row.fetchone()
    return found[0] if found else None
