"""The connections of the process: file descriptors, how many are open, and which one makes room.

asyncio accepts without a bound, and logs every attempt that finds no file descriptor, thousands of
times a second (https://github.com/python/cpython/issues/151615). So the listening sockets count.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

logger: logging.Logger = logging.getLogger(__name__)

# More than any number of connections here; an unlimited hard limit is not a number to set.
MAX_DESCRIPTORS = 65_536
# For connections to Triton, files, and what libraries open.
RESERVED_DESCRIPTORS = 128
# Connections beyond the limit, for health checks.
SPARE_CONNECTIONS = 32
# A caller that has just connected gets this long to send something before it makes room.
MIN_WAIT_SECONDS = 0.5
# Connections refused per turn of the event loop.
REFUSALS_PER_TURN = 64
OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
LOG_INTERVAL_SECONDS = 10.0
REFUSAL_BODY = (
    b'{"error":{"message":"Too many connections are open. Retry later.",'
    b'"type":"overloaded_error","code":"too_many_connections","param":null},'
    b'"detail":"Too many connections are open. Retry later."}'
)
REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(REFUSAL_BODY), REFUSAL_BODY)
)


class Waiting(Enum):
    """What a connection waits for; in this order, they are closed to make room."""

    FOR_REQUEST = "the headers of a request"
    FOR_BODY = "the rest of a body"
    FOR_ANSWER = "the gateway's own answer"


class Connections:
    """The open connections of a server, and the bound on them.

    At the bound, a new connection replaces the one that has waited longest for its caller, so that
    silent connections do not keep others out. If all wait for an answer, only health checks are
    served, on `SPARE_CONNECTIONS` more, and everybody else is refused.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Sockets by their file descriptors.
        self._sockets: dict[int, CountedSocket] = {}
        # When each wait began, by descriptor, in that order.
        self._waits: dict[Waiting, dict[int, float]] = {
            Waiting.FOR_REQUEST: {},
            Waiting.FOR_BODY: {},
        }
        # Descriptors of those that make room, until the event loop has closed them.
        self._closing: set[int] = set()
        self._refused = 0
        self._last_logged = -LOG_INTERVAL_SECONDS

    @property
    def is_crowded(self) -> bool:
        """Whether the spare connections are in use, which are for health checks."""
        return self._staying > self._limit

    @property
    def _staying(self) -> int:
        return len(self._sockets) - len(self._closing)

    def add(self, connection: CountedSocket) -> None:
        """Count a connection, which waits for its first request."""
        self._sockets[connection.fileno()] = connection
        self.mark(connection.fileno(), Waiting.FOR_REQUEST)

    def remove(self, connection: CountedSocket) -> None:
        """Forget a connection that is about to be closed."""
        self._sockets.pop(connection.fileno(), None)
        self._closing.discard(connection.fileno())
        self.mark(connection.fileno(), Waiting.FOR_ANSWER)

    def mark(self, descriptor: int, waiting: Waiting) -> None:
        """Record what a connection waits for from now on."""
        for waits in self._waits.values():
            waits.pop(descriptor, None)
        if waiting is not Waiting.FOR_ANSWER:
            self._waits[waiting][descriptor] = time.monotonic()

    def has_room(self) -> bool:
        """Return whether one more may be accepted, after making room for it if necessary.

        Raises:
            BlockingIOError: There will be, in the next turn of the event loop.
        """
        while self._staying >= self._limit and self.make_room():
            pass
        is_full = len(self._sockets) >= self._limit + SPARE_CONNECTIONS
        if is_full and self._closing:
            raise BlockingIOError
        return not is_full

    def make_room(self) -> bool:
        """Close the connection that has waited longest for its caller; return whether one has."""
        latest = time.monotonic() - MIN_WAIT_SECONDS
        for kind, waits in self._waits.items():
            descriptor, began = next(iter(waits.items()), (-1, latest + 1))
            while began <= latest and _has_sent(self._sockets[descriptor]):
                # It waits for the event loop and not for its caller.
                self.mark(descriptor, kind)
                descriptor, began = next(iter(waits.items()))
            if began <= latest:
                del waits[descriptor]
                self._closing.add(descriptor)
                # The event loop reads the end of the stream, and closes it.
                with suppress(OSError):
                    self._sockets[descriptor].shutdown(socket.SHUT_RDWR)
                return True
        return False

    def log_refusal(self, reason: str) -> None:
        """Log that connections are refused, once in a while."""
        self._refused += 1
        now = time.monotonic()
        if now - self._last_logged >= LOG_INTERVAL_SECONDS:
            logger.warning("%s; refused so far: %d.", reason, self._refused)
            self._last_logged = now


class CountedSocket(socket.socket):
    """An accepted connection."""

    connections: Connections | None = None

    def close(self) -> None:
        if self.connections is not None:
            self.connections.remove(self)
            self.connections = None
        super().close()


class Listener(socket.socket):
    """A listening socket whose connections are counted."""

    connections: Connections

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections = connections
        # Given up when no descriptor is left, to refuse a connection instead of keeping it waiting.
        self._reserve = os.open(os.devnull, os.O_RDONLY)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, or raise `BlockingIOError` to be asked again in the next turn."""
        for _ in range(REFUSALS_PER_TURN):
            try:
                has_room = self.connections.has_room()
                accepted, address = super().accept()
            except OSError as error:
                if error.errno not in OUT_OF_DESCRIPTORS:
                    raise
                self._refuse_without_descriptor()
                continue
            if has_room:
                connection = CountedSocket(
                    accepted.family, accepted.type, accepted.proto, fileno=accepted.detach()
                )
                connection.connections = self.connections
                self.connections.add(connection)
                return connection, address
            _refuse(accepted)
            self.connections.log_refusal("Too many connections (EMBED_MAX_CONNECTIONS)")
        raise BlockingIOError

    def close(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        super().close()

    def _refuse_without_descriptor(self) -> None:
        self.connections.log_refusal("No file descriptor is left (`ulimit -n`)")
        self.connections.make_room()
        if self._reserve >= 0:
            os.close(self._reserve)
        try:
            with suppress(OSError):
                _refuse(super().accept()[0])
        finally:
            try:
                self._reserve = os.open(os.devnull, os.O_RDONLY)
            except OSError:
                self._reserve = -1
                raise BlockingIOError from None


def _has_sent(connection: socket.socket) -> bool:
    """Return whether something has arrived that the event loop has not read yet."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)))
    except OSError:
        return False


def _refuse(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        connection.setblocking(False)
        connection.send(REFUSAL)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors towards the hard limit, and return it.

    systemd's default of 1,024 is for programs that use `select`.
    """
    if sys.platform == "win32":
        return MAX_DESCRIPTORS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = MAX_DESCRIPTORS if hard == unlimited else min(hard, MAX_DESCRIPTORS)
    if soft != unlimited and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower limit, which it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MAX_DESCRIPTORS if soft == unlimited else soft


def connection_limit(max_connections: int, descriptors: int) -> int:
    """Return how many connections fit into this many file descriptors."""
    reserved = RESERVED_DESCRIPTORS + SPARE_CONNECTIONS
    return min(max_connections, max(descriptors - reserved, descriptors // 4))


def open_listeners(host: str, port: int, connections: Connections) -> Sequence[Listener]:
    """Bind to every address of a host; asyncio starts listening.

    Raises:
        OSError: An address cannot be bound, or the host is unknown.
    """
    # Brackets are for URLs, but they are common in settings.
    host = host.removeprefix("[").removesuffix("]")
    flags = socket.AI_PASSIVE
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    listeners: list[Listener] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = Listener(family, kind, protocol, connections=connections)
            listeners.append(listener)
            listener.setblocking(False)
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # `::` means every address, of both families.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            listener.bind(address)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners
