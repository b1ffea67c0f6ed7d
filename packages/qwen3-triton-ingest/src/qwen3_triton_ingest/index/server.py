"""What a build asks of the server: memory, workers, and no time limit."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from ..config import IndexOptions
from ..database import Connection
from ..layouts import Table
from ..rows import count_chunks
from .plan import build_memory_bytes, memory_limit_bytes
from .statement import BuildStatement

__all__ = ["choose_memory", "choose_workers", "set_up_session", "set_workers", "table_workers"]

KIB = 1024
# A client that was killed is noticed by its backend only at this interval, while it builds on.
_CLIENT_CHECK = "5s"
_CLIENT_CHECK_SINCE, _TRANSACTION_TIMEOUT_SINCE = 140_000, 170_000


def set_up_session(connection: Connection) -> None:
    """Lift every time limit, and let the server end the build if this process is killed."""
    version = connection.info.server_version
    limits = ["statement_timeout", "lock_timeout"]
    if version >= _TRANSACTION_TIMEOUT_SINCE:
        limits.append("transaction_timeout")
    for limit in limits:
        _set(connection, limit, "0")
    if version >= _CLIENT_CHECK_SINCE:
        with contextlib.suppress(psycopg.errors.InvalidParameterValue):  # not on every platform
            _set(connection, "client_connection_check_interval", _CLIENT_CHECK)


def choose_memory(
    connection: Connection, table: Table, statement: BuildStatement, options: IndexOptions
) -> int:
    """Set `maintenance_work_mem` for this session and return it in bytes.

    Raises:
        ValueError: The option is no size that PostgreSQL understands.
    """
    wanted = options.maintenance_work_mem
    if wanted is None:
        wanted = f"{_needed(connection, table, statement) // KIB}kB"
    try:
        _set(connection, "maintenance_work_mem", wanted)
    except psycopg.errors.InvalidParameterValue as error:
        msg = (
            f"`maintenance_work_mem` is {wanted!r}; write a size such as '2GB' "
            f"({error.diag.message_primary})"
        )
        raise ValueError(msg) from None
    return _size(connection, "maintenance_work_mem")


def choose_workers(connection: Connection, options: IndexOptions) -> int:
    """Set how many parallel workers this session's builds may have, and return it."""
    if options.parallel_workers is None:
        row = connection.execute("SHOW max_parallel_maintenance_workers").fetchone()
        return int(row[0]) if row else 0
    _set(connection, "max_parallel_maintenance_workers", str(options.parallel_workers))
    return options.parallel_workers


@contextmanager
def table_workers(connection: Connection, table: Table, workers: int) -> Generator[None]:
    """Have the planner give a build these workers, and put the table's option back.

    By itself it gives none: vectors are stored out of line, and the table looks small.
    """
    former = _table_workers(connection, table)
    set_workers(connection, table, workers)
    try:
        yield
    finally:
        # Within a transaction that failed, its end puts the option back.
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.INERROR:
            set_workers(connection, table, former)


def set_workers(connection: Connection, table: Table, workers: int | None) -> None:
    """Set the table's option `parallel_workers`; None takes it away."""
    change: sql.Composable = sql.SQL("RESET (parallel_workers)")
    if workers is not None:
        change = sql.SQL("SET (parallel_workers = {})").format(workers)
    connection.execute(sql.SQL("ALTER TABLE {} {}").format(table.identifier, change))


def _table_workers(connection: Connection, table: Table) -> int | None:
    row = connection.execute(
        "SELECT o.option_value::int FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "CROSS JOIN pg_options_to_table(c.reloptions) o "
        "WHERE n.nspname = %s AND c.relname = %s AND o.option_name = 'parallel_workers'",
        (table.schema, table.name),
    ).fetchone()
    return row[0] if row else None


def _needed(connection: Connection, table: Table, statement: BuildStatement) -> int:
    limit = memory_limit_bytes(
        shared_buffers=_size(connection, "shared_buffers"),
        maintenance_work_mem=_size(connection, "maintenance_work_mem"),
    )
    return build_memory_bytes(
        count_chunks(connection, table),  # quick, and right before any ANALYZE
        dimensions=table.dimensions,
        bytes_per_dimension=statement.bytes_per_dimension,
        m=statement.m,
        limit=limit,
    )


def _size(connection: Connection, name: str) -> int:
    row = connection.execute("SELECT pg_size_bytes(current_setting(%s))", (name,)).fetchone()
    return row[0] if row else 0


def _set(connection: Connection, name: str, value: str) -> None:
    connection.execute("SELECT set_config(%s, %s, false)", (name, value))
