"""Connections to PostgreSQL, short locks, and error messages that never hold a password.

A connection may lead to a pooler in transaction mode, such as PgBouncer, where each transaction can
run in another session of the server. So nothing is left in a session: statements are not prepared,
locks and settings last until the end of their transaction.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
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

from .connection_strings import libpq_dsn
from .errors import BusyError, DatabaseError

Connection: TypeAlias = psycopg.Connection[TupleRow]
AsyncConnection: TypeAlias = psycopg.AsyncConnection[TupleRow]
Result = TypeVar("Result")

APPLICATION_NAME = "qwen3-triton-ingest"
CONNECT_TIMEOUT_SECONDS = 10
# A peer that disappears silently is noticed after 30 + 3 x 10 seconds.
_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0
# In messages of a server that refuses a connection now and may accept the next one.
_TRANSIENT_WORDS = (
    *("starting up", "shutting down", "recovery mode", "not yet accepting", "too many"),
    "terminating connection",  # by an administrator, or because the postmaster died
    # Messages of PgBouncer, while its server is down or all of its connections are taken:
    *("no more connections allowed", "query_wait_timeout", "server login has been failing"),
    *("cannot connect to server", "server conn crashed", "server_login_retry"),
)
# Messages of libpq itself, about what the next attempt would find again.
_PERMANENT = re.compile(
    "no password supplied|certificate|does not support SSL|SSL not in use|"
    "authentication method requirement|invalid [a-z_]+ value|invalid port"
)
# Apart from lost connections: errors after which the same statement may succeed a moment later.
_TRANSIENT = (
    psycopg.errors.AdminShutdown,
    psycopg.errors.CrashShutdown,
    psycopg.errors.CannotConnectNow,
    psycopg.errors.TooManyConnections,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
    # Time limits that end a connection. What they ended is tried on another one.
    psycopg.errors.IdleSessionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.TransactionTimeout,
)
_TIME_LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
_TRANSACTION_TIMEOUT_SINCE = 170_000
# The formats that psycopg reads and writes. A role or a database can have others as its default.
_FORMATS = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
}


def connect(dsn: str, *, autocommit: bool = False) -> Connection:
    """Open a connection to PostgreSQL.

    Args:
        dsn: URI or keywords, see `libpq_dsn`; libpq's PG* variables supply what it leaves out.
        autocommit: Whether each statement is its own transaction.

    Raises:
        DatabaseError: The DSN cannot be parsed, or the server refuses permanently (a wrong
            password, no such database).
        psycopg.OperationalError: The server is unavailable; `keep_trying` waits for it.
    """
    dsn = libpq_dsn(dsn)
    try:
        return psycopg.connect(dsn, autocommit=autocommit, **_keywords(dsn))
    except psycopg.OperationalError as error:
        raise _connection_error(error) from None


async def connect_async(dsn: str) -> AsyncConnection:
    """Open an autocommit connection for an event loop, otherwise as `connect` does."""
    dsn = libpq_dsn(dsn)
    try:
        return await psycopg.AsyncConnection.connect(dsn, autocommit=True, **_keywords(dsn))
    except psycopg.OperationalError as error:
        raise _connection_error(error) from None


def _keywords(dsn: str) -> dict[str, Any]:
    """Return the connection parameters that the DSN leaves out, and those that texts depend on."""
    defaults: dict[str, Any] = {"fallback_application_name": APPLICATION_NAME, **_KEEPALIVES}
    if "PGCONNECT_TIMEOUT" not in os.environ:
        defaults["connect_timeout"] = CONNECT_TIMEOUT_SECONDS
    specified = conninfo_to_dict(dsn)
    return {
        **{key: value for key, value in defaults.items() if key not in specified},
        # Python's texts and the binary formats are UTF-8, whatever the database's encoding is.
        "client_encoding": "utf8",
        "prepare_threshold": None,
    }


@contextmanager
def unlimited(connection: Connection) -> Generator[None]:
    """Run a transaction with `neutral_settings`, whatever the role or the server has."""
    with connection.transaction():
        try:
            change_settings(connection, neutral_settings(connection))
        except psycopg.errors.QueryCanceled as error:  # by the limit itself; so it is transient
            raise psycopg.OperationalError(explain(error)) from None
        yield


def neutral_settings(connection: Connection) -> dict[str, str]:
    """Return settings with which nothing ends a long transaction, and values can be read."""
    return no_time_limits(connection) | _FORMATS


def no_time_limits(connection: Connection) -> dict[str, str]:
    """Return the settings with which nothing ends a long transaction."""
    since = connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE
    return dict.fromkeys([*_TIME_LIMITS, *(["transaction_timeout"] if since else [])], "0")


def change_settings(
    connection: Connection, settings: Mapping[str, str], *, is_local: bool = True
) -> None:
    """Change settings until the end of the transaction, or of the session."""
    connection.execute(
        "SELECT set_config(name, value, %s) FROM unnest(%s::text[], %s::text[]) s (name, value)",
        (is_local, list(settings), list(settings.values())),
    )


def _connection_error(error: psycopg.OperationalError) -> Exception:
    if is_transient(error):
        return error
    return DatabaseError(f"PostgreSQL refused the connection: {explain(error)}.")


def narrow_encoding(connection: Connection) -> str | None:
    """Return Python's name of the database's encoding; None if it can store every character.

    Also None if Python does not know the encoding; then the server refuses what it cannot store.
    """
    row = connection.execute("SHOW server_encoding").fetchone()
    if row is None or row[0] in {"UTF8", "SQL_ASCII"}:
        return None
    with connection.transaction(force_rollback=True):
        change_settings(connection, {"client_encoding": row[0]})
        try:
            return connection.info.encoding
        except psycopg.NotSupportedError:
            return None


def explain(error: psycopg.Error) -> str:
    """Return PostgreSQL's message, detail and hint on one line, without a mark at the end."""
    primary = error.diag.message_primary or str(error)
    parts = [primary, error.diag.message_detail, error.diag.message_hint]
    return "; ".join(" ".join(part.split()).rstrip(".?") for part in parts if part)


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed: connection lost, server full or restarting, deadlock."""
    if isinstance(error, _TRANSIENT):
        return True
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    # Class 08 is for connections. Errors without a state are libpq's own; among those, "FATAL" is a
    # permanent refusal, unless the server or a pooler says that it is starting, stopping or full.
    if error.sqlstate is not None:
        return error.sqlstate.startswith("08")
    text = str(error)
    if "FATAL" not in text:
        return _PERMANENT.search(text) is None
    return any(words in text for words in _TRANSIENT_WORDS)


def keep_trying(
    work: Callable[[], Result],
    *,
    seconds: float,
    on_pause: Callable[[str], None] | None = None,
) -> Result:
    """Call `work`, and retry while the server is unavailable.

    The work must open its own connection and be safe to do twice: a commit whose answer was lost
    may have happened.

    Args:
        work: What to do.
        seconds: How long to retry after the first failure; the work itself may take hours.
        on_pause: Called with the reason before each pause.

    Raises:
        DatabaseError: The server stayed unavailable, or has no space left.
    """

    def report(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if on_pause and isinstance(error, psycopg.Error):
            on_pause(explain(error))

    failed_at: list[float] = []

    def is_over(_: RetryCallState) -> bool:
        failed_at.append(time.monotonic())
        return failed_at[-1] - failed_at[0] >= seconds

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=is_over,
        wait=wait_exponential(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS) + wait_random(0, 0.1),
        before_sleep=report,
        reraise=True,
    )
    try:
        return retrying(work)
    except psycopg.errors.DiskFull as error:
        msg = (
            f"PostgreSQL has no space left: {explain(error)}. Make room, then run the same command "
            "again: it resumes where it stopped."
        )
        raise DatabaseError(msg) from error
    except psycopg.Error as error:
        if not is_transient(error):
            raise
        away = time.monotonic() - failed_at[0]
        msg = (
            f"PostgreSQL was unavailable for {away:.0f} s: {explain(error)}. Once it is "
            "available, run the same command again: it resumes where it stopped."
        )
        raise DatabaseError(msg) from error


class Session:
    """A connection that runs transactions, and runs them again after the server was unavailable.

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
        """Call `work` in a transaction without time limits; it must be safe to do twice.

        Raises:
            DatabaseError: The server stayed unavailable.
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
            with unlimited(self._connection):
                return work(self._connection)
        except psycopg.Error as error:
            if is_transient(error) or isinstance(error, psycopg.OperationalError):
                self.close()
            raise


# While a request for an exclusive lock waits for a long search, all later searches queue behind it.
# So it gives up soon and tries again, and the queued searches are served in between.
LOCK_WAIT_MILLISECONDS = 500
PAUSE_SECONDS = 1.0
PATIENCE_SECONDS = 600.0


def with_short_lock(connection: Connection, work: Callable[[], Result], *, what: str) -> Result:
    """Call `work`, which needs an exclusive lock, in a transaction that never waits long for it.

    Args:
        connection: If it is in a transaction, a savepoint is used.
        work: Executes the statements; called again if the lock was not granted.
        what: What is locked, for the message.

    Raises:
        BusyError: The lock was not granted within `PATIENCE_SECONDS`.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with connection.transaction():
                former = connection.execute("SHOW lock_timeout").fetchone()
                wait = {"lock_timeout": str(LOCK_WAIT_MILLISECONDS)}
                change_settings(connection, no_time_limits(connection) | wait)
                result = work()
                change_settings(connection, {"lock_timeout": former[0] if former else "0"})
                return result
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if time.monotonic() > deadline:
                msg = (
                    f"No lock on {what} was granted for {PATIENCE_SECONDS:.0f} s. End the long "
                    "transactions on it (see pg_stat_activity) and run the same command again."
                )
                raise BusyError(msg) from None
        time.sleep(PAUSE_SECONDS)
