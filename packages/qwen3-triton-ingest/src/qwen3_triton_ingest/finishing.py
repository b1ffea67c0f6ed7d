"""What follows the last shard of a load: vanished documents, and the indexes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

from .config import LoadOptions
from .database import Session, keep_trying
from .index.build import OnNotice, build_vector_index
from .index.catalog import IndexProgress, find_vector_indexes
from .layouts import Table
from .ledger.documents import VanishedCount, count_vanished, remove_vanished
from .ledger.runs import Run, drop_stale_dead_letters
from .search import create_text_index

IndexOutcome: TypeAlias = Literal["built", "kept", "none"]
"""What a load did with the vector index."""


def remove_vanished_documents(
    session: Session,
    table: Table,
    run: Run,
    *,
    table_id: int,
    sources: Sequence[str],
    options: LoadOptions,
    on_removal: Callable[[], None],
) -> tuple[VanishedCount, ...]:
    """Remove the documents that a complete run did not encounter, unless they are too many.

    Returns:
        The sources whose vanished documents were kept although the policy is to remove them.
    """
    kept: list[VanishedCount] = []
    for source in sources if options.vanished == "delete" else ():
        ids = {"table_id": table_id, "run_id": run.id}
        found = session.run(partial(count_vanished, source=source, **ids))
        if not found.vanished:
            continue
        if found.nameless or found.fraction > options.max_vanished_fraction:
            kept.append(found)
            continue
        on_removal()
        while session.run(partial(remove_vanished, table=table, source=source, **ids)):
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
    """Build the vector and text indexes that the table lacks.

    Raises:
        TableError: The vectors are too long, or this user does not own the table.
        DatabaseError: PostgreSQL stayed unavailable.
    """
    if options.index.policy == "none":
        return "none"
    indexes = session.run(lambda connection: find_vector_indexes(connection, table))
    has_index = any(index.valid for index in indexes)
    if not has_index:
        on_progress(None)
        build = partial(
            build_vector_index,
            *(dsn, table, options.index),
            on_progress=on_progress,
            on_notice=on_notice,
        )
        keep_trying(build, seconds=options.retry_seconds, on_pause=on_pause)
    if (backend := options.index.text) != "none":
        config = options.index.text_search_config
        session.run(lambda connection: create_text_index(connection, table, backend, config))
    return "kept" if has_index else "built"
