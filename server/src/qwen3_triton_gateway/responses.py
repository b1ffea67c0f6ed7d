"""JSON on the wire, and errors as answers in the shape of each dialect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Scope

from .encoding import EncodingFormat, encode_vectors
from .errors import EmbeddingServerError, UnauthorizedError
from .tensors import Float32Matrix

# Writing 2,048 vectors takes a tenth of a second; other requests get a turn after so many.
ROWS_PER_TURN = 64


class Dialect(StrEnum):
    """Whose words a request and its answer use."""

    NATIVE = "native"
    OPENAI = "openai"
    TEI = "tei"


TEXTS_FIELDS = {Dialect.NATIVE: "texts", Dialect.OPENAI: "input", Dialect.TEI: "inputs"}
# text-embeddings-inference, `router/src/http/types.rs`: its `ErrorType`s.
TEI_ERROR_TYPES = {429: "overloaded", 502: "backend", 503: "unhealthy", 504: "backend"}


class JsonResponse(Response):
    """Write JSON by orjson, float32 arrays included, without a Python object for each float."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def render_vectors(
    vectors: Float32Matrix,
    encoding_format: EncodingFormat,
    wrap: Callable[[int, Any], Any] | None = None,
) -> orjson.Fragment:
    """Write vectors as a JSON array, letting other requests run meanwhile.

    `wrap` makes an item of a row's index and its encoded vector; without it the vector is the item.
    """
    parts: list[bytes] = []
    for start in range(0, len(vectors), ROWS_PER_TURN):
        rows: Any = encode_vectors(vectors[start : start + ROWS_PER_TURN], encoding_format)
        items = rows if wrap is None else [wrap(start + i, row) for i, row in enumerate(rows)]
        parts.append(orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        if len(vectors) > ROWS_PER_TURN:
            await asyncio.sleep(0)
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")


def dialect_of(scope: Scope) -> Dialect:
    """Tell a request's dialect: by its path, until its route has seen its body."""
    known: Dialect | None = scope.get("state", {}).get("dialect")
    if known is not None:
        return known
    if scope["path"].startswith("/v1/"):
        return Dialect.OPENAI
    return Dialect.TEI if scope["path"] in {"/", "/tokenize"} else Dialect.NATIVE


def error_response(error: EmbeddingServerError, dialect: Dialect) -> JsonResponse:
    """Render an error as the clients of a dialect read it."""
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return JsonResponse(_error_body(error, dialect), error.status, headers)


def _error_body(error: EmbeddingServerError, dialect: Dialect) -> dict[str, Any]:
    if dialect is Dialect.TEI:
        kind = TEI_ERROR_TYPES.get(error.status, "validation")
        return {"error": error.message, "error_type": kind}
    param = error.param
    if error.index is not None:
        param = f"{TEXTS_FIELDS[dialect]}[{error.index}]"
    envelope = {
        "message": error.message,
        "type": error.error_type,
        "code": error.code,
        "param": param,
    }
    if dialect is Dialect.OPENAI:
        return {"error": envelope}
    # The runbook's callers read `detail`.
    return {"error": envelope, "detail": error.message}
