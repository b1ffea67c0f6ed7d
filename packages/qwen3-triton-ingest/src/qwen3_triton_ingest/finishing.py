"""What follows the last shard of a load: vanished documents, and the indexes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

from .config import LoadOptions
from .database import Connection, Session, keep_trying
from .index.build import OnNotice, build_vector_index
from .index.catalog import IndexProgress, find_vector_indexes
from .layouts import Table
from .ledger.documents import Vanished, count_vanished, remove_vanished
from .ledger.runs import Run, drop_stale_dead_letters
from .search import create_text_index

__all__ = ["IndexOutcome", "build_indexes", "settle_vanished"]

IndexOutcome: TypeAlias = Literal["built", "kept", "none"]
"""What became of the vector index."""


def settle_vanished(
    session: Session,
    table: Table,
    run: Run,
    *,
    table_id: int,
    sources: Sequence[str],
    options: LoadOptions,
    on_removal: Callable[[], None],
) -> tuple[Vanished, ...]:
    """Remove the documents that a complete run did not come upon, unless they are too many.

    Returns the sources whose vanished documents were left although the policy is to remove them.
    """
    kept: list[Vanished] = []
    for source in sources if options.vanished == "delete" else ():
        count = partial(_count, table_id=table_id, run_id=run.id, source=source)
        vanished = session.run(count)
        if not vanished.vanished:
            continue
        if vanished.nameless or vanished.fraction > options.max_vanished_fraction:
            kept.append(vanished)
            continue
        on_removal()
        remove = partial(_remove, table=table, table_id=table_id, run_id=run.id, source=source)
        while session.run(remove):
            pass
    session.run(lambda connection: drop_stale_dead_letters(connection, table_id, run.id, sources))
    return tuple(kept)


def build_indexes(
    session: Session,
    dsn: str,
    table: Table,
    options: LoadOptions,
    *,
    on_progress: Callable[[IndexProgress | None], None],
    on_notice: OnNotice,
    on_pause: Callable[[str], None],
) -> IndexOutcome:
    """Build the indexes that the table lacks, for vectors and for words.

    Raises:
        TableError: The vectors are too long, or the table is not this user's.
        DatabaseError: PostgreSQL stayed away.
    """
    if options.index.policy == "none":
        return "none"
    found = session.run(lambda connection: find_vector_indexes(connection, table))
    is_there = any(index.valid for index in found)
    if not is_there:
        on_progress(None)
        build = partial(
            build_vector_index,
            dsn,
            table,
            options.index,
            on_progress=on_progress,
            on_notice=on_notice,
        )
        keep_trying(build, seconds=options.retry_seconds, on_pause=on_pause)
    if (backend := options.index.text) != "none":
        config = options.index.text_search_config
        session.run(lambda connection: create_text_index(connection, table, backend, config))
    return "kept" if is_there else "built"


def _count(connection: Connection, *, table_id: int, run_id: int, source: str) -> Vanished:
    return count_vanished(connection, table_id, run_id, source)


def _remove(
    connection: Connection, *, table: Table, table_id: int, run_id: int, source: str
) -> int:
    return remove_vanished(connection, table, table_id, run_id, source)
