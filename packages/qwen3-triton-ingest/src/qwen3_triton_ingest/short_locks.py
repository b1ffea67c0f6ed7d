"""Locks that shut everybody out, asked for so that nobody waits long behind them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

from .database import Connection
from .errors import BusyError

__all__ = ["with_short_lock"]

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
