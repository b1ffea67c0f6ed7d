"""Connections that are kept between searches, one per concurrent search, and how a search runs.

The isolation level is READ COMMITTED: each statement sees what is committed when it starts, which
the check of the embedding space relies on. No statement is prepared: a plan for any filter and any
question would be a bad one, and prepared statements break connection poolers.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from psycopg import IsolationLevel
from psycopg.rows import tuple_row

from qwen3_triton_client import PerEventLoop

from ..database import AsyncConnection, Connection, connect, connect_async, is_transient
from ..rows.binary import BinaryDumper, BinaryValue
from .steps import Fetch, Fetched

Result = TypeVar("Result")

_MOST_IDLE = 16


class Connections:
    """Connections for any number of threads."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._idle: deque[Connection] = deque()
        self._process = os.getpid()
        weakref.finalize(self, _close_all, self._idle, self._process)  # most are never closed

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Do work on a connection; retry on another one if a kept one was lost."""
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
    """A connection that belongs to the caller, for one thread at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.RLock()

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Do work on the connection."""
        with self._lock:
            return work(self._connection)

    def close(self) -> None:
        """Do nothing: the connection belongs to the caller."""


class AsyncConnections:
    """Connections for the tasks of any number of event loops."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        # A retriever that is never closed leaves no connection open at the end of `asyncio.run`.
        self._idle = PerEventLoop(deque["AsyncConnection"], _aclose_all)

    async def run(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Do work on a connection; retry on another one if a kept one was lost."""
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
        connection = await connect_async(self._dsn)
        await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
        return connection


async def _aclose_all(idle: deque[AsyncConnection]) -> None:
    while idle:
        await idle.pop().close()


def fetch(connection: Connection, wanted: Fetch) -> Fetched:
    """Fetch the rows of a search, in a thread."""
    # A pipeline makes all of it one round trip.
    with connection.pipeline(), connection.transaction():
        for statement in wanted.settings:
            connection.execute(statement.query, statement.parameters)
        found = connection.cursor(row_factory=tuple_row)
        found.adapters.register_dumper(BinaryValue, BinaryDumper)
        found.execute(wanted.search.query, wanted.search.parameters)
        space = connection.cursor(row_factory=tuple_row)
        if wanted.space:
            space.execute(wanted.space.query, wanted.space.parameters)
    return Fetched(found.fetchall(), _first(space.fetchone() if wanted.space else None))


async def afetch(connection: AsyncConnection, wanted: Fetch) -> Fetched:
    """Fetch the rows of a search, in an event loop."""
    async with connection.pipeline(), connection.transaction():
        for statement in wanted.settings:
            await connection.execute(statement.query, statement.parameters)
        found = connection.cursor(row_factory=tuple_row)
        found.adapters.register_dumper(BinaryValue, BinaryDumper)
        await found.execute(wanted.search.query, wanted.search.parameters)
        space = connection.cursor(row_factory=tuple_row)
        if wanted.space:
            await space.execute(wanted.space.query, wanted.space.parameters)
    rows = await found.fetchall()
    return Fetched(rows, _first(await space.fetchone() if wanted.space else None))


def _first(row: tuple[Any, ...] | None) -> str | None:
    return row[0] if row else None
