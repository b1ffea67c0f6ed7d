"""uvicorn's HTTP protocol with bounds on how long an answer waits for its caller to read it.

The parser is httptools: h11 bounds headers by itself, but takes 2.4 times as much CPU
(`docs/architecture.md`). What this file and its subclasses override is not documented by uvicorn
(checked on 0.54; `test_http_protocol.py` and `test_answer_protocol.py` fail if it moves).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

if sys.platform == "linux":
    import fcntl
    import termios

logger: logging.Logger = logging.getLogger(__name__)

# How long after the end of its own stream a caller is asked whether it still reads.
HALF_CLOSED_SECONDS = 1.0
# How long the rest of a refused body is dropped: a connection that is closed with unread bytes is
# reset, and the caller may lose the response.
LINGER_SECONDS = 1.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class AnswerTransport:
    """Where uvicorn writes one answer: the head leaves with the first bytes of the body.

    Each write to a connection is a system call and a packet.
    """

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self._head: bytes | None = None
        self.is_closing: Callable[[], bool] = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._head is None and self._cycle.response_started:
            self._head = data
        elif self._head:
            # Not `writelines`: up to Python 3.13.1, it never asks to pause (CVE-2024-12254).
            self._transport.write(self._head + data)
            self._head = b""
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send the head of an answer without a body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()


class AnswerProtocol(HttpToolsProtocol):
    """A connection that is closed if its caller does not read its answer.

    Attributes:
        write_timeout_seconds: How long more than 64 KiB of an answer may wait for its caller.
        stall_seconds: How long a caller may read nothing of its answer once the gateway stops.
    """

    write_timeout_seconds: ClassVar[float] = 30.0
    stall_seconds: ClassVar[float] = 5.0

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._descriptor = -1
        self._unread_bytes = 0
        self._half_closed_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._descriptor = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._half_closed_timer, self._write_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Cut the caller off unless it soon reads what waits for it, and costs memory."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_timeout_seconds, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_bytes = 0
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answer = AnswerTransport(self.transport, cycle)
        cycle.transport = self._answer  # pyright: ignore[reportAttributeAccessIssue]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._answer.flush()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Finish the answer that is due, and from now on wait only for callers that read theirs."""
        super().shutdown()
        self._end_stall()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its caller has not read the end of an answer."""
        if self.transport.get_write_buffer_size():
            self._cut_off()
        else:
            super().timeout_keep_alive_handler()

    @property
    def _is_answer_due(self) -> bool:
        # uvicorn declares what is None until the first request as never None.
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _ask_whether_gone(self) -> None:
        """Find out, by sending something, whether a caller that sends no more still reads."""
        connection = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if self._half_closed_timer is not None and not self.pipeline:
            if self.cycle.response_started:
                return
            self.transport.write(CONTINUE)
        self._half_closed_timer = self.loop.call_later(HALF_CLOSED_SECONDS, self._ask_whether_gone)

    def _end_stall(self) -> None:
        """Cut the caller off if it has read nothing since the last call, of what waits for it.

        A caller that reads slowly takes from the kernel's buffer for a while before that takes
        more from the transport's, so both count.
        """
        waiting = self.transport.get_write_buffer_size()
        unread = waiting + _unsent_bytes(self._descriptor) if waiting else 0
        # Otherwise, the application may have added as much as was read.
        is_constant = self.flow.write_paused or not self._is_answer_due
        if is_constant and 0 < self._unread_bytes <= unread:
            self._cut_off()
            return
        self._unread_bytes = unread
        self._stall_timer = self.loop.call_later(self.stall_seconds, self._end_stall)

    def _cut_off(self) -> None:
        logger.info("A caller did not read its answer and was cut off.")
        self.transport.abort()

    def _close_soon(self, *, has_rest: bool) -> None:
        """Close the connection; if a body is still arriving, after a while."""
        if not has_rest:
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


def _unsent_bytes(descriptor: int) -> int:
    """Return what the kernel holds for the other side of a connection; 0 where it does not tell."""
    held = b""
    if sys.platform == "linux":
        with suppress(OSError):  # it has just been closed
            held = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(held, sys.byteorder)
