"""Re-embedding a table, from the first look at it to the swap."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import psycopg
from psycopg import sql

from qwen3_triton_client import EmbeddingClient

from ..config import LoadOptions
from ..database import (
    Connection,
    Session,
    connect,
    explain,
    keep_trying,
    unlimited,
    with_short_lock,
)
from ..embedding import open_client, served_space
from ..errors import TableError
from ..index.build import OnNotice
from ..index.catalog import IndexProgress
from ..layouts import LayoutName, Table
from ..ledger.schema import prepare_ledger
from ..ledger.tables import Space, TableHold, TableRecord, claim_table, find_record
from ..rows.chunks import count_chunks
from ..tables.preparation import find_table
from .filling import Filling, RestartError, record_differences
from .job import Job, OnReembedProgress, ReembedProgress, ReembedReport
from .old_table import OldTable, examine
from .state import find_state, pending_changes, start_tracking, stop_tracking
from .successor import (
    build_missing_indexes,
    create_successor,
    drop_successor,
    has_all_indexes,
    has_same_columns,
    put_in_place,
    successor_of,
)

UNKNOWN_FINGERPRINT = "unknown"
# Where others write without a break, the last few rows are embedded while the writers wait.
PATIENT_ATTEMPTS, ATTEMPTS, FEW_CHANGES = 3, 50, 100
NAMED_FAILURES = 20


def reembed(
    dsn: str,
    table_name: str,
    options: LoadOptions,
    *,
    on_progress: OnReembedProgress | None = None,
    on_notice: OnNotice | None = None,
) -> ReembedReport:
    """Embed a table's texts with the model that the gateway serves now, and swap the vectors in.

    A new table is filled, gets the same indexes, and takes the old one's place in one short
    transaction, together with the ledger's fingerprint: a search sees all old vectors or all new
    ones. It needs about as much disk space as the table and its indexes take. Ids and all other
    columns stay the same, even if others write while it runs. Loads of this package are refused.

    After an interruption at any moment, the same call resumes; if another model is served by then
    it starts from scratch. See also `abandon_reembed`. Only the text column is embedded, also in
    LlamaIndex tables. REPEATABLE READ transactions that began before the swap and read the table
    only after it find it empty, as after any rewrite of a table in PostgreSQL.

    Args:
        dsn: Where the table is. Its owner must connect.
        table_name: As for a load.
        options: `layout`, `gateway`, `retry_seconds`, and memory and workers of `index`; which
            indexes are built follows from the old table.
        on_progress: Called in this thread after every thousand rows and while indexes are built.
        on_notice: Called with what a person should know.

    Raises:
        TableError: The table has something that would be lost (foreign keys, triggers, row level
            security, views and so on), or some of its texts cannot be embedded. Nothing is
            swapped then.
        BusyError: A load or another re-embedding is running, or the table is never free.
        DatabaseError: PostgreSQL stayed unavailable.
        EmbeddingError: The gateway stayed unavailable, or began to serve another model.
    """
    start = time.monotonic()
    retry_seconds = options.retry_seconds
    with (
        open_client(options.gateway) as client,
        Session(dsn, retry_seconds=retry_seconds) as session,
    ):
        space = served_space(client, options.gateway)
        table, record = session.run(partial(_find, name=table_name, layout=options.layout))
        former = record.space
        is_new = (former.fingerprint, former.instruction) != (space.fingerprint, space.instruction)
        embedded = 0
        if is_new:
            job = Job(dsn, options, table, record.id, space, record.context)
            run = _Run(job, session, client, on_progress, on_notice)
            with TableHold(dsn, record, table, retry_seconds=retry_seconds) as hold:
                run.work(hold)
            embedded = run.embedded
        rows = session.run(partial(count_chunks, table=table))
    return ReembedReport(
        str(table),
        is_new,
        rows,
        embedded,
        former.fingerprint,
        space.fingerprint,
        space.model,
        space.dimensions,
        time.monotonic() - start,
    )


def abandon_reembed(
    dsn: str, table_name: str, *, layout: LayoutName = "own", retry_seconds: float = 120.0
) -> bool:
    """Abandon a re-embedding that has begun, and return whether there was one.

    Raises:
        BusyError: It is running, or a load is.
        TableError: There is no such table.
    """
    with Session(dsn, retry_seconds=retry_seconds) as session:
        table, record = session.run(partial(_find, name=table_name, layout=layout))
        state = session.run(lambda connection: find_state(connection, record.id))
        if state is None:
            return False
        successor = successor_of(table, state.space.dimensions)
        with TableHold(dsn, record, table, retry_seconds=retry_seconds):
            session.run(lambda connection: _clear(connection, table, successor, record.id))
    return True


def _find(connection: Connection, *, name: str, layout: LayoutName) -> tuple[Table, TableRecord]:
    """Find a table and its record; a table that was never loaded gets a record now."""
    table = find_table(connection, name, None if layout == "own" else layout)
    prepare_ledger(connection)
    record = find_record(connection, table)
    if record is None:
        unknown = Space(UNKNOWN_FINGERPRINT, "", table.dimensions)
        record = claim_table(connection, table, unknown, adopt=True)
    return table, record


def _clear(connection: Connection, table: Table, successor: Table, table_id: int) -> None:
    """Delete a re-embedding's state and drop what it has filled."""

    def work() -> None:
        stop_tracking(connection, table, table_id)

    if find_state(connection, table_id) is not None:
        with_short_lock(connection, work, what=str(table))
    drop_successor(connection, successor)


class _Run:
    """One re-embedding in progress."""

    def __init__(
        self,
        job: Job,
        session: Session,
        client: EmbeddingClient,
        on_progress: OnReembedProgress | None,
        on_notice: OnNotice | None,
    ) -> None:
        self._job = job
        self._session = session
        self._client = client
        self._on_progress = on_progress
        self._on_notice = on_notice
        self._progress = ReembedProgress("embed", 0, 0)
        self.embedded = 0

    def work(self, hold: TableHold) -> None:
        """Do what is left to do."""
        while True:
            old, last_key, filled = self._session.run(self._prepare)
            filling = Filling(self._job, self._session, self._client, old, self._add_rows)
            try:
                if not filled:
                    filling.fill(last_key)
                self._finish(filling, hold)
            except RestartError:
                self._session.run(self._clear)
                continue
            finally:
                self.embedded += filling.embedded
            return

    def _prepare(self, connection: Connection) -> tuple[OldTable, str | None, bool]:
        """Examine the table and what an earlier run has done; create what is missing."""
        job, table = self._job, self._job.table
        old = examine(connection, table, job.space.dimensions)
        state = find_state(connection, job.table_id)
        if state is not None and not (
            state.space == job.space and has_same_columns(connection, table, job.successor)
        ):
            state = None
        if state is None:
            self._clear(connection)
            try:
                create_successor(connection, table, old, job.successor)
                start_tracking(connection, table, old.key, job.table_id, job.space)
            except psycopg.errors.InsufficientPrivilege as error:
                user = connection.info.user
                msg = f"The user `{user}` may not create {job.successor}: {explain(error)}."
                raise TableError(msg) from None
        self._show(
            rows_done=count_chunks(connection, job.successor),
            rows_total=count_chunks(connection, table),
            needed_bytes=old.size_bytes,
        )
        return (old, state.last_key, state.filled) if state else (old, None, False)

    def _finish(self, filling: Filling, hold: TableHold) -> None:
        """Catch up with the changes and build the indexes until the tables can be swapped."""
        for attempt in range(ATTEMPTS):
            self._show(phase="changes")
            hold.renew()
            filling.apply_changes(few=FEW_CHANGES)
            self._check_failures(filling)
            self._show(phase="index")
            self._persist(lambda: self._build_indexes(filling))
            filling.apply_changes(few=FEW_CHANGES)
            self._check_failures(filling)
            self._show(phase="swap", index=None)
            hold.renew()
            may_embed = attempt >= PATIENT_ATTEMPTS
            if self._persist(lambda may_embed=may_embed: self._try_swap(filling, may_embed)):
                return
        msg = f"Others write to {self._job.table} faster than it can be re-embedded. Stop them."
        raise TableError(msg)

    def _build_indexes(self, filling: Filling) -> None:
        build_missing_indexes(
            self._job.dsn,
            filling.old,
            self._job.successor,
            self._job.options.index,
            on_progress=self._show_index,
            on_notice=self._on_notice,
        )

    def _try_swap(self, filling: Filling, may_embed: bool) -> bool:
        """Swap the tables if nothing is left to do, and return whether they were swapped."""
        with connect(self._job.dsn, autocommit=True) as connection:
            with unlimited(connection):
                record = find_record(connection, self._job.table)
            if record is not None and record.space == self._job.space:
                return True  # by a commit whose answer was lost
            work = partial(self._swap, connection, filling, may_embed)
            return with_short_lock(connection, work, what=str(self._job.table))

    def _swap(self, connection: Connection, filling: Filling, may_embed: bool) -> bool:
        job, table = self._job, self._job.table
        # Keeps writers out until the transaction ends; readers continue.
        lock = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE")
        connection.execute(lock.format(table.identifier))
        changes = pending_changes(connection, job.table_id, without=(), limit=FEW_CHANGES)
        if changes and not (may_embed and len(changes) < FEW_CHANGES):
            return False
        if changes:
            with Session(job.dsn, retry_seconds=0) as session:
                filling.apply_changes(session)
            self._check_failures(filling)
        if count_chunks(connection, table) != count_chunks(connection, job.successor):
            record_differences(connection, job, filling.old)
            return False
        old = examine(connection, table, job.space.dimensions)
        if not has_same_columns(connection, table, job.successor):
            raise RestartError
        if not has_all_indexes(connection, old, job.successor):
            filling.old = old
            return False
        put_in_place(connection, table, old, job.successor)
        space = job.space
        connection.execute(
            "UPDATE qwen3_ingest.tables SET fingerprint = %s, model = %s, dimensions = %s, "
            "instruction = %s WHERE id = %s",
            (space.fingerprint, space.model, space.dimensions, space.instruction, job.table_id),
        )
        connection.execute("DELETE FROM qwen3_ingest.reembeds WHERE table_id = %s", (job.table_id,))
        return True

    def _check_failures(self, filling: Filling) -> None:
        failed = filling.failed
        if not failed:
            return
        named = ", ".join(sorted(failed)[:NAMED_FAILURES])
        more = f" and {len(failed) - NAMED_FAILURES} more" if len(failed) > NAMED_FAILURES else ""
        msg = (
            f"{len(failed)} rows of {self._job.table} cannot be embedded, so nothing was swapped: "
            f"`{filling.old.key}` {named}{more}. For the first of them, the gateway answered: "
            f"{failed[min(failed)].message} Change or delete these rows and run the same command "
            "again: the other rows are not embedded again."
        )
        raise TableError(msg)

    def _clear(self, connection: Connection) -> None:
        _clear(connection, self._job.table, self._job.successor, self._job.table_id)

    def _persist(self, work: Callable[[], bool | None]) -> bool:
        return bool(keep_trying(work, seconds=self._job.options.retry_seconds))

    def _add_rows(self, rows: int) -> None:
        self._show(rows_done=self._progress.rows_done + rows)

    def _show_index(self, progress: IndexProgress) -> None:
        self._show(index=progress)

    def _show(self, **changes: object) -> None:
        self._progress = replace(self._progress, **changes)  # pyright: ignore[reportArgumentType]
        if self._on_progress is not None:
            self._on_progress(self._progress)
