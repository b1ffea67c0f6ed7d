"""Connections that are kept between searches: one for each search under way at once.

Each statement sees what is committed when it begins, which the check of the embedding space stands
on. None is prepared: a plan for any filter and any question would be a bad one, and connection
poolers stay usable.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from psycopg import IsolationLevel

from ..database import AsyncConnection, Connection, connect, connect_async, is_away

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
                if kept is not None and is_away(error):
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


@dataclass(frozen=True, slots=True)
class _LoopState:
    closer: AsyncGenerator[None]
    idle: deque[AsyncConnection] = field(default_factory=deque["AsyncConnection"])


class AsyncConnections:
    """Lend connections to the tasks of any number of event loops."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._states: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopState]
        self._states = weakref.WeakKeyDictionary()

    async def run(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Do work on a connection; once more on another where a kept one has been lost."""
        idle = (await self._state()).idle
        while True:
            kept = idle.pop() if idle else None
            connection = kept or await self._open()
            try:
                result = await work(connection)
            except BaseException as error:
                await connection.close()
                if kept is not None and is_away(error):
                    continue
                raise
            if len(idle) < _MOST_IDLE and asyncio.get_running_loop() in self._states:
                idle.append(connection)
            else:
                await connection.close()
            return result

    async def aclose(self) -> None:
        """Close the connections of the running event loop; a later search opens new ones."""
        state = self._states.pop(asyncio.get_running_loop(), None)
        if state is not None:
            await state.closer.aclose()

    async def _open(self) -> AsyncConnection:
        connection = await connect_async(self._dsn, autocommit=True)
        await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
        connection.prepare_threshold = None
        return connection

    async def _state(self) -> _LoopState:
        loop = asyncio.get_running_loop()
        state = self._states.get(loop)
        if state is None:
            idle: deque[AsyncConnection] = deque()
            state = self._states[loop] = _LoopState(_closed_with_loop(idle), idle)
            await anext(state.closer)  # now the loop knows of the generator
        return state


async def _closed_with_loop(idle: deque[AsyncConnection]) -> AsyncGenerator[None]:
    """Close connections when the event loop shuts down its asynchronous generators.

    So a retriever that nobody closes leaves none behind at the end of `asyncio.run`.
    """
    try:
        yield
    finally:
        while idle:
            await idle.pop().close()
