"""The protocol of a connection, with bounds on what a caller may send, and how slowly.

It is built in three layers, each a class: this one bounds a request until it is complete,
`door_protocol` refuses one while its lane is full, and `answer_protocol` writes the answer.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httptools
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from .auth import is_health_path
from .chunk_sizes import ChunkSizes
from .connections import Connections, Waiting
from .dialects import Dialect, dialect_of, error_response
from .door_protocol import HOST, DoorProtocol
from .errors import (
    BodyTooLargeError,
    EmbeddingServerError,
    HeadersTooLargeError,
    InvalidRequestError,
    QueueFullError,
    RequestTimeoutError,
)
from .responses import raw_head

logger: logging.Logger = logging.getLogger(__name__)

# Headers are fed in pieces, so that what is between two counts is small.
PIECE_BYTES = 16 * 1024
# A request enters the framework once its body is complete, or larger than this: the framework takes
# a millisecond for each, which slow callers would take from others by the thousand.
EARLY_BYTES = 64 * 1024
# Chunked bodies of one byte a chunk have five bytes around each.
MAX_FRAMING_RATIO = 8
BODY_GRACE_SECONDS = 1.0
END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HttpBounds:
    """What a caller may send, and how slowly.

    Attributes:
        header_bytes: Request line and headers together; also trailers.
        headers: Number of headers.
        body_bytes: A body that announces more is refused without waiting for it.
        header_seconds: From the first byte to the end of the headers.
        body_seconds: From the first byte to the end of the body.
    """

    header_bytes: int = 64 * 1024
    headers: int = 100
    body_bytes: int = 8 * 1024 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 60.0


class Part(Enum):
    """The part of a request that is read next."""

    START = "the first byte"
    HEAD = "request line and headers"
    BODY = "body and trailers"


class GatewayProtocol(DoorProtocol):
    """The protocol for `uvicorn.Config(http=...)`."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        bounds: HttpBounds | None = None,
        connections: Connections | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._whole_app: Any = self.app  # pyright: ignore[reportUnknownMemberType]
        self._bounds = bounds or HttpBounds()
        self._connections = connections
        self._part = Part.START
        self._began: float | None = None
        self._head_bytes = 0
        self._framing_bytes = 0
        self._allowed_framing = 0
        self._offers_upgrade = False
        self._early: bytearray | None = None
        self._chunks: ChunkSizes | None = None
        self._refusal: EmbeddingServerError | None = None
        self._has_refused = False
        self._read_timer: asyncio.TimerHandle | None = None
        self._timed: object = None
        self._waiting = Waiting.FOR_REQUEST

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        # A connection opened in advance is idle, like one between two requests.
        self.timeout_keep_alive_task: asyncio.TimerHandle | None = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        if self._has_refused:
            return
        if self._began is None and self._refuse_at_once(data):
            if self._connections is not None:
                self._connections.mark(self._descriptor, Waiting.FOR_REQUEST)
            return
        self._unset_keepalive_if_required()
        if self._began is None:
            self._began = self.loop.time()
        start = 0
        while start < len(data) and not self._has_refused:
            stop = len(data)
            if self._part is not Part.BODY:
                stop = min(stop, start + PIECE_BYTES)
                # A piece ends with its head, so that it is known where a chunked body begins.
                end = data.find(END_OF_HEAD, start, stop)
                stop = stop if end < 0 else end + len(END_OF_HEAD)
            self._feed(data[start:stop])
            start = stop
        self._update_wait()

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep the connection if an answer is due: the caller may only have stopped sending.

        It may also be gone, which looks the same until something is sent. So it gets a `100
        Continue` if the answer takes long; HTTP/1.0, which nginx speaks by default, has none, and
        its callers are taken as gone.
        """
        is_due = self._is_answer_due and self._part is Part.START and self.scheme == "http"
        if not is_due or self.scope["http_version"] == "1.0":
            return False
        self.cycle.keep_alive = False
        self._ask_whether_gone()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    # What httptools calls.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._began is None:  # pipelined
            self._began = self.loop.time()
        self._part = Part.HEAD
        self._head_bytes = 0
        self._offers_upgrade = False
        # The request's deadline begins with its first byte.
        self.scope.setdefault("state", {})["began"] = self._began

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part is Part.BODY:
            return  # trailers, which nothing here reads
        if len(self.headers) >= self._bounds.headers:
            msg = f"The request has more than {self._bounds.headers} headers."
            raise self._refuse_with(HeadersTooLargeError(msg))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and not self._offers_upgrade:
            if self.parser.get_method() == b"CONNECT":
                raise self._refuse_with(_malformed())
            self._offers_upgrade = True
            return
        self._check_host()
        fields = dict(self.headers)
        if self._can_wait_for_body(fields):
            self._early = bytearray()
        else:
            self._start_request()
        self._part = Part.BODY
        self._chunks = ChunkSizes() if b"transfer-encoding" in fields else None
        self._framing_bytes = 0
        self._allowed_framing = self._bounds.header_bytes

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        self._allowed_framing += MAX_FRAMING_RATIO * len(body)
        if self._early is None:
            super().on_body(body)
            return
        self._early += body
        if len(self._early) > EARLY_BYTES:
            self._start_request()

    def on_message_complete(self) -> None:
        if self._offers_upgrade:
            return
        if self._early is not None:
            self.scope.setdefault("state", {})["is_whole"] = True
            self._start_request()
        self._part = Part.START
        self._chunks = None
        self._began = None
        self._head_bytes = 0
        super().on_message_complete()

    # What uvicorn calls.

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_wait()

    def send_400_response(self, msg: str) -> None:
        self._reject(_malformed())

    def _can_wait_for_body(self, fields: dict[bytes, bytes]) -> bool:
        """Return whether nothing can be said about a request before its body is there."""
        has_body = b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"
        # A caller that expects `100 Continue` waits too.
        if not has_body or self.expect_100_continue:
            return False
        length = int(fields.get(b"content-length", -1))
        door = self._door
        path = door.path_of(self.url) if door is not None and not door.is_calm else None
        if door is not None and path is not None:
            caller = door.caller_of(self.headers)
            if caller is not None and door.limit_of_any(path, caller, length)[0]:
                return False
        return length <= self._bounds.body_bytes

    def _check_host(self) -> None:
        """Check that a request names its host once, as HTTP/1.1 demands (RFC 9112, 3.2)."""
        hosts = [value for name, value in self.headers if name == b"host"]
        allowed = {1} if self.parser.get_http_version() == "1.1" else {0, 1}
        if len(hosts) not in allowed:
            msg = f"The request has {len(hosts)} `Host` headers. Send one."
        elif hosts and not HOST.fullmatch(hosts[0].strip()):
            msg = "The `Host` header is not a host, with or without a port."
        else:
            return
        raise self._refuse_with(InvalidRequestError(msg, code="malformed_request"))

    def _start_request(self) -> None:
        """Hand a request to the door and the framework, with what has arrived of its body."""
        path = self.url.partition(b"?")[0].decode("ascii")
        is_crowded = self._connections is not None and self._connections.is_crowded
        self.app: Any = (
            _refuse_crowd if is_crowded and not is_health_path(path) else self._whole_app
        )
        super().on_headers_complete()
        early, self._early = self._early, None
        if early:
            super().on_body(bytes(early))

    def _feed(self, data: bytes) -> None:
        """Feed the parser, and count what it consumed without giving it back."""
        part, chunks = self._part, self._chunks
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._reject(self._refusal or _malformed())
            return
        if self._chunks is not chunks and (part is Part.BODY or not data.endswith(END_OF_HEAD)):
            self._chunks = None  # it began somewhere in these bytes
        elif (
            chunks is not None
            and self._chunks is chunks
            and chunks.read(data) > self._bounds.body_bytes
        ):
            self._reject(BodyTooLargeError(self._bounds.body_bytes))
            return
        if part is Part.BODY and self._part is Part.BODY:
            self._framing_bytes += len(data)
            if self._framing_bytes > self._allowed_framing:
                self._reject(_malformed())
        elif part is not Part.BODY and self._part is part:
            self._head_bytes += len(data)
            if self._head_bytes > self._bounds.header_bytes:
                msg = (
                    "The request line and headers are larger than "
                    f"{self._bounds.header_bytes} bytes."
                )
                self._reject(HeadersTooLargeError(msg))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the request as if it offered no other protocol (RFC 9110, 7.8).

        The parser ends an offer at its headers. A second one gets them without the offer, then the
        body.
        """
        if not self._offers_upgrade:
            self._reject(_malformed())
            return
        version = b"HTTP/%b" % self.parser.get_http_version().encode()
        line = b" ".join([self.parser.get_method(), self.url, version])
        headers = [b": ".join(header) for header in self.headers if header[0] != b"upgrade"]
        self.parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._feed(b"\r\n".join([line, *headers, b"", b""]))
        if rest and not self._has_refused:
            self._feed(rest)

    @property
    def _is_started(self) -> bool:
        """Whether the request whose body is read has left the protocol."""
        return self._part is Part.BODY and self._early is None and self._held is None

    def _update_wait(self) -> None:
        """Record what the connection waits for now, and until when."""
        if self._part is Part.BODY:
            waiting = Waiting.FOR_BODY
        else:
            waiting = Waiting.FOR_ANSWER if self._is_answer_due else Waiting.FOR_REQUEST
        if self._connections is not None and waiting is not self._waiting:
            self._connections.mark(self._descriptor, waiting)
        self._waiting = waiting
        self._set_read_timer()

    def _set_read_timer(self) -> None:
        if self._read_timer is not None:
            if self._timed == (self._part, self._began, self._is_started):
                return
            self._read_timer.cancel()
            self._read_timer = None
        if self._began is None or self._has_refused:
            return
        seconds = self._bounds.header_seconds
        if self._part is Part.BODY:
            seconds = self._bounds.body_seconds
            if self._is_started:  # the application answers first
                seconds += BODY_GRACE_SECONDS
        self._timed = (self._part, self._began, self._is_started)
        self._read_timer = self.loop.call_at(self._began + seconds, self._end_slow_request)

    def _end_slow_request(self) -> None:
        self._read_timer = None
        if self.flow.read_paused:  # the gateway is the slow one
            self._began = self.loop.time()
            self._set_read_timer()
        elif self._part is not Part.START:
            msg = "The request did not arrive in time. Send it faster, or in smaller parts."
            self._reject(RequestTimeoutError(msg))
        elif not self._is_answer_due:
            self.transport.close()

    def _refuse_with(self, error: EmbeddingServerError) -> EmbeddingServerError:
        """Record an error, and return it to be raised through the parser."""
        self._refusal = error
        return error

    def _count(self, error: EmbeddingServerError) -> Dialect:
        """Count a refusal, and return the dialect of its response."""
        # Before the end of the headers, there may be no path.
        path = self._door.path_of(self.url) if self._door and self._part is Part.BODY else None
        dialect = dialect_of({"path": path}) if path else Dialect.NATIVE
        if self._door is not None:
            self._door.count(path or "unknown", dialect, error.status)
        return dialect

    def _reject(self, error: EmbeddingServerError) -> None:
        """Answer with the error's JSON and a request ID, and close the connection."""
        self._has_refused = True
        if self._is_started and not self._is_answer_due:
            self.transport.close()  # it has its answer
            return
        if self._is_answer_due:
            if not self._is_started:
                self.cycle.keep_alive = False  # closes after the answers that are due
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started or self.pipeline:
                self.transport.close()
                return
        request_id = uuid.uuid4().hex
        logger.info("status=%d request_id=%s %s", error.status, request_id, error.message)
        response = error_response(error, self._count(error))
        response.headers.update({"x-request-id": request_id, "connection": "close"})
        self.transport.write(raw_head(response) + b"\r\n" + bytes(response.body))
        self._close_soon(has_rest=True)


def _malformed() -> InvalidRequestError:
    return InvalidRequestError(
        "The request is not valid HTTP. Check its request line, URL and headers.",
        code="malformed_request",
    )


async def _refuse_crowd(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in place of the application while the spare connections are in use."""
    msg = "The gateway has no connection left but for health checks. Retry later."
    response = error_response(QueueFullError(msg, retry_after_seconds=1), dialect_of(scope))
    response.headers["connection"] = "close"
    await response(scope, receive, send)
