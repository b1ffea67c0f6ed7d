"""How far the building of an index is, as PostgreSQL tells it."""

from __future__ import annotations

from dataclasses import dataclass

from ..database import Connection
from ..layouts import Table

__all__ = ["IndexProgress", "index_progress"]

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
