"""The door: under overload, a request is refused before the framework sees it.

The framework takes about a millisecond for a refusal. When more requests come than can be answered,
that time is taken from those that can be. A refusal here takes a few microseconds: there is no task
and no validation, the response is rendered once, and all refusals of a second share a log line.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from .admission import Admission, Limit
from .auth import ApiKeys
from .batching import Lane
from .errors import QueueFullError
from .paths import canonical_path
from .responses import Dialect, choose_request_id, dialect_of, error_response
from .service import EmbeddingService

logger = logging.getLogger(__name__)

EMBEDDING_PATHS = {
    "/",
    "/embed",
    "/v1/embeddings",
    "/v2/embed",
    "/api/embed",
    "/api/embeddings",
}
# The lane is known from the body. Of a larger one, nothing is read: it is taken as bulk documents.
HELD_BYTES = 16 * 1024
# Fields and model names that make a request one of queries, as JSON. A match costs no more than
# the framework's own look at the request.
QUERY_MARKER = re.compile(rb'"query"|[-_]query"')
LOG_SECONDS = 1.0
# How long the rest of a refused body is dropped: a connection that is closed with unread bytes is
# reset, and the caller may lose the response.
LINGER_SECONDS = 1.0
STATUS_LINE = b"HTTP/1.1 429 Too Many Requests\r\n"


class RefusalLog:
    """A log line per second for all requests that were refused with 429."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, path: str) -> None:
        if not self._counts:
            asyncio.get_running_loop().call_later(LOG_SECONDS, self._write)
        self._counts[path] += 1

    def _write(self) -> None:
        paths = ", ".join(f"{path} {count}" for path, count in self._counts.most_common())
        logger.info("status=429 for %d requests: %s", self._counts.total(), paths)
        self._counts.clear()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that is complete but for the headers that differ from request to request."""

    head: bytes
    body: bytes

    @classmethod
    def render(cls, message: str, dialect: Dialect) -> Refusal:
        response = error_response(QueueFullError(message), dialect)
        lines = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        return cls(STATUS_LINE + lines, bytes(response.body))


class Door:
    """What decides about a request by its head, and the log of what is refused."""

    def __init__(self, service: EmbeddingService, keys: ApiKeys) -> None:
        self._service = service
        self._keys = keys
        self._timeout_seconds = service.settings.timeout_seconds
        self._has_origins = bool(service.settings.cors_origins)
        self.log = RefusalLog()
        self.path_of = lru_cache(256)(self._path_of)
        self._render = lru_cache(64)(Refusal.render)

    @property
    def admission(self) -> Admission | None:
        """The bounds of the queue, while requests are answered."""
        return self._service.admission

    def limit(self, lane: Lane, *, is_bulk: bool) -> Limit | None:
        """Return the limit that a request would hit now."""
        admission = self.admission
        if admission is None:
            return None
        return admission.limit_at_the_door(
            lane, is_bulk=is_bulk, timeout_seconds=self._timeout_seconds
        )

    def needs_framework(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Return whether a refusal would not be a plain 429, or the body cannot be read here."""
        names = {name for name, _ in headers}
        if b"content-encoding" in names or (self._has_origins and b"origin" in names):
            return True
        return self._keys.is_required and not self._keys.accept(Headers(raw=headers))

    def refuse(
        self, limit: Limit, lane: Lane, *, path: str, dialect: Dialect, headers: list[bytes]
    ) -> bytes:
        """Count a refusal, and build its response.

        Args:
            limit: The limit that the request hit.
            lane: Its lane.
            path: Its path.
            dialect: The API of its error.
            headers: Lines to add, each with its line end.
        """
        admission = self.admission
        assert admission is not None, "limit() comes first"
        metrics = self._service.metrics
        metrics.requests.labels(path, dialect.value, 429).inc()
        metrics.request_seconds.labels(path).observe(0.0)
        self.log.count(path)
        error = admission.refuse(limit, lane)
        refusal = self._render(error.message, dialect)
        retry_after = b"retry-after: %d\r\n" % (error.retry_after_seconds or 1)
        return b"".join([refusal.head, retry_after, *headers, b"\r\n", refusal.body])

    def _path_of(self, url: bytes) -> str | None:
        """Return the route that embeds what is sent to a URL; None if there is none."""
        raw = url.partition(b"?")[0].decode("ascii", "replace")
        path = canonical_path(raw, self._service.settings.root_path)
        return path if path in EMBEDDING_PATHS else None


class DoorProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the door in front of the application.

    While a lane is full, a small request waits for its body, which tells whether it is a query.
    Then it is refused, or continues as if it had just arrived.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._door: Door | None = app_state.get("door")
        self._path: str | None = None
        self._held: bytearray | None = None
        self._is_dropping = False

    def on_headers_complete(self) -> None:
        self._path = None
        if self._door is None or not self._is_refusable(self._door):
            super().on_headers_complete()
            return
        length = self._announced_length()
        is_bulk = length > HELD_BYTES
        limit = self._door.limit(Lane.DOCUMENT, is_bulk=is_bulk)
        if not is_bulk:
            limit = limit or self._door.limit(Lane.QUERY, is_bulk=False)
        if limit is None or length < 0 or self._door.needs_framework(self.headers):
            super().on_headers_complete()
        elif is_bulk:
            self._refuse(self._door, limit, Lane.DOCUMENT, b"")
            self._is_dropping = True
        elif self.expect_100_continue:  # it sends its body only when it is asked to
            super().on_headers_complete()
        else:
            self._held = bytearray()

    def on_body(self, body: bytes) -> None:
        if self._held is not None:
            self._held += body
        elif not self._is_dropping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_dropping:
            self._is_dropping = False
            return
        if self._held is not None:
            body, self._held = bytes(self._held), None
            if self._is_refused(body):
                return
            super().on_headers_complete()
            super().on_body(body)
        super().on_message_complete()
        admission = self._door.admission if self._door and self._path else None
        if admission is not None and not self.cycle.response_complete:
            state: dict[str, Any] = self.cycle.scope.get("state", {})
            admission.enter(state)

    def _is_refusable(self, door: Door) -> bool:
        """Return whether the request embeds texts, and may be answered here."""
        # uvicorn declares what is None until the first request as never None.
        cycle: Any = self.cycle
        is_first_in_line = cycle is None or cycle.response_complete
        parser: Any = self.parser
        if not is_first_in_line or self.flow.write_paused or parser.should_upgrade():
            return False
        if parser.get_method() == b"POST":
            self._path = door.path_of(self.url)
        return self._path is not None

    def _announced_length(self) -> int:
        """Return the body's length, -1 if it is not known."""
        return int(next((value for name, value in self.headers if name == b"content-length"), -1))

    def _is_refused(self, body: bytes) -> bool:
        """Refuse a small request whose body is complete, if its lane is still full."""
        assert self._door is not None, "it holds the request"
        lane = Lane.QUERY if QUERY_MARKER.search(body) else Lane.DOCUMENT
        limit = self._door.limit(lane, is_bulk=False)
        if limit is not None:
            self._refuse(self._door, limit, lane, body)
        return limit is not None

    def _refuse(self, door: Door, limit: Limit, lane: Lane, body: bytes) -> None:
        path = self._path or ""
        dialect = dialect_of({"path": path})
        if path == "/embed" and b'"inputs"' in body and b'"texts"' not in body:
            dialect = Dialect.TEI
        sent_id = next((value for name, value in self.headers if name == b"x-request-id"), b"")
        request_id = choose_request_id(sent_id.decode("latin-1"))
        lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        lines.append(b"x-request-id: %b\r\n" % request_id.encode())
        parser: Any = self.parser
        is_kept = bool(body) and parser.should_keep_alive()
        if not is_kept:
            lines.append(b"connection: close\r\n")
        self.transport.write(door.refuse(limit, lane, path=path, dialect=dialect, headers=lines))
        self.on_response_complete()
        if not is_kept:
            self._close_soon(has_rest=not body)

    def _close_soon(self, *, has_rest: bool) -> None:
        if not has_rest:
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
