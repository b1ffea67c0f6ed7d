"""The gateway's native dialect: requests as bytes, responses as vectors or errors. No I/O."""

from __future__ import annotations

import email.utils
import json
import re
import sys
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Generic, TypeVar, cast, get_origin
from urllib.parse import urlsplit

import orjson
import pybase64

from ._version import __version__
from .errors import (
    AuthenticationError,
    BadAnswerError,
    EmbeddingConnectionError,
    EmbeddingError,
    EmbeddingTimeoutError,
    GatewayError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RequestTooLargeError,
)
from .results import Vector, vector_defect
from .settings import ClientSettings, InputType

Item = TypeVar("Item")
Content = TypeVar("Content", dict[str, Any], list[Any])

USER_AGENT = f"qwen3-triton-client/{__version__}"
# The other 5xx codes, such as 501 and 505, would be the same on a retry. 502 means that the model
# returned an unusable vector, which it may well not do again.
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
    401: "Set `api_key` or QWEN3_TRITON_API_KEY to one of the gateway's keys.",
    404: "Check `model`, and that `base_url` is the gateway's address without `/embed`.",
}
# With this code, the gateway itself says which models it serves and how to serve others.
_MODEL_NOT_FOUND = "model_not_found"
_TEXT_POSITION = re.compile(r"^texts\W(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """How the texts of one call are embedded; None leaves the choice to the gateway."""

    input_type: InputType = "document"
    instruction: str | None = None
    dimensions: int | None = None
    truncate: bool | None = None


@dataclass(frozen=True, slots=True)
class WireRequest:
    """An HTTP request."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)  # one of them carries the key
    content: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class WireResponse:
    """An HTTP response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class BatchAnswer(Generic[Item]):
    """The gateway's answer to one batch of texts.

    Attributes:
        items: The vector or the raw score of each text, in the order of the request.
        dimensions: Length of the vectors; 0 for scores.
        truncated: Positions in the request.
    """

    items: list[Item]
    dimensions: int = 0
    model: str = ""
    fingerprint: str = ""
    prompt_tokens: int = 0
    truncated: tuple[int, ...] = ()


def embed_request(
    settings: ClientSettings, options: EmbedOptions, texts: tuple[str, ...]
) -> WireRequest:
    """Build the request for a batch. Texts are sent unchanged, to the byte."""
    body: dict[str, Any] = {
        "texts": texts,
        "input_type": options.input_type,
        "encoding_format": "base64",
    }
    optional = {
        "model": settings.model,
        "instruction": options.instruction,
        "dimensions": options.dimensions,
        "truncate": options.truncate,
    }
    body.update((name, value) for name, value in optional.items() if value is not None)
    return post_request(settings, "/embed", body)


def post_request(settings: ClientSettings, path: str, body: Mapping[str, Any]) -> WireRequest:
    """Build a request with a JSON body."""
    headers = {"Content-Type": "application/json", **_headers(settings)}
    return WireRequest("POST", f"{settings.base_url}{path}", headers, orjson.dumps(body))


def tokenizer_request(settings: ClientSettings) -> WireRequest:
    """Build the request for the served model's `tokenizer.json`."""
    return WireRequest("GET", f"{settings.base_url}/tokenizer", _headers(settings))


def info_request(settings: ClientSettings) -> WireRequest:
    """Build the request for the gateway's description of its model and limits."""
    return WireRequest("GET", f"{settings.base_url}/info", _headers(settings))


def parse_info(response: WireResponse) -> dict[str, Any]:
    """Return the description.

    Raises:
        EmbeddingError: The answer is not a JSON object.
    """
    return json_content(response, dict[str, Any])


def _headers(settings: ClientSettings) -> dict[str, str]:
    headers = {"Accept": "application/json", "User-Agent": USER_AGENT}
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    return headers


def raise_for_status(response: WireResponse, settings: ClientSettings, *, texts: int) -> None:
    """Raise the error for an unsuccessful response to a request of `texts` texts."""
    status = response.status
    if status == HTTPStatus.OK:
        return
    server_message, where, code = _server_message(response.content)
    server_message = settings.redact(server_message)
    message = f"The gateway at {settings.base_url} answered {status}"
    message += f": {_sentence(server_message)}" if server_message else "."
    request_id = response.headers.get("x-request-id")
    if not request_id:  # it is not the gateway's own answer
        message += proxy_hint(settings.base_url)
    if status in _HINTS and code != _MODEL_NOT_FOUND:
        message += f" {_HINTS[status]}"
    raise _ERROR_OF_STATUS.get(status, GatewayError)(
        message,
        status=status,
        server_message=server_message or None,
        request_id=request_id,
        retry_after_seconds=parse_retry_after(response.headers),
        retryable=status in RETRYABLE_STATUS,
        positions=_named_positions(where, texts),
        param=where,
    )


def proxy_hint(base_url: str) -> str:
    """Return a sentence about the proxy that the environment names for an address, if any."""
    from urllib.request import getproxies, proxy_bypass

    address, proxies = urlsplit(base_url), getproxies()
    name = next((name for name in (address.scheme, "all") if name in proxies), None)
    if name is None or proxy_bypass(address.hostname or ""):
        return ""
    # Not the proxy's address, which may contain a password.
    return (
        f" The request went to the proxy in `{name.upper()}_PROXY`; to send it to the gateway "
        f"itself, add {address.hostname!r} to `NO_PROXY`."
    )


def parse_retry_after(
    headers: Mapping[str, str], clock: Callable[[], float] = time.time
) -> float | None:
    """Parse `retry-after-ms` or `retry-after` (seconds or an HTTP date), as seconds from now.

    Header names are in lower case. A date in the past is 0; None if the value is meaningless.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    value = headers.get("retry-after")
    seconds = _seconds(value)
    if seconds is not None or value is None:
        return seconds
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - clock())


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0.0 <= seconds < float("inf") else None


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _server_message(content: bytes) -> tuple[str, str, str]:
    """Return what the gateway or a proxy said, the parameter that it named, and its code."""
    try:
        body: object = json.loads(content)
    except ValueError:
        return " ".join(content.decode("utf-8", "replace").split())[:MAX_SHOWN_CHARACTERS], "", ""
    if not isinstance(body, dict):
        return "", "", ""
    fields = cast("dict[str, Any]", body)
    error = fields.get("error")
    if isinstance(error, dict):
        fields = cast("dict[str, Any]", error)
        message = fields.get("message")
    else:
        message = fields.get("detail") or error
    return str(message or ""), str(fields.get("param") or ""), str(fields.get("code") or "")


def _named_positions(where: str, texts: int) -> tuple[int, ...]:
    """Return the position of the text that the gateway's `param` names, as in `texts[3]`."""
    found = _TEXT_POSITION.search(where)
    position = int(found.group(1)) if found else texts
    return (position,) if position < texts else ()


def parse_embeddings(
    response: WireResponse, *, texts: int, dimensions: int | None
) -> BatchAnswer[Vector]:
    """Parse the answer to a request of `texts` texts.

    Raises:
        EmbeddingConnectionError: The body is not a complete JSON document; a retry may help.
        BadAnswerError: It is one, but does not hold `texts` finite, nonzero vectors of one length,
            which is `dimensions` if that is given. Its `positions` name the texts.
    """
    body = json_content(response, dict[str, Any])
    rows = body.get("embeddings")
    if not isinstance(rows, list):
        msg = "The answer has no list `embeddings`. Check that `base_url` is the gateway's address."
        raise BadAnswerError(msg, status=response.status)
    rows = cast("list[Any]", rows)
    if len(rows) != texts:
        msg = f"{texts} texts were sent and {len(rows)} vectors came back."
        raise BadAnswerError(msg, status=response.status)
    vectors = [_vector(row, position) for position, row in enumerate(rows)]
    length = dimensions or len(vectors[0])
    _check_vectors(vectors, length)
    return BatchAnswer(
        items=vectors,
        dimensions=length,
        model=str(body.get("model", "")),
        fingerprint=str(
            body.get("fingerprint") or response.headers.get("x-embedding-fingerprint", "")
        ),
        prompt_tokens=_prompt_tokens(body.get("usage")),
        truncated=_positions(body.get("truncated"), texts),
    )


def json_content(response: WireResponse, kind: type[Content]) -> Content:
    """Return the JSON document of a response, which must be an object or a list.

    Raises:
        EmbeddingConnectionError: The body is not a complete JSON document; a retry may help.
        BadAnswerError: It is a document of another kind.
    """
    content = response.content
    try:
        body = _load_json(content)
    except ValueError as error:  # JSONDecodeError, or UnicodeDecodeError for a cut-off character
        msg = f"The answer of {len(content)} bytes is not a JSON document; it may be incomplete."
        raise EmbeddingConnectionError(msg, retryable=True) from error
    expected = get_origin(kind) or kind
    if not isinstance(body, expected):
        msg = f"The answer is a JSON {type(body).__name__}, not a {expected.__name__}."
        raise BadAnswerError(msg)
    return cast("Content", body)


def _load_json(content: bytes) -> object:
    try:
        return orjson.loads(content)
    except ValueError:
        # Python's own parser accepts the `NaN` that some servers write, so that the check of the
        # vectors can name the text.
        return json.loads(content)


def _vector(row: object, position: int) -> Vector:
    """Decode base64 of little-endian float32, or convert a list of numbers."""
    try:
        if isinstance(row, str):
            vector = array("f", pybase64.b64decode(row, validate=True))
            if sys.byteorder == "big":
                vector.byteswap()
            return vector
        return array("f", cast("list[float]", row))
    except (TypeError, ValueError, OverflowError) as error:
        msg = "A vector is neither base64 of float32 values nor a list of numbers."
        raise BadAnswerError(msg, positions=(position,)) from error


def _check_vectors(vectors: list[Vector], length: int) -> None:
    found = {i: vector_defect(vector, length) for i, vector in enumerate(vectors)}
    defects = {position: defect for position, defect in found.items() if defect}
    if defects:
        msg = f"A vector in the answer {next(iter(defects.values()))}."
        raise BadAnswerError(msg, positions=tuple(defects))


def _prompt_tokens(usage: object) -> int:
    tokens = cast("dict[str, object]", usage).get("prompt_tokens") if isinstance(usage, dict) else 0
    return tokens if isinstance(tokens, int) else 0


def _positions(value: object, count: int) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    items = cast("list[object]", value)
    return tuple(item for item in items if isinstance(item, int) and 0 <= item < count)
