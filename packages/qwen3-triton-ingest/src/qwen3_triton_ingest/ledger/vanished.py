"""Documents that their source no longer holds."""

from __future__ import annotations

from dataclasses import dataclass

from .. import rows
from ..database import Connection
from ..layouts import Table

__all__ = ["Vanished", "count_vanished", "remove_vanished"]

_BATCH_DOCUMENTS = 500


@dataclass(frozen=True, slots=True)
class Vanished:
    """Count the documents of a source that a complete run did not come upon."""

    source: str
    vanished: int
    known: int
    """All that the ledger has of this source."""
    nameless: int
    """Records of the run whose id could not be read: any of them may be a vanished one."""

    @property
    def fraction(self) -> float:
        """Return which part of the source's documents has vanished."""
        return self.vanished / self.known if self.known else 0.0


def count_vanished(connection: Connection, table_id: int, run_id: int, source: str) -> Vanished:
    """Count what a run that read all of a source did not come upon."""
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE run_id <> %s), count(*), (SELECT count(*) FROM "
        "qwen3_ingest.dead_letters WHERE run_id = %s AND source = %s AND doc_id IS NULL) "
        "FROM qwen3_ingest.documents WHERE table_id = %s AND source = %s",
        (run_id, run_id, source, table_id, source),
    ).fetchone()
    assert row is not None
    return Vanished(source, *row)


def remove_vanished(
    connection: Connection, table: Table, table_id: int, run_id: int, source: str
) -> int:
    """Remove the chunks and the ledger's rows of some vanished documents.

    Call it, each time in a transaction, until it returns 0: the number removed.
    """
    found = connection.execute(
        "DELETE FROM qwen3_ingest.documents WHERE table_id = %s AND doc_id = ANY(ARRAY(SELECT "
        "doc_id FROM qwen3_ingest.documents WHERE table_id = %s AND source = %s AND run_id <> %s "
        "ORDER BY doc_id LIMIT %s FOR UPDATE)) RETURNING chunk_ids",
        (table_id, table_id, source, run_id, _BATCH_DOCUMENTS),
        binary=True,
    ).fetchall()
    rows.delete_chunks(connection, table, [chunk for (ids,) in found for chunk in ids])
    connection.execute(
        "UPDATE qwen3_ingest.runs SET removed = removed + %s WHERE id = %s", (len(found), run_id)
    )
    return len(found)
