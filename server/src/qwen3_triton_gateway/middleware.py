"""What every request passes before it reaches a route: an id, the body limit, the key."""

from __future__ import annotations

import logging
import secrets
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import BodyTooLargeError, EmbeddingServerError, UnauthorizedError
from .responses import error_response
from .settings import Settings

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
MAX_REQUEST_ID_LENGTH = 128
OPEN_PATHS = ("/health", "/v1/health")


class RequestId:
    """Give every answer an `X-Request-ID`, the caller's own where it sent one, and log a line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        usable = sent.isprintable() and 0 < len(sent) <= MAX_REQUEST_ID_LENGTH
        request_id = sent if usable else uuid.uuid4().hex
        began, status = time.perf_counter(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            level = logging.DEBUG if scope["path"].startswith(OPEN_PATHS) else logging.INFO
            logger.log(
                level,
                "%s %s %d %.1f ms request_id=%s",
                scope["method"],
                scope["path"],
                status,
                (time.perf_counter() - began) * 1000,
                request_id,
            )


class Guard:
    """Refuse what must not cost memory or time: bodies over the limit, callers without a key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._max_body_bytes = settings.max_body_bytes
        self._keys = [key.get_secret_value().encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            if not scope["path"].startswith(OPEN_PATHS):
                self._check_key(headers.get("authorization", ""))
            self._check_length(int(headers.get("content-length", 0)))
        except EmbeddingServerError as error:
            await error_response(error)(scope, receive, send)
            return
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            self._check_length(received)
            return message

        await self._app(scope, receive_bounded, send)

    def _check_length(self, length: int) -> None:
        if length > self._max_body_bytes:
            msg = (
                f"The body is larger than {self._max_body_bytes} bytes (EMBED_MAX_BODY_BYTES); "
                "send fewer texts in a request."
            )
            raise BodyTooLargeError(msg)

    def _check_key(self, authorization: str) -> None:
        if not self._keys:
            return
        # Some clients send the bare key (LlamaIndex's TextEmbeddingsInference).
        shown = authorization.removeprefix("Bearer ").strip().encode()
        # Every key is compared, so that the time tells nothing about which one came close.
        matches = [secrets.compare_digest(shown, key) for key in self._keys]
        if not any(matches):
            msg = "Missing or wrong API key: send it as `Authorization: Bearer KEY`."
            raise UnauthorizedError(msg)
