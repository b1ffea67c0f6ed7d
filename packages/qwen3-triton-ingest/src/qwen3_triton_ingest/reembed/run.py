"""Re-embedding a table: the whole of it, from the first look to the swap."""

from __future__ import annotations

import time
from functools import partial

from ..config import LoadOptions
from ..database import Connection, Session
from ..embedding import open_client, served_space
from ..index.build import OnNotice
from ..layouts import LayoutName, Table
from ..ledger.schema import prepare_ledger
from ..ledger.tables import Space, TableHold, TableRecord, claim_table, find_record
from ..rows.chunks import count_chunks
from ..tables.preparation import find_table
from .job import Job
from .progress import OnReembedProgress, ReembedReport
from .state import find_state
from .steps import Run, clear
from .successor import successor_of

__all__ = ["abandon_reembed", "reembed"]

UNKNOWN_FINGERPRINT = "unknown"


def reembed(
    dsn: str,
    table_name: str,
    options: LoadOptions,
    *,
    on_progress: OnReembedProgress | None = None,
    on_notice: OnNotice | None = None,
) -> ReembedReport:
    """Embed a table's texts with the model that the gateway serves now, and swap the vectors in.

    A new table is filled beside the old one, gets the same indexes, and takes its place in one
    short transaction together with the ledger's fingerprint: a search sees all old vectors or all
    new ones. It needs about as much disk as the table and its indexes take. Ids and every other
    column stay as they are, also where others write meanwhile. Loads of this package are refused.

    Interrupted at any moment, the same call goes on where it stopped; with another model served
    by then it starts afresh; see also `abandon_reembed`. The text column alone is embedded, of
    LlamaIndex too. Transactions of REPEATABLE READ that began before the swap and touch the table
    only after it find it empty, as after every rewriting of a table in PostgreSQL.

    Args:
        dsn: Where the table is. Its owner must connect.
        table_name: As for a load.
        options: `layout`, `gateway`, `retry_seconds`, and of `index` memory and workers; the kinds
            of indexes are the old table's.
        on_progress: Called in this thread after each thousand rows and while indexes are built.
        on_notice: Called with what a person should know.

    Raises:
        TableError: The table cannot be replaced, or some of its texts cannot be embedded: then
            nothing is swapped.
        BusyError: A load or another re-embedding is at work, or the table is never free.
        DatabaseError: PostgreSQL stayed away.
        EmbeddingError: The gateway stayed away, or began to serve another model.
    """
    began = time.monotonic()
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
            job = Job(dsn, options, table, record.id, space)
            run = Run(job, session, client, on_progress=on_progress, on_notice=on_notice)
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
        time.monotonic() - began,
    )


def abandon_reembed(
    dsn: str, table_name: str, *, layout: LayoutName = "own", retry_seconds: float = 120.0
) -> bool:
    """Give up a re-embedding that has begun; returns whether there was one.

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
            session.run(lambda connection: clear(connection, table, successor, record.id))
    return True


def _find(connection: Connection, *, name: str, layout: LayoutName) -> tuple[Table, TableRecord]:
    """Find a table and its record; one that no load knows gets a record now."""
    table = find_table(connection, name, None if layout == "own" else layout)
    prepare_ledger(connection)
    record = find_record(connection, table)
    if record is None:
        unknown = Space(UNKNOWN_FINGERPRINT, "", table.dimensions)
        record = claim_table(connection, table, unknown, adopt=True)
    return table, record
