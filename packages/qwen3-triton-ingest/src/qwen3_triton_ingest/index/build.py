"""Building an index: as fast as the server allows, observable, and safe to interrupt."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import psycopg
from psycopg import sql

from .. import queries
from ..config import IndexOptions
from ..database import (
    Connection,
    change_settings,
    connect,
    explain,
    no_time_limits,
    unlimited,
)
from ..errors import TableError
from ..layouts import Table, fit_name
from ..rows.chunks import count_chunks
from .catalog import (
    IndexProgress,
    VectorIndex,
    drop_if_exists,
    drop_invalid,
    final_name,
    find_vector_indexes,
    index_progress,
    put_in_place,
)
from .plan import BuildStatement, build_memory_bytes, memory_limit_bytes, vector_index_statement

OnIndexProgress: TypeAlias = Callable[[IndexProgress], None]
OnNotice: TypeAlias = Callable[[str], None]

POLL_SECONDS = 0.5
_CANCEL_SECONDS = 30.0
_KIB, _MIB = 1024, 1024**2
_OUTGROWN = re.compile(r"hnsw graph no longer fits into maintenance_work_mem after (\d+) tuples")
_UNDER_CONSTRUCTION = "_building"
# During a build, the server notices only at this interval that the client was killed.
_CLIENT_CHECK = "5s"
_CLIENT_CHECK_SINCE = 140_000


def build_vector_index(
    dsn: str,
    table: Table,
    options: IndexOptions,
    *,
    on_progress: OnIndexProgress | None = None,
    on_notice: OnNotice | None = None,
) -> VectorIndex:
    """Build the table's HNSW index for cosine distance, and return it.

    The default for our own layout is an index on half precision, `((embedding)::halfvec(1024))`,
    which serves queries that repeat the cast. LangChain's and LlamaIndex's stores query the plain
    column, so their tables get an index on that; see `uses_halfvec`. An index of the same kind
    serves searches until the new one is ready, and is dropped then. An interrupt or a lost
    connection leaves the table as it was.

    Args:
        dsn: Where the table is; two connections are opened.
        table: What to index.
        options: How. Without `concurrently`, writers wait until it is done; readers never do.
        on_progress: Called every half second, in this thread.
        on_notice: Called with what a person should know, such as that memory was too small.

    Raises:
        ValueError: An option is out of range.
        TableError: The vectors are too long for an index, or this user does not own the table.
        BusyError: Another session is building an index, or the table is never free.
        psycopg.OperationalError: The connection was lost.
    """
    statement = vector_index_statement(table, options)
    build_index(dsn, table, statement, options, on_progress=on_progress, on_notice=on_notice)
    with connect(dsn, autocommit=True) as connection, unlimited(connection):
        found = find_vector_indexes(connection, table)
        name = final_name(connection, table, statement.name)
    return next(index for index in reversed(found) if index.name == name)


def build_index(
    dsn: str,
    table: Table,
    statement: BuildStatement,
    options: IndexOptions,
    *,
    replaces: bool = True,
    on_progress: OnIndexProgress | None = None,
    on_notice: OnNotice | None = None,
) -> None:
    """Build the index that a statement describes, otherwise as `build_vector_index` does.

    It replaces an index of the same name, and with `replaces`, those of the same kind.
    """
    with connect(dsn, autocommit=True) as connection:
        with unlimited(connection):
            drop_invalid(connection, table)
            name = final_name(connection, table, statement.name)
            temporary = fit_name(name, _UNDER_CONSTRUCTION)
            drop_if_exists(connection, table, temporary)
            memory = options.maintenance_work_mem or _needed(connection, table, statement)
            memory_bytes = check_memory(connection, memory)
            plan = _Plan(
                statement.compose(table, temporary, concurrently=options.concurrently),
                table,
                _choose_workers(connection, options),
                {"maintenance_work_mem": memory},
                options.concurrently,
            )
        if on_notice is not None:
            _surface_notices(connection, memory_bytes, on_notice)
        _build(dsn, connection, plan, on_progress, on_notice)
        with unlimited(connection):
            put_in_place(connection, table, temporary, name, replaces=replaces)


class _Plan(NamedTuple):
    """One build.

    Attributes:
        settings: Of the session or the transaction in which it runs, beyond `set_for_build`.
    """

    create: sql.Composed
    table: Table
    workers: int
    settings: Mapping[str, str]
    concurrently: bool


def _build(
    dsn: str,
    connection: Connection,
    plan: _Plan,
    on_progress: OnIndexProgress | None,
    on_notice: OnNotice | None,
) -> None:
    try:
        _execute_watched(dsn, connection, plan, on_progress)
    except psycopg.errors.InsufficientPrivilege as error:
        msg = (
            f"The user `{connection.info.user}` may not build an index on {plan.table} "
            f"({explain(error)}). Connect as the table's owner, or skip it with `--index none`."
        )
        raise TableError(msg) from None
    except psycopg.Error as error:
        if plan.workers == 0 or not _is_shared_memory_short(error):
            raise
        if on_notice is not None:
            on_notice(
                f"The server has too little shared memory for parallel workers ({explain(error)}). "
                "The index is built without them, which takes longer. In a container, raise "
                "`--shm-size` above `maintenance_work_mem`; otherwise enlarge /dev/shm."
            )
        drop_invalid(connection, plan.table)
        _execute_watched(dsn, connection, plan._replace(workers=0), on_progress)


def _execute_watched(
    dsn: str, connection: Connection, plan: _Plan, on_progress: OnIndexProgress | None
) -> None:
    """Execute in a thread, so that this one can report progress and be interrupted."""
    with ThreadPoolExecutor(1, "qwen3-index") as pool:
        future = pool.submit(_execute, connection, plan)
        try:
            if on_progress is not None:
                _watch(dsn, plan.table, future, on_progress)
            future.result()
        except BaseException:  # an interrupt, or an error of the callback
            if not future.done():
                _cancel(connection, future)
                _clean_up(dsn, plan)
            raise


def _execute(connection: Connection, plan: _Plan) -> None:
    workers = {"max_parallel_maintenance_workers": str(plan.workers)}
    # CREATE INDEX CONCURRENTLY cannot run in a transaction. Its settings are the session's, which
    # is only its own where no pooler shares it.
    is_in_transaction = not plan.concurrently
    transaction = connection.transaction() if is_in_transaction else contextlib.nullcontext()
    with transaction:
        if is_in_transaction or not is_pooled(connection):
            set_for_build(connection, {**plan.settings, **workers}, is_local=is_in_transaction)
        with _table_workers(connection, plan.table, plan.workers):
            connection.execute(plan.create)


def _watch(dsn: str, table: Table, future: Future[None], on_progress: OnIndexProgress) -> None:
    with contextlib.suppress(psycopg.Error), connect(dsn, autocommit=True) as connection:
        while not wait([future], POLL_SECONDS).done:
            with unlimited(connection):
                progress = index_progress(connection, table)
            if progress:
                on_progress(progress)


def _cancel(connection: Connection, future: Future[None]) -> None:
    with contextlib.suppress(psycopg.Error):
        connection.cancel_safe(timeout=_CANCEL_SECONDS)
    wait([future], _CANCEL_SECONDS)


def _clean_up(dsn: str, plan: _Plan) -> None:
    """Remove what a canceled `CONCURRENTLY` left; if that fails, the next build does it."""
    if plan.concurrently:
        with (
            contextlib.suppress(Exception),
            connect(dsn, autocommit=True) as connection,
            unlimited(connection),
        ):
            drop_invalid(connection, plan.table)


def _surface_notices(connection: Connection, memory: int, on_notice: OnNotice) -> None:
    def report(diagnostic: psycopg.errors.Diagnostic) -> None:
        found = _OUTGROWN.search(diagnostic.message_primary or "")
        if found:
            on_notice(
                f"`maintenance_work_mem` of {memory // _MIB} MB held {int(found[1]):,} rows of the "
                "index; the rest is added on disk, which is slower. Set `--maintenance-work-mem` "
                "higher, in proportion to the rows."
            )

    connection.add_notice_handler(report)


def _is_shared_memory_short(error: psycopg.Error) -> bool:
    # The segment's name is part of the message in every language.
    return isinstance(error, psycopg.errors.DiskFull) and "/PostgreSQL." in str(error)


def set_for_build(
    connection: Connection, settings: Mapping[str, str], *, is_local: bool = True
) -> None:
    """Change settings and remove all time limits, for the transaction or for the session.

    The server then also ends the build if this process is killed.
    """
    wanted = no_time_limits(connection) | dict(settings)
    change_settings(connection, wanted, is_local=is_local)
    if connection.info.server_version >= _CLIENT_CHECK_SINCE:
        # Not every platform has it.
        with (
            contextlib.suppress(psycopg.errors.InvalidParameterValue),
            connection.transaction(),
        ):
            check = {"client_connection_check_interval": _CLIENT_CHECK}
            change_settings(connection, check, is_local=is_local)


def is_pooled(connection: Connection) -> bool:
    """Return whether the connection leads to a pooler, which invents the process id."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row != (connection.info.backend_pid,)


def check_memory(connection: Connection, wanted: str) -> int:
    """Return a value of `maintenance_work_mem` in bytes.

    Raises:
        ValueError: It is not a size that PostgreSQL understands.
    """
    try:
        with connection.transaction(force_rollback=True):
            change_settings(connection, {"maintenance_work_mem": wanted})
            return _size(connection, "maintenance_work_mem")
    except psycopg.errors.InvalidParameterValue as error:
        msg = (
            f"`maintenance_work_mem` is {wanted!r}; write a size such as '2GB' "
            f"({error.diag.message_primary})."
        )
        raise ValueError(msg) from None


def _choose_workers(connection: Connection, options: IndexOptions) -> int:
    """Return how many parallel workers a build may use."""
    if options.parallel_workers is not None:
        return options.parallel_workers
    row = connection.execute("SHOW max_parallel_maintenance_workers").fetchone()
    return int(row[0]) if row else 0


@contextmanager
def _table_workers(connection: Connection, table: Table, workers: int) -> Generator[None]:
    """Make the planner give a build these workers, and restore the table's option afterwards.

    On its own it gives none: vectors are stored out of line, and the table looks small. A table
    with partitions has no options; its partitions do.
    """
    names = table.identifier.as_string(connection)
    former = [
        (sql.Identifier(schema, name), count)
        for schema, name, count in connection.execute(queries.TABLE_WORKERS, {"table": names})
    ]
    for relation, _ in former:
        _set_workers(connection, relation, workers)
    try:
        yield
    finally:
        # In a transaction that failed, the rollback restores the option.
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.INERROR:
            for relation, count in former:
                _set_workers(connection, relation, count)


def _set_workers(connection: Connection, relation: sql.Identifier, workers: int | None) -> None:
    """Set the table's option `parallel_workers`; None removes it."""
    change: sql.Composable = sql.SQL("RESET (parallel_workers)")
    if workers is not None:
        change = sql.SQL("SET (parallel_workers = {})").format(workers)
    connection.execute(sql.SQL("ALTER TABLE {} {}").format(relation, change))


def _needed(connection: Connection, table: Table, statement: BuildStatement) -> str:
    limit = memory_limit_bytes(
        shared_buffers=_size(connection, "shared_buffers"),
        maintenance_work_mem=_size(connection, "maintenance_work_mem"),
    )
    needed = build_memory_bytes(
        count_chunks(connection, table),  # fast, and correct before any ANALYZE
        dimensions=table.dimensions,
        bytes_per_dimension=statement.bytes_per_dimension,
        m=statement.m,
        limit=limit,
    )
    return f"{needed // _KIB}kB"


def _size(connection: Connection, name: str) -> int:
    row = connection.execute("SELECT pg_size_bytes(current_setting(%s))", (name,)).fetchone()
    return row[0] if row else 0
