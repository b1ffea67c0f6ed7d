"""The vector indexes of a table: finding, naming and dropping them, and how far a build is."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from .. import queries
from ..database import Connection, with_short_lock
from ..errors import BusyError
from ..layouts import Table, fit_name

VECTOR_METHODS = ["hnsw", "ivfflat"]


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """An index that nearest neighbors are found with.

    Attributes:
        method: `hnsw` or `ivfflat`.
        expression: The column, or an expression such as `((embedding)::halfvec(1024))`.
        opclass: Operator class, such as `halfvec_cosine_ops`.
        valid: False for what an interrupted `CONCURRENTLY` left: PostgreSQL maintains such an
            index but never uses it.
        options: Storage parameters, such as `m=16`.
        definition: The statement that creates it.
    """

    schema: str
    name: str
    method: str
    expression: str
    opclass: str
    valid: bool
    size_bytes: int
    options: tuple[str, ...]
    definition: str

    @property
    def identifier(self) -> sql.Identifier:
        """The quoted, qualified name."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far the build of an index is.

    Attributes:
        phase: PostgreSQL's name for it, such as `building index: loading tuples`.
        rows_total: An estimate; 0 if it is not known.
    """

    phase: str
    blocks_done: int
    blocks_total: int
    rows_done: int
    rows_total: int

    @property
    def fraction(self) -> float | None:
        """How much is done, from 0 to 1; None if that is not known."""
        # Vectors are stored outside the heap, whose few blocks hold many rows each: rows first.
        for done, total in (
            (self.rows_done, self.rows_total),
            (self.blocks_done, self.blocks_total),
        ):
            if total > 0:
                return min(1.0, done / total)
        return None


def find_vector_indexes(connection: Connection, table: Table) -> list[VectorIndex]:
    """Return the table's vector indexes, valid or not, oldest first."""
    parameters = (table.schema, table.name, VECTOR_METHODS)
    rows = connection.execute(queries.VECTOR_INDEXES, parameters).fetchall()
    return [
        VectorIndex(table.schema, *row[:6], options=tuple(row[6]), definition=row[7])
        for row in rows
    ]


def why_not_indexable(
    connection: Connection, table: Table, *, concurrently: bool = False
) -> str | None:
    """Return why this user cannot build an index on a table, None if it can."""
    row = connection.execute(queries.INDEX_RIGHTS, (table.schema, table.name)).fetchone()
    assert row is not None
    is_owner, may_create, owner, user, is_partitioned = row
    if is_partitioned and concurrently:
        return f"{table} has partitions, so PostgreSQL builds no index on it concurrently."
    if not is_owner:
        return f"The user {user} may not build an index on {table}: only its owner {owner} may."
    if not may_create:
        schema = sql.Identifier(table.schema).as_string(connection)
        return (
            f"The user {user} may not build an index in the schema {schema}. Its owner can run: "
            f"GRANT CREATE ON SCHEMA {schema} TO {user};"
        )
    return None


def index_progress(connection: Connection, table: Table) -> IndexProgress | None:
    """Return how far the index being built on a table is, None if none is being built.

    Only the user who builds it and members of `pg_read_all_stats` can see it.
    """
    row = connection.execute(queries.INDEX_PROGRESS, (table.schema, table.name)).fetchone()
    return IndexProgress(*row[1:]) if row else None


def drop_vector_indexes(connection: Connection, table: Table) -> list[VectorIndex]:
    """Drop the table's vector indexes and return them; searches are exact until one is built.

    Readers wait only briefly: the lock is requested again while a long query holds the table.

    Raises:
        BusyError: The table was in use for too long.
    """
    found = find_vector_indexes(connection, table)
    _drop(connection, table, [index.name for index in found])
    return found


def drop_invalid(connection: Connection, table: Table) -> list[VectorIndex]:
    """Drop what interrupted builds left, and return it.

    Raises:
        BusyError: One of them is being built at this moment.
    """
    found = [index for index in find_vector_indexes(connection, table) if not index.valid]
    if not found:
        return []
    row = connection.execute(queries.INDEX_PROGRESS, (table.schema, table.name)).fetchone()
    if row is not None:
        msg = (
            f"Another session (server process {row[0]}) is building an index on {table}. Wait "
            "until it is done."
        )
        raise BusyError(msg)
    _drop(connection, table, [index.name for index in found])
    return found


def drop_if_exists(connection: Connection, table: Table, name: str) -> None:
    """Drop what an earlier build left under its temporary name."""
    row = connection.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s",
        (table.schema, name),
    ).fetchone()
    if row is not None:
        _drop(connection, table, [name])


def final_name(connection: Connection, table: Table, wanted: str) -> str:
    """Return the name, with a number if something else in the schema has it."""
    name, number = wanted, 1
    while True:
        row = connection.execute(
            "SELECT i.indrelid = to_regclass(%s) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "LEFT JOIN pg_index i ON i.indexrelid = c.oid WHERE n.nspname = %s AND c.relname = %s",
            (table.identifier.as_string(connection), table.schema, name),
        ).fetchone()
        if row is None or row[0]:
            return name
        name, number = fit_name(wanted, f"_{number}"), number + 1


def put_in_place(
    connection: Connection, table: Table, temporary: str, name: str, *, replaces: bool
) -> None:
    """Rename the new index, and drop those that it makes superfluous."""
    indexes = find_vector_indexes(connection, table)
    new = next((index for index in indexes if index.name == temporary), None)
    superfluous = [
        index.name
        for index in indexes
        if replaces
        and new
        and index.name != temporary
        and (index.method, index.expression, index.opclass)
        == (new.method, new.expression, new.opclass)
    ]

    def swap() -> None:
        for old in {*superfluous, name}:
            connection.execute(
                sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(table.schema, old))
            )
        rename = sql.SQL("ALTER INDEX {} RENAME TO {}")
        connection.execute(
            rename.format(sql.Identifier(table.schema, temporary), sql.Identifier(name))
        )

    with_short_lock(connection, swap, what=f"an index of {table}")


def _drop(connection: Connection, table: Table, names: list[str]) -> None:
    if not names:
        return
    indexes = sql.SQL(", ").join(sql.Identifier(table.schema, name) for name in names)
    drop = sql.SQL("DROP INDEX IF EXISTS {}").format(indexes)
    with_short_lock(connection, lambda: connection.execute(drop), what=f"an index of {table}")
