"""What every request passes before its route: request ID, log line, HEAD, API key, body limit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import ApiKeys, is_health_path, is_open
from .dialects import dialect_of, error_response
from .door import RefusalLog
from .errors import BodyTooLargeError, EmbeddingServerError, RequestTimeoutError, shorten
from .memory import MemoryBudget
from .responses import choose_request_id
from .service import EmbeddingService

logger: logging.Logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"


class RequestLog:
    """Middleware that logs and counts every request, and sets its `X-Request-ID`.

    The ID is the caller's own if it sent one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: EmbeddingService,
        routes: Sequence[BaseRoute],
        refusals: RefusalLog,
    ) -> None:
        self._app = app
        self._service = service
        self._refusals = refusals
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = choose_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER, ""))
        began, status = time.perf_counter(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (REQUEST_ID_HEADER.encode(), request_id.encode())]
                if self._service.stopping:
                    # Callers that keep connections open reconnect, to another gateway.
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._record(scope, status, request_id, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, request_id: str, seconds: float) -> None:
        # The route's pattern instead of the path: unknown paths must not create endless metrics.
        route = getattr(scope.get("route") or self._find_route(scope), "path", "unknown")
        dialect = dialect_of(scope)
        self._service.metrics.requests.labels(route, dialect, status).inc()
        self._service.metrics.request_seconds.labels(route).observe(seconds)
        state: dict[str, Any] = scope.get("state", {})
        key = state.get("key", "")
        if key:
            self._service.metrics.key_requests.labels(key, status).inc()
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self._refusals.count(route, key)
            return
        fields: dict[str, Any] = {
            "method": scope["method"],
            "path": shorten(quote(scope["path"])),
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "request_id": request_id,
            "dialect": dialect,
            **({"key": key} if key else {}),
            **state.get("log", {}),
        }
        level = logging.DEBUG if is_health_path(scope["path"]) else logging.INFO
        line = " ".join([f"{name}={value}" for name, value in fields.items()])
        logger.log(level, line, extra=fields)

    def _find_route(self, scope: Scope) -> BaseRoute | None:
        """Find the route that a refused request would have reached."""
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        matches = [(route.matches(scope)[0], route) for route in self._routes]
        return next((route for match, route in matches if match is Match.FULL), None)


class HeadRequests:
    """Middleware that answers HEAD like GET, without the body (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # A copy: the server still has to know that the response to this request has no body.
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send_without_body)
        finally:
            scope["route"] = as_get.get("route")


class Guard:
    """Middleware that refuses callers without a key, and bodies that are too large or too slow.

    It does so before they cost memory or time, and refuses what has no room. A request's part of
    the memory budget begins here, grows with what the request takes, and ends here: when the last
    byte of its answer has left, or its caller is gone.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: ApiKeys,
        max_body_bytes: int,
        read_timeout_seconds: float,
        memory: MemoryBudget,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._read_timeout_seconds = read_timeout_seconds
        self._memory = memory
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        try:
            headers = Headers(scope=scope)
            if is_open(scope["method"], scope["path"]):
                # Health checks show addresses and paths only to callers who may know them.
                scope["state"]["is_trusted"] = self._keys.accept(headers)
            else:
                scope["state"]["key"] = self._keys.check(headers)
            length = int(headers.get("content-length", 0))
            self._check_length(length)
            reservation = self._memory.reserve(length) if scope["method"] == "POST" else None
        except EmbeddingServerError as error:
            await error_response(error, dialect_of(scope))(scope, receive, send)
            return
        if reservation is None:
            await self._app(scope, receive, send)
            return
        scope["state"]["memory"] = reservation
        with reservation:
            await self._app(scope, self._bounded(scope, receive), send)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Bound the size of a body and the time that it takes to arrive."""
        received, is_complete = 0, False
        # Servers other than the gateway's own do not tell when the first byte arrived.
        began = scope["state"].setdefault("began", asyncio.get_running_loop().time())
        end = began + self._read_timeout_seconds
        # The gateway's own server waits for small bodies, within the same time.
        is_whole: bool = scope["state"].get("is_whole", False)

        async def receive_bounded() -> Message:
            nonlocal received, is_complete
            if is_complete:  # what comes next is the end of the connection
                return await receive()
            try:
                if is_whole:
                    message = await receive()
                else:
                    async with asyncio.timeout_at(end):
                        message = await receive()
            except TimeoutError:
                msg = (
                    f"The body did not arrive within {self._read_timeout_seconds:g} s "
                    "(EMBED_READ_TIMEOUT_S). Send fewer texts per request."
                )
                raise RequestTimeoutError(msg) from None
            is_complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            self._check_length(received)
            return message

        return receive_bounded

    def _check_length(self, length: int) -> None:
        if length > self._max_body_bytes:
            raise BodyTooLargeError(self._max_body_bytes)
