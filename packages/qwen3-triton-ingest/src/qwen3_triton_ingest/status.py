"""The state of a table, from the ledger and from PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass, replace

from psycopg import sql

from .config import Context
from .database import Connection, Session
from .index.catalog import IndexProgress, VectorIndex, find_vector_indexes, index_progress
from .layouts import LayoutName, Table
from .ledger.runs import Counts, DeadLetter, Run, last_run, list_dead_letters, run_counts
from .ledger.tables import Space, find_record, is_held
from .tables.preparation import check_ledger_rights, find_table


@dataclass(frozen=True, slots=True)
class TableStatus:
    """The state of a table.

    Attributes:
        size_bytes: With its indexes.
        space: None for a table that this package did not load.
        context: What precedes chunks when they are embedded.
        documents: In the ledger.
        run: The latest one; `interrupted` if no load holds the table, so that the same command
            would resume it.
        counts: Of the latest run.
        shards_done: In the latest run.
        dead_letters: Number of documents that were skipped.
        indexes: Vector indexes.
        index_progress: Of an index build that is in progress.
    """

    table: str
    layout: str
    dimensions: int
    rows: int
    size_bytes: int
    space: Space | None
    context: Context
    documents: int
    run: Run | None
    counts: Counts
    shards_done: int
    dead_letters: int
    latest_dead_letters: tuple[DeadLetter, ...]
    indexes: tuple[VectorIndex, ...]
    index_progress: IndexProgress | None


def status(
    dsn: str,
    table: str,
    *,
    layout: LayoutName | None = None,
    max_dead_letters: int = 20,
    retry_seconds: float = 10.0,
) -> TableStatus:
    """Return the state of a table; from any machine, also during a load.

    Raises:
        TableError: The table does not exist, or this user may not read it or the ledger.
        DatabaseError: PostgreSQL cannot be reached.
    """
    with Session(dsn, retry_seconds=retry_seconds) as session:
        return session.run(
            lambda connection: _read_status(connection, table, layout, max_dead_letters)
        )


def _read_status(
    connection: Connection, name: str, layout: LayoutName | None, max_dead_letters: int
) -> TableStatus:
    table = find_table(connection, name, layout)
    check_ledger_rights(connection, ("SELECT",))
    record = find_record(connection, table)
    run = last_run(connection, record.id) if record else None
    if record and run and run.state == "running" and not is_held(connection, record.id):
        run = replace(run, state="interrupted")
    counts, shards_done = run_counts(connection, run.id) if run else (Counts(), 0)
    letters = list_dead_letters(connection, record.id, limit=max_dead_letters) if record else []
    rows, size_bytes = _size(connection, table)
    documents, dead = _totals(connection, record.id) if record else (0, 0)
    return TableStatus(
        table=str(table),
        layout=table.layout.name,
        dimensions=table.dimensions,
        rows=rows,
        size_bytes=size_bytes,
        space=record.space if record else None,
        context=record.context if record else "none",
        documents=documents,
        run=run,
        counts=counts,
        shards_done=shards_done,
        dead_letters=dead,
        latest_dead_letters=tuple(letters),
        indexes=tuple(find_vector_indexes(connection, table)),
        index_progress=index_progress(connection, table),
    )


def _size(connection: Connection, table: Table) -> tuple[int, int]:
    query = sql.SQL("SELECT count(*), pg_total_relation_size({}) FROM {}").format(
        sql.Literal(table.identifier.as_string(connection)), table.identifier
    )
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0], row[1]


def _totals(connection: Connection, table_id: int) -> tuple[int, int]:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM qwen3_ingest.documents WHERE table_id = %(id)s), "
        "(SELECT count(*) FROM qwen3_ingest.dead_letters WHERE table_id = %(id)s)",
        {"id": table_id},
    ).fetchone()
    assert row is not None
    return row[0], row[1]
