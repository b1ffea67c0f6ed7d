"""JSON on the wire, and errors as answers."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from .errors import EmbeddingServerError, UnauthorizedError


class JsonResponse(Response):
    """Write JSON by orjson, float32 arrays included, without a Python object for each float."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def error_response(error: EmbeddingServerError) -> JsonResponse:
    """Render an error: OpenAI's envelope, and `detail` as the runbook's callers read it."""
    envelope = {
        "message": error.message,
        "type": error.error_type,
        "code": error.code,
        "param": error.param,
    }
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return JsonResponse({"error": envelope, "detail": error.message}, error.status, headers)
