"""Connections that are kept between searches: one for each search under way at once.

Each statement sees what is committed when it begins, which the check of the embedding space stands
on. None is prepared: a plan for any filter and any question would be a bad one, and connection
poolers stay usable.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from psycopg import IsolationLevel

from qwen3_triton_client import PerEventLoop

from ..database import AsyncConnection, Connection, connect, connect_async, is_transient

__all__ = ["AsyncConnections", "Connections", "OneConnection"]

Result = TypeVar("Result")

_MOST_IDLE = 16


class Connections:
    """Lend connections to any number of threads, and keep some for the next search."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._idle: deque[Connection] = deque()
        self._process = os.getpid()
        weakref.finalize(self, _close_all, self._idle, self._process)  # retrievers are never closed

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Do work on a connection; once more on another where a kept one has been lost."""
        while True:
            kept = self._take()
            connection = kept or self._open()
            try:
                result = work(connection)
            except BaseException as error:
                connection.close()
                if kept is not None and is_transient(error):
                    continue
                raise
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
            else:
                connection.close()
            return result

    def close(self) -> None:
        """Close the connections that are not in use; a later search opens new ones."""
        while (connection := self._take()) is not None:
            connection.close()

    def _open(self) -> Connection:
        connection = connect(self._dsn, autocommit=True)
        connection.isolation_level = IsolationLevel.READ_COMMITTED
        connection.prepare_threshold = None
        return connection

    def _take(self) -> Connection | None:
        if self._process != os.getpid():  # forked: the connections are the parent's
            self._idle, self._process = deque(), os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return None


def _close_all(idle: deque[Connection], process: int) -> None:
    if process == os.getpid():
        while idle:
            idle.pop().close()


class OneConnection:
    """Lend a connection that the caller keeps, to one thread at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.RLock()

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Do work on the connection."""
        with self._lock:
            return work(self._connection)

    def close(self) -> None:
        """Leave the connection open: it is the caller's."""


class AsyncConnections:
    """Lend connections to the tasks of any number of event loops."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        # A retriever that nobody closes leaves no connection open at the end of `asyncio.run`.
        self._idle = PerEventLoop(deque["AsyncConnection"], _aclose_all)

    async def run(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Do work on a connection; once more on another where a kept one has been lost."""
        idle = await self._idle.get()
        while True:
            kept = idle.pop() if idle else None
            connection = kept or await self._open()
            try:
                result = await work(connection)
            except BaseException as error:
                await connection.close()
                if kept is not None and is_transient(error):
                    continue
                raise
            if len(idle) < _MOST_IDLE and self._idle.is_current(idle):
                idle.append(connection)
            else:
                await connection.close()
            return result

    async def aclose(self) -> None:
        """Close the connections of the running event loop; a later search opens new ones."""
        await self._idle.aclose()

    async def _open(self) -> AsyncConnection:
        connection = await connect_async(self._dsn, autocommit=True)
        await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
        connection.prepare_threshold = None
        return connection


async def _aclose_all(idle: deque[AsyncConnection]) -> None:
    while idle:
        await idle.pop().close()
