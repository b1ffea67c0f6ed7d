"""What PostgreSQL's catalog knows of a table, and whose layout its columns have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from psycopg import sql

from ..database import Connection
from ..errors import TableError
from ..layouts import (
    LANGCHAIN,
    LAYOUTS,
    LLAMAINDEX,
    MAX_NAME_BYTES,
    JsonType,
    Layout,
    Table,
    VectorType,
)

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


_TEXT, _JSON = ("text", "varchar"), ("json", "jsonb")
_VECTOR = ("vector", "halfvec")
# LangChain lets its users choose the type of the ids.
_ID_TYPES = {"own": ("uuid",), "langchain": ("uuid", *_TEXT), "llamaindex": _TEXT}


def detect_layout(relation: Relation, columns: Mapping[str, Column]) -> Layout:
    """Return the layout all of whose columns are there.

    Raises:
        TableError: There is none.
    """
    # By what is missing, so that the message speaks of the layout that was meant.
    missing = {layout: _missing(layout, columns) for layout in LAYOUTS.values()}
    nearest = min(missing, key=lambda layout: len(missing[layout]))
    if missing[nearest]:
        known = "; ".join(
            f"{layout.name} lacks {', '.join(names)}" for layout, names in missing.items()
        )
        msg = f"{relation} has the columns of no known layout ({known}); name another table"
        raise TableError(msg)
    return nearest


def read_shape(
    relation: Relation, columns: Mapping[str, Column], layout: Layout, *, writing: bool
) -> Table:
    """Check the columns' types and return the table.

    Args:
        relation: Its name.
        columns: By name.
        layout: Whose columns they must be.
        writing: Whether rows will be written, so that no other column may demand a value.

    Raises:
        TableError: A column is missing, has another type or cannot be filled.
    """
    missing = _missing(layout, columns)
    if missing:
        msg = (
            f"{relation} is no table of the layout {layout.name!r}: it has no column "
            f"{', '.join(missing)}; choose another --layout or another table"
        )
        raise TableError(msg)
    expected = _expected_types(layout)
    wrong = [
        f"{name} is {columns[name].type} instead of {' or '.join(types)}"
        for name, types in expected.items()
        if columns[name].type not in types
    ]
    if wrong:
        raise TableError(f"{relation} cannot be used: {'; '.join(wrong)}")
    embedding = columns[layout.embedding]
    if embedding.type_modifier < 1:
        msg = (
            f"{relation} holds vectors of any length; fix it with: ALTER TABLE {relation} "
            f"ALTER COLUMN {layout.embedding} TYPE {embedding.type}(1024);"
        )
        raise TableError(msg)
    others = {name: column for name, column in columns.items() if name not in expected}
    tsv_column = _tsv_column(layout, others)
    metadata_columns = _metadata_columns(layout, others)
    if writing:
        _check_others(relation, others, known={*metadata_columns, tsv_column})
    return Table(
        schema=relation.schema,
        name=relation.name,
        layout=replace(layout, id_type=columns[layout.id].type),
        dimensions=embedding.type_modifier,
        vector_type=cast("VectorType", embedding.type),
        vector_schema=embedding.type_schema,
        metadata_type=cast("JsonType", columns[layout.metadata].type),
        metadata_columns=metadata_columns,
        tsv_column=tsv_column,
    )


def _expected_types(layout: Layout) -> dict[str, tuple[str, ...]]:
    expected = {
        layout.id: _ID_TYPES[layout.name],
        layout.content: _TEXT,
        layout.metadata: _JSON,
        layout.embedding: _VECTOR,
    }
    if layout.name == "own":
        expected |= {"doc_id": _TEXT, "seq": ("int4",)}
    if layout.name == LLAMAINDEX.name:
        expected |= {"id": ("int8", "int4")}
    return expected


def _missing(layout: Layout, columns: Mapping[str, Column]) -> list[str]:
    return [name for name in _expected_types(layout) if name not in columns]


def _tsv_column(layout: Layout, others: Mapping[str, Column]) -> str | None:
    # LlamaIndex' is generated by PostgreSQL itself.
    if layout.name != LANGCHAIN.name:
        return None
    for column in others.values():
        if column.type == "tsvector" and not column.generated:
            return column.name
    return None


def _metadata_columns(layout: Layout, others: Mapping[str, Column]) -> tuple[str, ...]:
    if layout.name != LANGCHAIN.name:
        return ()
    return tuple(
        column.name
        for column in others.values()
        if column.type != "tsvector" and not column.generated
    )


def _check_others(relation: Relation, others: Mapping[str, Column], known: set[str | None]) -> None:
    demanding = [
        column.name
        for column in others.values()
        if column.name not in known and not column.fills_itself and not column.generated
    ]
    if demanding:
        names = ", ".join(demanding)
        msg = f"{relation} demands values for {names}; give these columns a default or drop them"
        raise TableError(msg)
