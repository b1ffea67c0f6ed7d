"""Which vector indexes a table has, and removing them."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from ..database import Connection
from ..errors import BusyError
from ..layouts import Table
from ..short_locks import with_short_lock

__all__ = ["VectorIndex", "drop_invalid", "drop_vector_indexes", "find_vector_indexes"]

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
