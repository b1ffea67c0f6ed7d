"""Documents that could not be loaded, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..database import Connection
from ..documents import BadRecord, Origin

__all__ = [
    "DeadLetter",
    "add_dead_letters",
    "clear_dead_letters",
    "drop_stale_dead_letters",
    "list_dead_letters",
]

# A reason may quote what a library said; PostgreSQL cannot hold NUL.
MAX_REASON_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Hold a document that could not be loaded."""

    origin: Origin
    doc_id: str | None
    stage: str
    reason: str
    attempts: int
    last_at: datetime


def add_dead_letters(
    connection: Connection, table_id: int, run_id: int, records: Sequence[BadRecord]
) -> None:
    """Note documents that could not be loaded; a former version of one counts as seen."""
    connection.cursor().executemany(
        "INSERT INTO qwen3_ingest.dead_letters AS d "
        "(table_id, source, path, position, doc_id, stage, reason, run_id) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) "
        "ON CONFLICT (table_id, source, path, position) DO UPDATE SET doc_id = excluded.doc_id, "
        "stage = excluded.stage, reason = excluded.reason, last_at = now(), "
        "attempts = d.attempts + 1, run_id = excluded.run_id",
        [
            (
                *(table_id, record.origin.source, record.origin.path, record.origin.position),
                *(_clean(record.doc_id), record.stage, _clean(record.reason), run_id),
            )
            for record in records
        ],
    )
    connection.execute(
        "UPDATE qwen3_ingest.documents SET run_id = %s WHERE table_id = %s AND doc_id = ANY(%s)",
        (run_id, table_id, sorted(filter(None, (_clean(r.doc_id) for r in records)))),
    )


def clear_dead_letters(connection: Connection, table_id: int, origins: Iterable[Origin]) -> None:
    """Forget what went wrong with documents that are now loaded."""
    ordered = list(origins)
    connection.execute(
        "DELETE FROM qwen3_ingest.dead_letters d USING unnest(%s::text[], %s::text[], "
        "%s::bigint[]) AS s (source, path, position) WHERE d.table_id = %s "
        "AND d.source = s.source AND d.path = s.path AND d.position = s.position",
        (
            [origin.source for origin in ordered],
            [origin.path for origin in ordered],
            [origin.position for origin in ordered],
            table_id,
        ),
    )


def drop_stale_dead_letters(
    connection: Connection, table_id: int, run_id: int, sources: Sequence[str]
) -> None:
    """Forget what a complete run over these sources did not come upon again."""
    connection.execute(
        "DELETE FROM qwen3_ingest.dead_letters WHERE table_id = %s AND source = ANY(%s) "
        "AND run_id <> %s",
        (table_id, list(sources), run_id),
    )


def list_dead_letters(
    connection: Connection, table_id: int, *, limit: int = 100
) -> list[DeadLetter]:
    """Return the latest documents that could not be loaded."""
    rows = connection.execute(
        "SELECT source, path, position, doc_id, stage, reason, attempts, last_at "
        "FROM qwen3_ingest.dead_letters WHERE table_id = %s "
        "ORDER BY run_id DESC, source, path, position LIMIT %s",
        (table_id, limit),
    )
    return [DeadLetter(Origin(*row[:3]), *row[3:]) for row in rows]


def _clean(text: str | None) -> str | None:
    if text is None:
        return None
    clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    return clean[:MAX_REASON_CHARACTERS]
