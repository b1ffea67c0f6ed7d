"""The steps of a re-embedding, in their order and again where others write meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import psycopg

from qwen3_triton_client import EmbeddingClient

from ..database import Connection, Session, connect, explain, keep_trying, with_short_lock
from ..errors import TableError
from ..index.build import OnNotice
from ..index.catalog import IndexProgress
from ..layouts import Table
from ..ledger.tables import TableHold, find_record
from ..rows.chunks import count_chunks
from .anatomy import Anatomy, check_movable, examine
from .filling import Filling, StartAfreshError, note_differences
from .job import Job
from .progress import OnReembedProgress, ReembedProgress
from .state import find_state, open_changes, start_noting, stop_noting
from .successor import (
    build_missing_indexes,
    create_successor,
    drop_successor,
    has_all_indexes,
)
from .swapping import check_foreign_keys, lock_out_readers, lock_out_writers, swap

__all__ = ["Run", "clear"]

# Where others write without a break, the last few rows are embedded while they wait.
PATIENT_ATTEMPTS, ATTEMPTS, FEW_CHANGES = 3, 50, 100
NAMED_FAILURES = 20


class Run:
    """One re-embedding under way."""

    def __init__(
        self,
        job: Job,
        session: Session,
        client: EmbeddingClient,
        *,
        on_progress: OnReembedProgress | None = None,
        on_notice: OnNotice | None = None,
    ) -> None:
        self._job = job
        self._session = session
        self._client = client
        self._on_progress = on_progress
        self._on_notice = on_notice
        self._progress = ReembedProgress("embed", 0, 0)
        self.embedded = 0

    def work(self, hold: TableHold) -> None:
        """Do what is left of it."""
        while True:
            anatomy, last_key, filled = self._session.run(self._prepare)
            filling = Filling(self._job, self._session, self._client, anatomy, self._count_rows)
            try:
                if not filled:
                    filling.fill(last_key)
                self._finish(filling, hold)
            except StartAfreshError:
                self._session.run(self._clear)
                continue
            finally:
                self.embedded += filling.embedded
            return

    def _prepare(self, connection: Connection) -> tuple[Anatomy, str | None, bool]:
        """Look at the table, and at what a former run did of the same."""
        job, table = self._job, self._job.table
        anatomy = examine(connection, table, job.space.dimensions)
        check_movable(connection, table, anatomy)
        state = find_state(connection, job.table_id)
        usable = state is not None and state.space == job.space and _are_alike(connection, job)
        if not usable:
            self._clear(connection)
            try:
                create_successor(connection, table, anatomy, job.successor)
                start_noting(connection, table, anatomy.key, job.table_id, job.space)
            except psycopg.errors.InsufficientPrivilege as error:
                user = connection.info.user
                msg = f"the user `{user}` may not make a table beside {table}: {explain(error)}"
                raise TableError(msg) from None
        done = count_chunks(connection, job.successor)
        total = count_chunks(connection, table)
        self._show(rows_done=done, rows_total=total, needed_bytes=anatomy.size_bytes)
        if usable and state is not None:
            return anatomy, state.last_key, state.filled
        return anatomy, None, False

    def _finish(self, filling: Filling, hold: TableHold) -> None:
        for attempt in range(ATTEMPTS):
            self._show(phase="changes")
            hold.renew()
            filling.apply_changes(few=FEW_CHANGES)
            self._refuse_failures(filling)
            self._show(phase="index")
            self._persist(lambda: self._build_indexes(filling))
            filling.apply_changes(few=FEW_CHANGES)
            self._refuse_failures(filling)
            self._show(phase="swap", index=None)
            hold.renew()
            may_embed = attempt >= PATIENT_ATTEMPTS
            if self._persist(lambda may_embed=may_embed: self._try_swap(filling, may_embed)):
                return
        msg = f"others write to {self._job.table} faster than it can be re-embedded: stop them"
        raise TableError(msg)

    def _build_indexes(self, filling: Filling) -> None:
        build_missing_indexes(
            self._job.dsn,
            filling.anatomy,
            self._job.successor,
            self._job.options.index,
            on_progress=self._show_index,
            on_notice=self._on_notice,
        )

    def _try_swap(self, filling: Filling, may_embed: bool) -> bool:
        """Swap if nothing is left to do; tell whether it was done."""
        with connect(self._job.dsn, autocommit=True) as connection:
            record = find_record(connection, self._job.table)
            if record is not None and record.space == self._job.space:
                return True  # by a commit whose answer was lost
            connection.execute("SET statement_timeout = 0")
            work = partial(self._swap, connection, filling, may_embed)
            swapped = with_short_lock(connection, work, what=str(self._job.table))
            if swapped:
                check_foreign_keys(connection, self._job.table)
        return swapped

    def _swap(self, connection: Connection, filling: Filling, may_embed: bool) -> bool:
        job, table = self._job, self._job.table
        lock_out_writers(connection, table)
        left = open_changes(connection, job.table_id, without=(), limit=FEW_CHANGES)
        if left and not (may_embed and len(left) < FEW_CHANGES):
            return False
        if left:
            with Session(job.dsn, retry_seconds=0) as session:
                filling.apply_changes(session)
            self._refuse_failures(filling)
        if count_chunks(connection, table) != count_chunks(connection, job.successor):
            note_differences(connection, job, filling.anatomy)
            return False
        anatomy = examine(connection, table, job.space.dimensions)
        check_movable(connection, table, anatomy)
        if not _are_alike(connection, job):
            raise StartAfreshError
        if not has_all_indexes(connection, anatomy, job.successor):
            filling.anatomy = anatomy
            return False
        lock_out_readers(connection, table, job.successor)
        swap(connection, job, anatomy)
        return True

    def _refuse_failures(self, filling: Filling) -> None:
        failed = filling.failed
        if not failed:
            return
        named = ", ".join(sorted(failed)[:NAMED_FAILURES])
        more = f" and {len(failed) - NAMED_FAILURES} more" if len(failed) > NAMED_FAILURES else ""
        first = failed[min(failed)]
        msg = (
            f"{len(failed)} rows of {self._job.table} cannot be embedded, so nothing was swapped: "
            f"`{filling.anatomy.key}` {named}{more}. Of the first the gateway says: "
            f"{first.message}. Change or delete these rows and run the same again: the others are "
            "not embedded again"
        )
        raise TableError(msg)

    def _clear(self, connection: Connection) -> None:
        clear(connection, self._job.table, self._job.successor, self._job.table_id)

    def _persist(self, work: Callable[[], bool | None]) -> bool:
        return bool(keep_trying(work, seconds=self._job.options.retry_seconds))

    def _count_rows(self, rows: int) -> None:
        self._show(rows_done=self._progress.rows_done + rows)

    def _show_index(self, progress: IndexProgress) -> None:
        self._show(index=progress)

    def _show(self, **changes: object) -> None:
        self._progress = replace(self._progress, **changes)  # pyright: ignore[reportArgumentType]
        if self._on_progress is not None:
            self._on_progress(self._progress)


def clear(connection: Connection, table: Table, successor: Table, table_id: int) -> None:
    """Forget a re-embedding and drop what it has filled."""

    def work() -> None:
        stop_noting(connection, table, table_id)

    if find_state(connection, table_id) is not None:
        with_short_lock(connection, work, what=str(table))
    drop_successor(connection, successor)


def _are_alike(connection: Connection, job: Job) -> bool:
    """Tell whether both tables have the same columns, but for the vectors' length."""
    query = (
        "SELECT array_agg((attname, atttypid, CASE attname WHEN %s THEN 0 ELSE atttypmod END, "
        "attnotnull, attgenerated, attidentity)::text ORDER BY attnum) FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
    )
    found: list[object] = []
    for table in (job.table, job.successor):
        name = table.identifier.as_string(connection)
        row = connection.execute(query, (table.layout.embedding, name)).fetchone()
        found.append(row[0] if row else None)
    return found[0] == found[1]
