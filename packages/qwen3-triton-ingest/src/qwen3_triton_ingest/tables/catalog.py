"""What PostgreSQL's catalog says about a table, and whose layout its columns have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from psycopg import sql

from .. import queries
from ..database import Connection
from ..errors import TableError
from ..layouts import (
    LANGCHAIN,
    LANGCHAIN_V1,
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
_TEXT, _JSON = ("text", "varchar"), ("json", "jsonb")
_VECTOR = ("vector", "halfvec")
# LangChain lets its users choose the type of the ids.
_ID_TYPES = {"own": ("uuid",), "langchain": ("uuid", *_TEXT), "llamaindex": _TEXT}


@dataclass(frozen=True, slots=True)
class Relation:
    """Something in PostgreSQL that has columns.

    Attributes:
        kind: `r` for a table, `p` for a partitioned one; others cannot be filled.
    """

    oid: int
    schema: str
    name: str
    kind: str

    @property
    def identifier(self) -> sql.Identifier:
        """The quoted, qualified name."""
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a relation.

    Attributes:
        type_modifier: For pgvector's types the dimensions, -1 if they were left open.
        is_optional: Whether an INSERT may omit it: it is nullable or has a default or identity.
        is_generated: Whether PostgreSQL computes it.
    """

    name: str
    type: str
    type_schema: str
    type_modifier: int
    is_optional: bool
    is_generated: bool


def split_name(name: str) -> tuple[str | None, str]:
    """Split `schema.table` or `table`; parts may be quoted as in SQL.

    Raises:
        TableError: The name cannot be parsed or is too long.
    """
    match = _NAME.fullmatch(name)
    if match is None or "\0" in name:
        msg = (
            f"`table` is {name!r}. Write TABLE or SCHEMA.TABLE, with double quotes around a part "
            "that contains a dot."
        )
        raise TableError(msg)
    parts = [
        part[1:-1].replace('""', '"') if part and part.startswith('"') else part
        for part in match.groups()
    ]
    for part in parts:
        if part and len(part.encode()) > MAX_NAME_BYTES:
            msg = f"`table` is {name!r}; PostgreSQL allows {MAX_NAME_BYTES} bytes for each part."
            raise TableError(msg)
    return parts[0], parts[1] or ""


def find_relation(connection: Connection, schema: str, name: str) -> Relation | None:
    """Look up a table by its exact name."""
    row = connection.execute(
        "SELECT c.oid::bigint, c.relkind::text FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        [schema, name],
    ).fetchone()
    return None if row is None else Relation(row[0], schema, name, row[1])


def columns_of(connection: Connection, relation: Relation) -> dict[str, Column]:
    """Return the columns by name, in their order."""
    rows = connection.execute(queries.TABLE_COLUMNS, [relation.oid])
    return {row[0]: Column(*row) for row in rows}


def missing_rights(connection: Connection, relation: Relation, rights: Sequence[str]) -> list[str]:
    """Return the GRANT statements that this user would need before using the table.

    Args:
        connection: The user's.
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
    query = (
        "SELECT wanted FROM unnest(%s::text[]) AS wanted "
        "WHERE NOT has_table_privilege(%s::oid, wanted)"
    )
    missing = [row[0] for row in connection.execute(query, [list(rights), relation.oid])]
    if missing:
        grants.append(f"GRANT {', '.join(missing)} ON {table} TO {user};")
    if "INSERT" in rights:
        for row in connection.execute(queries.UNUSABLE_SEQUENCES, [relation.oid]):
            sequence = sql.Identifier(relation.schema, row[0]).as_string(connection)
            grants.append(f"GRANT USAGE ON SEQUENCE {sequence} TO {user};")
    return grants


def current_user(connection: Connection) -> str:
    """Return the role that the connection acts as."""
    row = connection.execute("SELECT current_user").fetchone()
    return row[0] if row else ""


def pgvector_version(connection: Connection) -> str | None:
    """Return the version of the extension in this database, None if it was not created."""
    row = connection.execute(
        "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
    ).fetchone()
    return row[0] if row else None


def detect_layout(relation: Relation, columns: Mapping[str, Column]) -> Layout:
    """Return the layout whose columns the table has.

    Raises:
        TableError: It has the columns of no known layout.
    """
    if columns.keys() >= {"collection_id", "document", "cmetadata", "embedding"}:
        return LANGCHAIN_V1
    # The layout with the fewest missing columns, so that the message is about the intended one.
    missing = {layout: _missing(layout, columns) for layout in LAYOUTS.values()}
    nearest = min(missing, key=lambda layout: len(missing[layout]))
    if missing[nearest]:
        reasons = "; ".join(
            f"{layout.name} lacks {', '.join(names)}" for layout, names in missing.items()
        )
        msg = f"{relation} has the columns of no known layout ({reasons}). Name another table."
        raise TableError(msg)
    return nearest


def read_shape(
    relation: Relation, columns: Mapping[str, Column], layout: Layout, *, writing: bool
) -> Table:
    """Check the columns' types and return the table.

    Args:
        relation: Its name.
        columns: By name.
        layout: The layout whose columns it must have.
        writing: Whether rows will be written, so that no other column may require a value.

    Raises:
        TableError: A column is missing, has another type or cannot be filled.
    """
    missing = _missing(layout, columns)
    if missing:
        msg = (
            f"{relation} is not a table of the layout {layout.name!r}: it has no column "
            f"{', '.join(missing)}. Choose another --layout or another table."
        )
        raise TableError(msg)
    expected = _expected_types(layout)
    wrong = [
        f"{name} is {columns[name].type} instead of {' or '.join(types)}"
        for name, types in expected.items()
        if columns[name].type not in types
    ]
    if wrong:
        raise TableError(f"{relation} cannot be used: {'; '.join(wrong)}.")
    embedding = columns[layout.embedding]
    if embedding.type_modifier < 1:
        msg = (
            f"{relation} holds vectors of any length. Fix their length with: ALTER TABLE "
            f"{relation.identifier.as_string(None)} ALTER COLUMN {layout.embedding} "
            f"TYPE {embedding.type}(1024);"
        )
        raise TableError(msg)
    others = [column for name, column in columns.items() if name not in expected]
    tsv_column, metadata_columns = _langchain_columns(layout, others)
    if writing:
        generated = [name for name in expected if columns[name].is_generated]
        if generated:
            msg = f"{relation} computes {', '.join(generated)} itself. Make it a plain column."
            raise TableError(msg)
        _check_others(relation, others, filled={*metadata_columns, tsv_column})
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


def _langchain_columns(
    layout: Layout, others: Sequence[Column]
) -> tuple[str | None, tuple[str, ...]]:
    """Return LangChain's `tsvector` column and its metadata columns, which its store writes."""
    if layout.name != LANGCHAIN.name:
        return None, ()
    written = [column for column in others if not column.is_generated]
    tsv_column = next((column.name for column in written if column.type == "tsvector"), None)
    return tsv_column, tuple(column.name for column in written if column.type != "tsvector")


def _check_others(relation: Relation, others: Sequence[Column], filled: set[str | None]) -> None:
    required = [
        column.name
        for column in others
        if column.name not in filled and not column.is_optional and not column.is_generated
    ]
    if required:
        names = ", ".join(required)
        msg = f"{relation} requires values for {names}. Give these columns a default or drop them."
        raise TableError(msg)
