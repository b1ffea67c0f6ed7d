"""JSON on the wire: vectors without a Python object per float, and errors in each dialect."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Scope

from .errors import EmbeddingServerError, UnauthorizedError, UnsupportedEncodingError
from .tensors import Float32Matrix

EncodingFormat: TypeAlias = Literal["float", "base64"]

# Encoding 2,048 vectors takes a tenth of a second; other requests get a turn after this many.
ROWS_PER_TURN = 64
REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Dialect(StrEnum):
    """The API that a request and its answer follow."""

    NATIVE = "native"
    OPENAI = "openai"
    TEI = "tei"
    OLLAMA = "ollama"
    COHERE = "cohere"


TEXTS_FIELDS = {Dialect.NATIVE: "texts", Dialect.OPENAI: "input"}
PREFIXES = {"/v1/": Dialect.OPENAI, "/api/": Dialect.OLLAMA, "/v2/": Dialect.COHERE}
# `ErrorType` in text-embeddings-inference, `router/src/http/types.rs`.
TEI_ERROR_TYPES = {429: "overloaded", 502: "backend", 503: "unhealthy", 504: "backend"}


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str | None
    param: str | None


class ErrorResponse(BaseModel):
    """A native error; `detail` repeats the message for callers of the runbook's gateway."""

    error: ErrorDetail
    detail: str


class OpenAIErrorResponse(BaseModel):
    error: ErrorDetail


class TeiErrorResponse(BaseModel):
    error: str
    error_type: str


class OllamaErrorResponse(BaseModel):
    error: str


class CohereErrorResponse(BaseModel):
    message: str


class JsonResponse(Response):
    """A JSON response written by orjson, which reads numpy arrays directly."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_vectors(
    vectors: Float32Matrix, encoding_format: EncodingFormat
) -> Float32Matrix | list[orjson.Fragment]:
    """Encode rows for orjson: the array itself, or base64 of little-endian float32.

    Both forms hold the same bits: orjson writes the shortest decimal that parses to the same
    float32.
    """
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    if encoding_format == "float":
        return rows
    # Already JSON: base64 contains nothing that needs an escape.
    return [orjson.Fragment(b'"' + base64.b64encode(row) + b'"') for row in rows]


async def render_vectors(
    vectors: Float32Matrix,
    encoding_format: EncodingFormat,
    wrap: Callable[[int, Any], Any] | None = None,
) -> orjson.Fragment:
    """Render vectors as a JSON array, yielding to other requests between chunks of rows.

    Args:
        vectors: Float32, of shape `(n, dimensions)`.
        encoding_format: Each vector as an array of numbers, or as a base64 string.
        wrap: Builds an item from a row's index and its encoded vector; without it, the encoded
            vector is the item.
    """
    parts: list[bytes] = []
    for start in range(0, len(vectors), ROWS_PER_TURN):
        rows: Any = encode_vectors(vectors[start : start + ROWS_PER_TURN], encoding_format)
        items = rows if wrap is None else [wrap(start + i, row) for i, row in enumerate(rows)]
        parts.append(orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        if len(vectors) > ROWS_PER_TURN:
            await asyncio.sleep(0)
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")


def choose_request_id(sent: str) -> str:
    """Use the caller's ID if it is safe in a header and in a log line, else create one."""
    return sent if REQUEST_ID.fullmatch(sent) else secrets.token_hex(16)


def dialect_of(scope: Scope) -> Dialect:
    """Determine a request's dialect: by its path, until its route has read the body."""
    dialect: Dialect | None = scope.get("state", {}).get("dialect")
    if dialect is not None:
        return dialect
    for prefix, of_path in PREFIXES.items():
        if scope["path"].startswith(prefix):
            return of_path
    return Dialect.TEI if scope["path"] in {"/", "/tokenize"} else Dialect.NATIVE


def error_response(error: EmbeddingServerError, dialect: Dialect) -> JsonResponse:
    """Render an error the way clients of a dialect expect it."""
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, UnsupportedEncodingError):
        headers["Accept-Encoding"] = "gzip, deflate, zstd"
    return JsonResponse(_error_body(error, dialect), error.status, headers)


def _error_body(error: EmbeddingServerError, dialect: Dialect) -> dict[str, Any]:
    if dialect is Dialect.TEI:
        kind = TEI_ERROR_TYPES.get(error.status, "validation")
        return {"error": error.message, "error_type": kind}
    if dialect is Dialect.OLLAMA:
        return {"error": error.message}
    if dialect is Dialect.COHERE:
        return {"message": error.message}
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
