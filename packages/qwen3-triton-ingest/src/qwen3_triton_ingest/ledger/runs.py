"""Runs and their shards: what is done, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, TypeAlias

from psycopg import sql

from ..database import Connection

__all__ = [
    "Counts",
    "Run",
    "RunState",
    "add_counts",
    "begin_shard",
    "finish_run",
    "finish_shard",
    "has_open_shards",
    "last_run",
    "open_run",
    "run_counts",
]

RunState: TypeAlias = Literal["running", "complete", "replaced"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Count what a shard or a run did."""

    documents: int = 0
    """Written: new, or changed in text or metadata."""
    unchanged: int = 0
    duplicates: int = 0
    """Records whose id had come before in the same run."""
    chunks_written: int = 0
    chunks_kept: int = 0
    """Of changed documents, the chunks whose text had not changed."""
    chunks_removed: int = 0
    failed: int = 0
    """In the dead letters."""
    nameless: int = 0
    """Of the failed, those whose id could not be read."""


_IN_DEAD_LETTERS = ("failed", "nameless")
_NAMES = tuple(field.name for field in fields(Counts) if field.name not in _IN_DEAD_LETTERS)


@dataclass(frozen=True, slots=True)
class Run:
    """Hold one run of a load over a table."""

    id: int
    state: RunState
    started_at: datetime
    finished_at: datetime | None
    sources: tuple[str, ...]
    rows_before: int
    """Rows of the table when it began."""
    removed: int
    """Documents that had vanished from their source, and were removed."""
    resumed: bool = False


_RUN = "id, state, started_at, finished_at, sources, rows_before, removed"


def open_run(
    connection: Connection,
    table_id: int,
    *,
    sources: Sequence[str],
    recipe: bytes,
    rows_before: int,
) -> Run:
    """Resume the table's unfinished run if it is the same, or begin a new one in its place."""
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
    """Note that a run did all it was to do."""
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
    """Note that a shard is begun. Returns whether it was done before."""
    row = connection.execute(
        "INSERT INTO qwen3_ingest.shards (run_id, key, source, name) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT (run_id, key) DO UPDATE SET updated_at = now() RETURNING done",
        (run_id, key, source, name),
    ).fetchone()
    return bool(row and row[0])


def add_counts(connection: Connection, run_id: int, key: bytes, counts: Counts) -> None:
    """Add to what a shard did, in the transaction that does it."""
    connection.execute(_ADD_COUNTS, (*(getattr(counts, name) for name in _NAMES), run_id, key))


_ADD_COUNTS = sql.SQL(
    "UPDATE qwen3_ingest.shards SET {}, updated_at = now() WHERE run_id = %s AND key = %s"
).format(
    sql.SQL(", ").join(sql.SQL("{0} = {0} + %s").format(sql.Identifier(name)) for name in _NAMES)
)


def finish_shard(connection: Connection, run_id: int, key: bytes, *, duplicates: int) -> None:
    """Note that all of a shard is in the table, or in the dead letters."""
    connection.execute(
        "UPDATE qwen3_ingest.shards SET done = true, duplicates = %s, updated_at = now() "
        "WHERE run_id = %s AND key = %s",
        (duplicates, run_id, key),
    )


def has_open_shards(connection: Connection, run_id: int) -> bool:
    """Tell whether a shard was begun and is not done."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM qwen3_ingest.shards WHERE run_id = %s AND NOT done)", (run_id,)
    ).fetchone()
    return bool(row and row[0])


def run_counts(connection: Connection, run_id: int) -> tuple[Counts, int]:
    """Return what a run did so far, over all its workers, and how many shards are done."""
    row = connection.execute(_COUNTS, {"run": run_id}).fetchone()
    assert row is not None
    return Counts(*row[1:]), row[0]


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


def _run(row: Any, *, resumed: bool = False) -> Run:
    number, state, started, finished, sources, rows_before, removed = row
    return Run(number, state, started, finished, tuple(sources), rows_before, removed, resumed)
