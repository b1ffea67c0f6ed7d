"""The APIs that a request may follow, and how each writes an error."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel
from starlette.types import Scope

from .errors import EmbeddingServerError, UnauthorizedError, UnsupportedEncodingError
from .responses import JsonResponse


class Dialect(StrEnum):
    """The API that a request and its answer follow."""

    NATIVE = "native"
    OPENAI = "openai"
    TEI = "tei"
    OLLAMA = "ollama"
    COHERE = "cohere"
    RERANK = "rerank"
    JINA = "jina"
    NIM = "nim"


TEXTS_FIELDS = {Dialect.NATIVE: "texts", Dialect.OPENAI: "input"}
# Where the prefix does not tell.
PATHS = {
    "/": Dialect.TEI,
    "/tokenize": Dialect.TEI,
    "/rerank": Dialect.RERANK,
    "/v1/rerank": Dialect.JINA,
    "/v2/rerank": Dialect.JINA,
    "/v1/ranking": Dialect.NIM,
    "/score": Dialect.OPENAI,
}
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


class RerankErrorResponse(TeiErrorResponse):
    """TEI's error, with what names the text at fault."""

    code: str | None
    param: str | None


class JinaErrorResponse(BaseModel):
    """An error in Cohere's shape and in Jina's, whose clients call the same paths."""

    message: str
    detail: str


class NimErrorDetail(BaseModel):
    code: str | None
    param: str | None


class NimErrorResponse(BaseModel):
    """NVIDIA NIM's error, whose clients read `message`; its `detail` is an object, often empty."""

    object: Literal["error"]
    message: str
    type: str
    detail: NimErrorDetail


class OllamaErrorResponse(BaseModel):
    error: str


class CohereErrorResponse(BaseModel):
    message: str


def dialect_of(scope: Scope) -> Dialect:
    """Determine a request's dialect: by its path, until its route has read the body."""
    dialect: Dialect | None = scope.get("state", {}).get("dialect")
    if dialect is not None:
        return dialect
    path = scope["path"]
    by_prefix = (of_path for prefix, of_path in PREFIXES.items() if path.startswith(prefix))
    return PATHS.get(path) or next(by_prefix, Dialect.NATIVE)


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
    message = error.message
    detail = {"code": error.code, "param": error.param}
    body: dict[str, Any]
    match dialect:
        case Dialect.TEI:
            body = _tei_error(error)
        case Dialect.RERANK:
            body = _tei_error(error) | detail
        case Dialect.JINA:
            # Cohere's clients read `message`, Jina's and Voyage's `detail`. They call the same
            # paths, and a request that failed may not tell them apart.
            body = {"message": message, "detail": message}
        case Dialect.COHERE:
            body = {"message": message}
        case Dialect.NIM:
            kind = error.error_type
            body = {"object": "error", "message": message, "type": kind, "detail": detail}
        case Dialect.OLLAMA:
            body = {"error": message}
        case Dialect.OPENAI:
            body = {"error": _openai_error(error, dialect)}
        case Dialect.NATIVE:
            # The runbook's callers read `detail`.
            body = {"error": _openai_error(error, dialect), "detail": message}
    return body


def _tei_error(error: EmbeddingServerError) -> dict[str, Any]:
    kind = TEI_ERROR_TYPES.get(error.status, "validation")
    return {"error": error.message, "error_type": kind}


def _openai_error(error: EmbeddingServerError, dialect: Dialect) -> dict[str, Any]:
    param = error.param
    if error.index is not None and param is None:
        param = f"{TEXTS_FIELDS[dialect]}[{error.index}]"
    return {
        "message": error.message,
        "type": error.error_type,
        "code": error.code,
        "param": param,
    }
