"""Which status becomes which error. No I/O."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from .errors import (
    AuthenticationError,
    EmbeddingError,
    EmbeddingTimeoutError,
    GatewayError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RequestTooLargeError,
)
from .retries import parse_retry_after
from .settings import ClientSettings
from .wire import WireResponse

__all__ = ["raise_for_status"]

# Of the 5xx, 501 and 505 would answer the same again. 502 is the gateway's word for an unusable
# vector from the model, which another run of the model may well not give.
RETRYABLE_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})
MAX_SHOWN_CHARACTERS = 300
_ERROR_OF_STATUS: dict[int, type[EmbeddingError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: ModelNotFoundError,
    408: EmbeddingTimeoutError,
    413: RequestTooLargeError,
    422: InvalidRequestError,
    429: OverloadedError,
    503: OverloadedError,
    504: EmbeddingTimeoutError,
}
_HINTS = {
    401: "set `api_key` or QWEN3_TRITON_API_KEY to one of the gateway's keys",
    404: "check `model`, and that `base_url` points at the gateway without `/embed`",
}
_TEXT_POSITION = re.compile(r"^texts\W(\d+)")


def raise_for_status(response: WireResponse, settings: ClientSettings, count: int) -> None:
    """Raise the error that an unsuccessful answer to a request of `count` texts stands for."""
    status = response.status
    if status == 200:  # noqa: PLR2004
        return
    server_message, where = _server_message(response.content)
    server_message = settings.redact(server_message)
    message = f"the gateway at {settings.base_url} answered {status}"
    message += f": {server_message}" if server_message else ""
    message += f" ({_HINTS[status]})" if status in _HINTS else ""
    raise _ERROR_OF_STATUS.get(status, GatewayError)(
        message,
        status=status,
        server_message=server_message or None,
        request_id=response.headers.get("x-request-id"),
        retry_after_seconds=parse_retry_after(response.headers),
        retryable=status in RETRYABLE_STATUS,
        positions=_named_positions(where, count),
    )


def _server_message(content: bytes) -> tuple[str, str]:
    """Return what the gateway, or a proxy before it, said, and which parameter it named."""
    try:
        body: object = json.loads(content)
    except ValueError:
        return " ".join(content.decode("utf-8", "replace").split())[:MAX_SHOWN_CHARACTERS], ""
    if not isinstance(body, dict):
        return "", ""
    fields = cast("dict[str, Any]", body)
    error = fields.get("error")
    if isinstance(error, dict):
        inner = cast("dict[str, Any]", error)
        return str(inner.get("message", "")), str(inner.get("param") or "")
    return str(fields.get("detail") or error or ""), ""


def _named_positions(where: str, count: int) -> tuple[int, ...]:
    """Return the text that the gateway's `param` names, as in `texts[3]`."""
    found = _TEXT_POSITION.search(where)
    position = int(found.group(1)) if found else count
    return (position,) if position < count else ()
