"""Runs and their shards: what is done, what came of it, and what could not be loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, TypeAlias

from psycopg import sql
from psycopg.types.json import Jsonb

from .. import queries
from ..database import Connection
from ..documents import BadRecord, Origin
from .documents import Ownership

# The ledger has `running` for an interrupted run, too.
RunState: TypeAlias = Literal["running", "interrupted", "complete", "replaced"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a shard or a run did, in numbers.

    Attributes:
        documents: Documents written: new ones, and those with changed text or metadata.
        unchanged: Documents that needed nothing.
        duplicates: Records whose id had occurred before in the same run.
        chunks_written: Chunks with a new vector.
        chunks_kept: Chunks of changed documents whose text had not changed.
        chunks_removed: Chunks that their documents no longer have.
        failed: Documents in the dead letters.
        nameless: Failed documents whose id could not be read.
    """

    documents: int = 0
    unchanged: int = 0
    duplicates: int = 0
    chunks_written: int = 0
    chunks_kept: int = 0
    chunks_removed: int = 0
    failed: int = 0
    nameless: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a load into a table.

    Attributes:
        rows_before: Rows of the table when it began.
        removed: Documents that had vanished from their source and were removed.
        resumed: Whether this process continues an earlier one's run.
    """

    id: int
    state: RunState
    started_at: datetime
    finished_at: datetime | None
    sources: tuple[str, ...]
    rows_before: int
    removed: int
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A document that could not be loaded."""

    origin: Origin
    doc_id: str | None
    stage: str
    reason: str
    attempts: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class FailedSource:
    """A source of which nothing could be loaded.

    Attributes:
        failed: How many documents.
        origin: Of the first of them.
        reason: Why it could not be loaded.
    """

    source: str
    failed: int
    origin: Origin
    reason: str


# A reason may quote a library's message; PostgreSQL cannot store NUL.
MAX_REASON_CHARACTERS = 1000
_RUN = "id, state, started_at, finished_at, sources, rows_before, removed"
_IN_DEAD_LETTERS = ("failed", "nameless")
_NAMES = tuple(field.name for field in fields(Counts) if field.name not in _IN_DEAD_LETTERS)
_ADD_COUNTS = sql.SQL(
    "UPDATE qwen3_ingest.shards SET {}, updated_at = now() WHERE run_id = %s AND key = %s"
).format(
    sql.SQL(", ").join(sql.SQL("{0} = {0} + %s").format(sql.Identifier(name)) for name in _NAMES)
)
_COUNTS = sql.SQL(
    "SELECT count(*) FILTER (WHERE done), {}, "
    "(SELECT count(*) FROM qwen3_ingest.dead_letters WHERE run_id = %(run)s), "
    "(SELECT count(*) FROM qwen3_ingest.dead_letters WHERE run_id = %(run)s AND doc_id IS NULL) "
    "FROM qwen3_ingest.shards WHERE run_id = %(run)s"
).format(
    sql.SQL(", ").join(
        sql.SQL("coalesce(sum({}), 0)::bigint").format(sql.Identifier(name)) for name in _NAMES
    )
)


def open_run(
    connection: Connection,
    table_id: int,
    *,
    sources: Sequence[str],
    recipe: bytes,
    rows_before: int,
) -> Run:
    """Resume the table's unfinished run if it has the same recipe, else begin a new one."""
    with connection.transaction():
        row = connection.execute(
            f"SELECT {_RUN} FROM qwen3_ingest.runs WHERE table_id = %s AND state = 'running' "
            "AND recipe = %s ORDER BY id DESC LIMIT 1",
            (table_id, recipe),
        ).fetchone()
        connection.execute(
            "UPDATE qwen3_ingest.runs SET state = 'replaced', finished_at = now() "
            "WHERE table_id = %s AND state = 'running' AND id IS DISTINCT FROM %s",
            (table_id, row[0] if row else None),
        )
        if row:
            return _run(row, resumed=True)
        row = connection.execute(
            "INSERT INTO qwen3_ingest.runs (table_id, sources, recipe, rows_before) "
            f"VALUES (%s, %s, %s, %s) RETURNING {_RUN}",
            (table_id, list(sources), recipe, rows_before),
        ).fetchone()
        assert row is not None
        return _run(row)


def finish_run(connection: Connection, run_id: int) -> Run:
    """Mark a run as complete and return it."""
    row = connection.execute(
        "UPDATE qwen3_ingest.runs SET state = 'complete', finished_at = now() WHERE id = %s "
        f"RETURNING {_RUN}",
        (run_id,),
    ).fetchone()
    assert row is not None
    return _run(row)


def last_run(connection: Connection, table_id: int) -> Run | None:
    """Return the table's latest run."""
    row = connection.execute(
        f"SELECT {_RUN} FROM qwen3_ingest.runs WHERE table_id = %s ORDER BY id DESC LIMIT 1",
        (table_id,),
    ).fetchone()
    return _run(row) if row else None


def begin_shard(connection: Connection, run_id: int, key: bytes, source: str, name: str) -> bool:
    """Record that a shard has begun, and return whether it was done before."""
    row = connection.execute(
        "INSERT INTO qwen3_ingest.shards (run_id, key, source, name) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT (run_id, key) DO UPDATE SET updated_at = now() RETURNING done",
        (run_id, key, source, name),
    ).fetchone()
    return bool(row and row[0])


def add_counts(connection: Connection, run_id: int, key: bytes, counts: Counts) -> None:
    """Add to a shard's counts, in the transaction that does the work."""
    connection.execute(_ADD_COUNTS, (*(getattr(counts, name) for name in _NAMES), run_id, key))


def finish_shard(
    connection: Connection,
    run_id: int,
    key: bytes,
    *,
    duplicates: int,
    encodings: Mapping[str, int],
) -> None:
    """Record that all of a shard is in the table or in the dead letters."""
    connection.execute(
        "UPDATE qwen3_ingest.shards SET done = true, duplicates = %s, encodings = %s, "
        "updated_at = now() WHERE run_id = %s AND key = %s",
        (duplicates, Jsonb(dict(encodings)), run_id, key),
    )


def run_encodings(connection: Connection, run_id: int) -> dict[str, int]:
    """Return how many files of a run had to be read in which encoding."""
    rows = connection.execute(
        "SELECT e.key, sum(e.value::int) FROM qwen3_ingest.shards s, "
        "jsonb_each_text(s.encodings) AS e WHERE s.run_id = %s GROUP BY 1 ORDER BY 1",
        (run_id,),
    )
    return dict(rows.fetchall())


def has_open_shards(connection: Connection, run_id: int) -> bool:
    """Return whether a shard was begun and is not done."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM qwen3_ingest.shards WHERE run_id = %s AND NOT done)", (run_id,)
    ).fetchone()
    return bool(row and row[0])


def run_counts(connection: Connection, run_id: int) -> tuple[Counts, int]:
    """Return what all workers of a run have done so far, and how many shards are done."""
    row = connection.execute(_COUNTS, {"run": run_id}).fetchone()
    assert row is not None
    return Counts(*row[1:]), row[0]


def add_dead_letters(
    connection: Connection, table_id: int, owner: Ownership, records: Sequence[BadRecord]
) -> None:
    """Record documents that could not be loaded; their earlier versions stay in the table."""
    run_id = owner.run_id
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
    known = sorted({(_clean(r.doc_id) or "", r.origin.source) for r in records if r.doc_id})
    connection.execute(
        "UPDATE qwen3_ingest.documents d SET run_id = %s, source = e.source, "
        f"owned_since = {queries.OWNED_SINCE} "
        "FROM unnest(%s::text[], %s::text[]) AS e (doc_id, source) WHERE d.table_id = %s "
        "AND d.doc_id = e.doc_id AND (d.source = e.source OR d.source = ANY(%s))",
        (
            *(run_id, list(owner.former), run_id),
            *([doc_id for doc_id, _ in known], [source for _, source in known]),
            *(table_id, list(owner.former)),
        ),
    )


def clear_dead_letters(connection: Connection, table_id: int, origins: Iterable[Origin]) -> None:
    """Delete the dead letters of documents that are loaded now."""
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


def drop_stale_dead_letters(connection: Connection, table_id: int, owner: Ownership) -> None:
    """Delete the dead letters that a complete run over its sources did not encounter."""
    connection.execute(
        "DELETE FROM qwen3_ingest.dead_letters WHERE table_id = %s AND source = ANY(%s) "
        "AND run_id <> %s",
        (table_id, list(owner.sources), owner.run_id),
    )


def rename_dead_letters(connection: Connection, table_id: int, former: Mapping[str, str]) -> None:
    """Rename the sources of dead letters from their former names to the present ones."""
    connection.execute(
        "UPDATE qwen3_ingest.dead_letters d SET source = n.source "
        "FROM unnest(%s::text[], %s::text[]) AS n (former, source) "
        "WHERE d.table_id = %s AND d.source = n.former AND NOT EXISTS (SELECT "
        "FROM qwen3_ingest.dead_letters o WHERE o.table_id = d.table_id AND o.source = n.source "
        "AND o.path = d.path AND o.position = d.position)",
        (list(former), list(former.values()), table_id),
    )


def failed_sources(connection: Connection, run_id: int) -> list[FailedSource]:
    """Return the sources of which a run could load nothing, although there was something."""
    rows = connection.execute(queries.FAILED_SOURCES, {"run": run_id})
    return [FailedSource(row[0], row[1], Origin(row[0], *row[2:4]), row[4]) for row in rows]


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


def _run(row: Any, *, resumed: bool = False) -> Run:
    number, state, started, finished, sources, rows_before, removed = row
    return Run(number, state, started, finished, tuple(sources), rows_before, removed, resumed)
