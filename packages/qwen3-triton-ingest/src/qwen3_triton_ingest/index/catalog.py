"""The vector indexes of a table: finding, naming and dropping them, and how far a build is."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from ..database import Connection, with_short_lock
from ..errors import BusyError
from ..layouts import Table, fit_name

VECTOR_METHODS = ["hnsw", "ivfflat"]

_FIND = """
SELECT c.relname, a.amname, pg_get_indexdef(i.indexrelid, 1, true), o.opcname,
    i.indisvalid AND i.indisready, pg_relation_size(c.oid), coalesce(c.reloptions, '{}'),
    pg_get_indexdef(i.indexrelid)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam
JOIN pg_opclass o ON o.oid = i.indclass[0]
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = %s AND t.relname = %s AND a.amname = ANY(%s)
ORDER BY c.oid
"""


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """Describe an index that nearest neighbours are found by."""

    schema: str
    name: str
    method: str
    """`hnsw` or `ivfflat`."""
    expression: str
    """The column, or `((embedding)::halfvec(1024))`."""
    opclass: str
    """Such as `halfvec_cosine_ops`."""
    valid: bool
    """False for what an interrupted `CONCURRENTLY` left: it is kept up and never used."""
    size_bytes: int
    options: tuple[str, ...]
    """Such as `m=16`."""
    definition: str
    """The statement that makes it."""

    @property
    def identifier(self) -> sql.Identifier:
        """Return the quoted, qualified name."""
        return sql.Identifier(self.schema, self.name)


def find_vector_indexes(connection: Connection, table: Table) -> list[VectorIndex]:
    """Return the table's vector indexes, valid or not, oldest first."""
    rows = connection.execute(_FIND, (table.schema, table.name, VECTOR_METHODS)).fetchall()
    return [
        VectorIndex(table.schema, *row[:6], options=tuple(row[6]), definition=row[7])
        for row in rows
    ]


def drop_vector_indexes(connection: Connection, table: Table) -> list[VectorIndex]:
    """Drop the table's vector indexes and return them; searches are exact until one is built.

    Readers wait for a moment only: where one of them takes long, the lock is asked for again.

    Raises:
        BusyError: The table was in use for too long.
    """
    found = find_vector_indexes(connection, table)
    _drop(connection, table, found)
    return found


def drop_invalid(connection: Connection, table: Table) -> list[VectorIndex]:
    """Drop what interrupted builds left, and return it.

    Raises:
        BusyError: One of them is being built at this moment.
    """
    found = [index for index in find_vector_indexes(connection, table) if not index.valid]
    if not found:
        return []
    row = connection.execute(
        "SELECT p.pid FROM pg_stat_progress_create_index p JOIN pg_class c ON c.oid = p.relid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE p.datname = current_database() AND n.nspname = %s AND c.relname = %s",
        (table.schema, table.name),
    ).fetchone()
    if row is not None:
        msg = (
            f"an index of {table} is being built by another session (process {row[0]} of the "
            "server). Wait until it has ended"
        )
        raise BusyError(msg)
    _drop(connection, table, found)
    return found


def _drop(connection: Connection, table: Table, indexes: list[VectorIndex]) -> None:
    if not indexes:
        return
    names = sql.SQL(", ").join(index.identifier for index in indexes)
    drop = sql.SQL("DROP INDEX IF EXISTS {}").format(names)
    with_short_lock(connection, lambda: connection.execute(drop), what=f"an index of {table}")


def final_name(connection: Connection, table: Table, wanted: str) -> str:
    """Return the name, or one with a number if something else bears it."""
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
    """Give the new index its name, and drop those that it makes needless."""
    indexes = find_vector_indexes(connection, table)
    new = next((index for index in indexes if index.name == temporary), None)
    needless = [
        index.name
        for index in indexes
        if replaces
        and new
        and index.name != temporary
        and (index.method, index.expression, index.opclass)
        == (new.method, new.expression, new.opclass)
    ]

    def swap() -> None:
        for old in {*needless, name}:
            connection.execute(
                sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(table.schema, old))
            )
        rename = sql.SQL("ALTER INDEX {} RENAME TO {}")
        connection.execute(
            rename.format(sql.Identifier(table.schema, temporary), sql.Identifier(name))
        )

    with_short_lock(connection, swap, what=f"an index of {table}")


def drop_if_there(connection: Connection, table: Table, name: str) -> None:
    """Drop what a former build left under its temporary name."""
    row = connection.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s",
        (table.schema, name),
    ).fetchone()
    if row is not None:
        drop = sql.SQL("DROP INDEX {}").format(sql.Identifier(table.schema, name))
        with_short_lock(connection, lambda: connection.execute(drop), what=f"an index of {table}")


_QUERY = """
SELECT p.phase, p.blocks_done, p.blocks_total, p.tuples_done,
    greatest(p.tuples_total, CASE WHEN c.reltuples > 0 THEN c.reltuples::bigint ELSE 0 END)
FROM pg_stat_progress_create_index p
JOIN pg_class c ON c.oid = p.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.datname = current_database() AND n.nspname = %s AND c.relname = %s
LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """Say how far the building of an index is."""

    phase: str
    """PostgreSQL's word for it, such as `building index: loading tuples`."""
    blocks_done: int
    blocks_total: int
    rows_done: int
    rows_total: int
    """Estimated; 0 where it is not known."""

    @property
    def fraction(self) -> float | None:
        """Return how much is done, from 0 to 1; None where nobody can tell."""
        # Rows lie in the heap, few bytes each beside their vectors, so blocks are coarse.
        for done, total in (
            (self.rows_done, self.rows_total),
            (self.blocks_done, self.blocks_total),
        ):
            if total > 0:
                return min(1.0, done / total)
        return None


def index_progress(connection: Connection, table: Table) -> IndexProgress | None:
    """Return how far the index is that is being built on a table; None if there is none.

    Only the user who builds it and members of `pg_read_all_stats` see it.
    """
    row = connection.execute(_QUERY, (table.schema, table.name)).fetchone()
    return IndexProgress(*row) if row else None
