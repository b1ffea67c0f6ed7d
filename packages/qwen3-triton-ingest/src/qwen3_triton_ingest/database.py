"""Connections to PostgreSQL, short locks, and error messages that never hold a password."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    wait_exponential,
    wait_random,
)

from .errors import BusyError, DatabaseError

Connection: TypeAlias = psycopg.Connection[TupleRow]
AsyncConnection: TypeAlias = psycopg.AsyncConnection[TupleRow]
Result = TypeVar("Result")

APPLICATION_NAME = "qwen3-triton-ingest"
CONNECT_TIMEOUT_SECONDS = 10
# A peer that vanished without a word is noticed after 30 + 3 x 10 seconds.
_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0
# Of a server that turns a connection away, where the next may be let in.
_PASSING_WORDS = (
    *("starting up", "shutting down", "recovery mode", "not yet accepting", "too many"),
    "terminating connection",  # by an administrator, or for want of a postmaster
)
# Beyond lost connections: states in which the same statement may succeed a moment later.
_PASSING = (
    psycopg.errors.AdminShutdown,
    psycopg.errors.CrashShutdown,
    psycopg.errors.CannotConnectNow,
    psycopg.errors.TooManyConnections,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
)


def connect(dsn: str, *, autocommit: bool = False) -> Connection:
    """Open a connection to PostgreSQL.

    Args:
        dsn: libpq URI or keywords; what it leaves out comes from libpq's PG* variables.
        autocommit: Whether each statement is its own transaction.

    Raises:
        DatabaseError: The DSN cannot be read, or the server refuses for good (a wrong password,
            no such database).
        psycopg.OperationalError: The server is away; `keep_trying` waits for it.
    """
    keywords = _keywords(dsn)
    try:
        return psycopg.connect(dsn, autocommit=autocommit, **keywords)
    except psycopg.OperationalError as error:
        raise _refused(error) from None


async def connect_async(dsn: str, *, autocommit: bool = False) -> AsyncConnection:
    """Open a connection for an event loop; as `connect` otherwise."""
    keywords = _keywords(dsn)
    try:
        return await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit, **keywords)
    except psycopg.OperationalError as error:
        raise _refused(error) from None


def _keywords(dsn: str) -> dict[str, Any]:
    """Return what the DSN leaves open of how to connect."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        msg = "the DSN cannot be read; write postgresql://user:password@host:5432/database"
        raise DatabaseError(msg) from None  # libpq's message quotes the DSN
    defaults: dict[str, Any] = {
        "application_name": APPLICATION_NAME,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        **_KEEPALIVES,
    }
    return {key: value for key, value in defaults.items() if key not in given}


def _refused(error: psycopg.OperationalError) -> Exception:
    if is_away(error):
        return error
    return DatabaseError(f"PostgreSQL refused the connection: {explain(error)}")


def server_name(dsn: str) -> str:
    """Return host, port and database of a DSN, for messages."""
    known = conninfo_to_dict(dsn)
    host, port = known.get("host") or "localhost", known.get("port") or 5432
    return f"{host}:{port}/{known.get('dbname') or ''}"


def explain(error: psycopg.Error) -> str:
    """Return what PostgreSQL said, on one line."""
    primary = error.diag.message_primary or str(error)
    parts = [primary, error.diag.message_detail, error.diag.message_hint]
    return "; ".join(" ".join(part.split()) for part in parts if part)


def is_away(error: BaseException) -> bool:
    """Tell whether the same may succeed a moment later: lost, full, restarting, deadlocked."""
    if isinstance(error, _PASSING):
        return True
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    # Of errors with a state, class 08 is the connection's; those without one are libpq's own. Of
    # those, a server that answered "FATAL" to the connection says no for good unless it says that
    # it is starting up, shutting down or full.
    if error.sqlstate is not None:
        return error.sqlstate.startswith("08")
    text = str(error)
    if "FATAL" not in text:
        return True
    return any(words in text for words in _PASSING_WORDS)


def keep_trying(
    work: Callable[[], Result],
    *,
    seconds: float,
    on_pause: Callable[[str], None] | None = None,
) -> Result:
    """Do work on the database; where the server is away, do it again until it is back.

    The work must open its own connection and be safe to do twice: a commit whose answer was lost
    may have happened.

    Args:
        work: What to do.
        seconds: How long to go on trying after the first failure; the work itself may take hours.
        on_pause: Called with the reason before each pause.

    Raises:
        DatabaseError: The server stayed away.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if on_pause and isinstance(error, psycopg.Error):
            on_pause(explain(error))

    failed_at: list[float] = []

    def is_over(_: RetryCallState) -> bool:
        failed_at.append(time.monotonic())
        return failed_at[-1] - failed_at[0] >= seconds

    retrying = Retrying(
        retry=retry_if_exception(is_away),
        stop=is_over,
        wait=wait_exponential(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS) + wait_random(0, 0.1),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(work)
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        if not is_away(error):
            raise
        away = time.monotonic() - failed_at[0]
        msg = (
            f"PostgreSQL was away for {away:.0f} s: {explain(error)}. Bring it back and run the "
            "same command again: it goes on where it stopped"
        )
        raise DatabaseError(msg) from error


class Session:
    """Do transactions on one connection, and again on a new one where the server went away.

    For one thread at a time.
    """

    def __init__(
        self,
        dsn: str,
        *,
        retry_seconds: float,
        on_pause: Callable[[str], None] | None = None,
    ) -> None:
        self._dsn = dsn
        self._retry_seconds = retry_seconds
        self._on_pause = on_pause
        self._connection: Connection | None = None

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Do `work` in a transaction; it must be safe to do twice.

        Raises:
            DatabaseError: The server stayed away.
        """
        return keep_trying(
            lambda: self._once(work), seconds=self._retry_seconds, on_pause=self._on_pause
        )

    def close(self) -> None:
        """Close the connection; a later transaction opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _once(self, work: Callable[[Connection], Result]) -> Result:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn, autocommit=True)
        try:
            with self._connection.transaction():
                return work(self._connection)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self.close()
            raise


Result = TypeVar("Result")

# A request for an exclusive lock that waits for a long search lets nobody past it, so it gives up
# soon and comes again, and the searches that queued behind it are served in between.
LOCK_WAIT_MILLISECONDS = 500
PAUSE_SECONDS = 1.0
PATIENCE_SECONDS = 600.0


def with_short_lock(
    connection: Connection,
    work: Callable[[], Result],
    *,
    what: str,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Result:
    """Do work that needs an exclusive lock, in a transaction that never waits long for it.

    Args:
        connection: Inside its transaction, if it is in one, a savepoint is used.
        work: Executes the statements; done again from the start where the lock was not granted.
        what: What is locked, for the message.
        patience_seconds: How long to go on asking.

    Raises:
        BusyError: The lock was not granted in all that time.
    """
    end = time.monotonic() + patience_seconds
    while True:
        try:
            with connection.transaction():
                former = connection.execute("SHOW lock_timeout").fetchone()
                _set_lock_timeout(connection, str(LOCK_WAIT_MILLISECONDS))
                result = work()
                _set_lock_timeout(connection, former[0] if former else "0")
                return result
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if time.monotonic() > end:
                msg = (
                    f"{what} was in use for {patience_seconds:.0f} s without a break. End the "
                    "long transactions on it (see pg_stat_activity) and run the same again"
                )
                raise BusyError(msg) from None
        time.sleep(PAUSE_SECONDS)


def _set_lock_timeout(connection: Connection, value: str) -> None:
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (value,))
