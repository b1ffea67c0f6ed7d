"""The native dialect of `POST /embed`: requests as bytes, answers as checked vectors. No I/O."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import pybase64

from ._version import __version__
from .errors import BadAnswerError, EmbeddingConnectionError
from .results import Vector
from .settings import ClientSettings, InputType

__all__ = [
    "BatchAnswer",
    "EmbedOptions",
    "WireRequest",
    "WireResponse",
    "build_request",
    "parse_answer",
]

USER_AGENT = f"qwen3-triton-client/{__version__}"
# Of a float32, the byte that holds the sign and the first seven bits of the exponent, and what it
# is for infinity and NaN: also for numbers from 2**127 on, which no embedding holds.
_HIGH_BYTE = 3 if sys.byteorder == "little" else 0
_ENDLESS, _MINUS_ENDLESS = 0x7F, 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """Say how the texts of one call are embedded; None leaves the choice to the gateway."""

    input_type: InputType = "document"
    instruction: str | None = None
    dimensions: int | None = None
    truncate: bool | None = None


@dataclass(frozen=True, slots=True)
class WireRequest:
    """Hold one HTTP request."""

    url: str
    content: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)  # one of them is the key


@dataclass(frozen=True, slots=True)
class WireResponse:
    """Hold one HTTP response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """Hold what the gateway answered to one request."""

    vectors: list[Vector]
    """One for each text, in the order sent."""
    dimensions: int
    model: str
    fingerprint: str
    prompt_tokens: int
    truncated: tuple[int, ...]
    """Positions in the request."""


def build_request(
    settings: ClientSettings, options: EmbedOptions, texts: tuple[str, ...]
) -> WireRequest:
    """Write the request for one batch. Texts travel as they are, to the byte."""
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
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": USER_AGENT,
    }
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    return WireRequest(f"{settings.base_url}/embed", orjson.dumps(body), headers)


def parse_answer(response: WireResponse, *, count: int, dimensions: int | None) -> BatchAnswer:
    """Read the answer to a request of `count` texts.

    Raises:
        EmbeddingConnectionError: The body is no whole JSON document; worth another try.
        BadAnswerError: It is, but does not hold `count` finite, nonzero vectors of one length,
            which is `dimensions` if that is given. Its `positions` name the texts.
    """
    body = _json_object(response.content)
    rows = body.get("embeddings")
    if not isinstance(rows, list):
        msg = "the answer has no list `embeddings`; does `base_url` point at the gateway?"
        raise BadAnswerError(msg, status=response.status)
    rows = cast("list[Any]", rows)
    if len(rows) != count:
        msg = f"{count} texts were sent and {len(rows)} vectors came back"
        raise BadAnswerError(msg, status=response.status)
    vectors = [_vector(row, position) for position, row in enumerate(rows)]
    length = dimensions or len(vectors[0])
    _check_vectors(vectors, length)
    return BatchAnswer(
        vectors=vectors,
        dimensions=length,
        model=str(body.get("model", "")),
        fingerprint=str(
            body.get("fingerprint") or response.headers.get("x-embedding-fingerprint", "")
        ),
        prompt_tokens=_prompt_tokens(body.get("usage")),
        truncated=_positions(body.get("truncated"), count),
    )


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        body = _load_json(content)
    except ValueError as error:  # JSONDecodeError, and UnicodeDecodeError of a cut character
        msg = f"the answer of {len(content)} bytes is no JSON document; it may have been cut off"
        raise EmbeddingConnectionError(msg, retryable=True) from error
    if not isinstance(body, dict):
        msg = f"the answer is a JSON {type(body).__name__}, not an object"
        raise BadAnswerError(msg)
    return cast("dict[str, Any]", body)


def _load_json(content: bytes) -> object:
    try:
        return orjson.loads(content)
    except ValueError:
        # Python's own reader takes the `NaN` that some servers write, so that the check of the
        # vectors can name the text.
        return json.loads(content)


def _vector(row: object, position: int) -> Vector:
    """Decode base64 of little-endian float32, or take a list of numbers."""
    try:
        if isinstance(row, str):
            vector = array("f", pybase64.b64decode(row, validate=True))
            if sys.byteorder == "big":
                vector.byteswap()
            return vector
        return array("f", cast("list[float]", row))
    except (TypeError, ValueError, OverflowError) as error:
        msg = "a vector came back that is neither base64 of float32 values nor a list of numbers"
        raise BadAnswerError(msg, positions=(position,)) from error


def _check_vectors(vectors: list[Vector], length: int) -> None:
    for position, vector in enumerate(vectors):
        if len(vector) != length:
            msg = f"a vector of {len(vector)} dimensions came back where {length} were expected"
            raise BadAnswerError(msg, positions=(position,))
        if not any(vector):  # stops at the first value, unless there is nothing but zeros
            msg = "a vector came back that is all zeros"
            raise BadAnswerError(msg, positions=(position,))
    if not _are_finite(b"".join(vectors)):
        positions = [i for i, vector in enumerate(vectors) if not _are_finite(vector.tobytes())]
        msg = "a vector came back that holds NaN or infinity"
        raise BadAnswerError(msg, positions=tuple(positions))


def _are_finite(values: bytes) -> bool:
    """Tell whether float32 values are finite; 20 times as fast as to look at each of them."""
    high_bytes = values[_HIGH_BYTE::4]
    return _ENDLESS not in high_bytes and _MINUS_ENDLESS not in high_bytes


def _prompt_tokens(usage: object) -> int:
    tokens = cast("dict[str, object]", usage).get("prompt_tokens") if isinstance(usage, dict) else 0
    return tokens if isinstance(tokens, int) else 0


def _positions(value: object, count: int) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    items = cast("list[object]", value)
    return tuple(item for item in items if isinstance(item, int) and 0 <= item < count)
