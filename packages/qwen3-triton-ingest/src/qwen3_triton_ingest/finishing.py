"""What follows the last shard of a load: vanished documents, and the indexes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from .config import IndexOptions, IndexPolicy, LoadOptions
from .database import Connection, Session, keep_trying
from .errors import TableError
from .index.build import OnNotice, build_vector_index, check_memory
from .index.catalog import IndexProgress, find_vector_indexes, why_not_indexable
from .index.plan import check_options, vector_index_statement
from .layouts import Table
from .ledger.documents import (
    Ownership,
    VanishedCount,
    count_vanished,
    remove_vanished,
    settle_former_names,
)
from .ledger.runs import drop_stale_dead_letters
from .search import create_text_index, find_text_index_for

IndexOutcome: TypeAlias = Literal["built", "kept", "none"]
"""What a load did with the vector index."""


# More than this is taken for a mistake, such as a folder that is not mounted.
DEFAULT_MAX_VANISHED = 0.2


def remove_vanished_documents(
    session: Session,
    table: Table,
    *,
    table_id: int,
    owner: Ownership,
    options: LoadOptions,
    on_removal: Callable[[], None],
    on_notice: OnNotice,
) -> tuple[VanishedCount, ...]:
    """Remove the documents that a complete run did not encounter, unless they are too many.

    Returns:
        The sources whose vanished documents were kept although the policy is to remove them. A
        fraction above the limit keeps all of them; otherwise only the doubtful ones are kept.
    """
    every = options.vanished == "delete"
    left = session.run(partial(settle_former_names, table_id=table_id, owner=owner, every=every))
    for name, count in left.items():
        on_notice(
            f"{count:,} documents that an earlier release loaded from {name!r} were not found, and "
            "were kept: another folder or query may have had this name. If none had, "
            "`--vanished delete` removes them."
        )
    limit = options.max_vanished_fraction
    if limit is None:
        limit = 1.0 if every else DEFAULT_MAX_VANISHED
    kept: list[VanishedCount] = []
    for source in sorted(owner.sources) if options.vanished != "keep" else ():
        ids = {"table_id": table_id, "run_id": owner.run_id}
        found = session.run(partial(count_vanished, source=source, **ids))
        doubtful = limit >= 1
        is_allowed = found.fraction <= limit  # so that nothing is removed if the limit is NaN
        if not is_allowed or (found.doubtful and not doubtful):
            kept.append(found)
        if not is_allowed or not found.vanished:
            continue
        on_removal()
        remove = partial(remove_vanished, table=table, source=source, doubtful=doubtful, **ids)
        while session.run(remove):
            pass
    session.run(lambda connection: drop_stale_dead_letters(connection, table_id, owner))
    return tuple(kept)


def check_indexes(connection: Connection, table: Table, options: IndexOptions) -> IndexPolicy:
    """Check that the indexes can be built after the load, before it does anything.

    Returns:
        The policy for the vector index: a user who may not drop it keeps it.

    Raises:
        TableError: This user may not build them, an extension is missing, or an option is not what
            this server or this table allows.
        ValueError: An option is out of range.
    """
    if options.policy == "none":
        return "none"
    check_options(options)
    has_index = any(index.valid for index in find_vector_indexes(connection, table))
    builds = options.policy == "rebuild" or not has_index
    if builds:
        vector_index_statement(table, options)
    if options.text != "none":
        config = options.text_search_config
        builds |= find_text_index_for(connection, table, options.text, config) is None
    if options.maintenance_work_mem is not None:
        check_memory(connection, options.maintenance_work_mem)
    reason = why_not_indexable(connection, table, concurrently=options.concurrently)
    if builds and reason:
        raise TableError(f"{reason} To load without building any, set `--index none`.")
    return "keep" if reason and options.policy == "auto" else options.policy


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
