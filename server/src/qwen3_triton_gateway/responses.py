"""JSON on the wire: vectors without a Python object per float.

An answer that is not small is encoded and written in parts, each as soon as the caller has read
what was before it. So it takes the memory of two parts, however long it is.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .tensors import ByteMatrix, Embeddings, Float32Matrix, Int64Vector

EncodingFormat: TypeAlias = Literal["float", "base64"]
# Cohere's embedding types, which are Voyage's data types too.
QuantizedType: TypeAlias = Literal["int8", "uint8", "binary", "ubinary"]
# Not a union of them, of which an error would name one only.
VectorForm: TypeAlias = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]

REQUEST_ID = re.compile(r"[!-~]{1,128}")
# Floats in a part of an answer: half a millisecond to encode, and 170 KiB as JSON.
FLOATS_PER_PART = 16_384
BYTES_PER_JSON_FLOAT = 11
INT8_MAX = 127
# Files in memory are written in parts of this size.
BYTES_PER_PART = 65_536
# JSON itself never contains this byte.
_PLACEHOLDER = b"\0"
# Stands for the vectors in the content of an answer.
VECTORS = orjson.Fragment(_PLACEHOLDER)


class JsonResponse(Response):
    """A JSON response written by orjson, which reads numpy arrays directly."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _dumps(content)


class PartsResponse(Response):
    """A response that is written in parts, as fast as its caller reads.

    One part has its length in the headers; several are chunked if their length is unknown.
    """

    media_type = "application/json"

    def __init__(
        self,
        parts: Callable[[], AsyncIterator[bytes]],
        *,
        length: int | None = None,
        late_headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Prepare the response.

        Args:
            parts: Produces the body.
            length: Its length, if it is known.
            late_headers: Called when the first parts are there, for further headers.
        """
        super().__init__()
        del self.headers["content-length"]
        self._parts = parts
        self._length = length
        self._late_headers = late_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; end early if the caller disconnects."""
        parts = self._parts()
        first, second = await anext(parts, b""), await anext(parts, None)
        length = self._length
        if second is None:
            length = len(first)
        elif length is None and scope["http_version"] == "1.0":  # which has no chunks
            length = sum([len(part) async for part in self._parts()])
        if length is not None:
            self.headers["content-length"] = str(length)
        self.headers.update(self._late_headers())
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        if second is None and len(first) <= BYTES_PER_PART:
            await send({"type": "http.response.body", "body": first})
            return
        disconnect = asyncio.ensure_future(_disconnect(receive))
        try:
            await _send_parts(send, first, second, parts, disconnect)
        finally:
            disconnect.cancel()


async def _send_parts(
    send: Send,
    first: bytes,
    second: bytes | None,
    others: AsyncIterator[bytes],
    disconnect: Future[None],
) -> None:
    """Send a body in parts, until its end or until the caller is gone."""
    await send({"type": "http.response.body", "body": first, "more_body": True})
    part = second
    while part is not None:
        # It returns when the caller has read almost all of what was sent before.
        await send({"type": "http.response.body", "body": part, "more_body": True})
        if disconnect.done():
            return
        await asyncio.sleep(0)  # other requests get their turn
        part = await anext(others, None)
    # So the response ends only once its last part has been read, too.
    await send({"type": "http.response.body"})


async def _disconnect(receive: Receive) -> None:
    """Wait until the caller is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def file_response(content: bytes, headers: Mapping[str, str]) -> PartsResponse:
    """Build the response for a JSON file in memory, without copies of it for slow callers."""

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(content), BYTES_PER_PART):
            yield content[start : start + BYTES_PER_PART]

    return PartsResponse(parts, length=len(content), late_headers=lambda: headers)


def encode_vectors(
    vectors: Float32Matrix, form: VectorForm
) -> ByteMatrix | Float32Matrix | list[orjson.Fragment]:
    """Encode rows for orjson: the array itself, small integers, or base64 of little-endian float32.

    `float` and `base64` hold the same bits: orjson writes the shortest decimal that parses to the
    same float32. For the other forms, see `quantize`.
    """
    if form not in ("float", "base64"):
        return quantize(vectors, form)
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    if form == "float":
        return rows
    # Already JSON: base64 contains nothing that needs an escape.
    return [orjson.Fragment(b'"' + base64.b64encode(row) + b'"') for row in rows]


def quantize(vectors: Float32Matrix, kind: QuantizedType) -> ByteMatrix:
    """Round each vector to whole numbers of eight bits, or to one bit per dimension.

    No other vector matters. `int8` scales a vector so that its largest component becomes 127, which
    keeps its direction; `uint8` is the same with 128 added. `ubinary` holds eight dimensions per
    byte, the first in the highest bit, which is 1 for a component above zero; `binary` is the same
    with 128 subtracted. As in vLLM and sentence-transformers, and as Cohere and Voyage name them.

    Args:
        vectors: Rows of shape `(n, dimensions)`.
        kind: The form; for the binary ones, the dimensions must be a multiple of 8.
    """
    if kind in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=1)
        return packed if kind == "ubinary" else (packed ^ 0x80).view(np.int8)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    rounded = np.rint(vectors / largest * INT8_MAX).astype(np.int8)
    return rounded if kind == "int8" else rounded.view(np.uint8) ^ 0x80


def answer_parts(
    content: object,
    embeddings: Embeddings,
    forms: Sequence[VectorForm],
    wrap: Callable[[int, Any], Any] | None = None,
) -> Iterator[bytes]:
    """Encode an answer as parts of JSON.

    Args:
        content: The answer, with `VECTORS` wherever the vectors belong.
        embeddings: The vectors.
        forms: How vectors are encoded in each such place; see `encode_vectors`.
        wrap: Builds an item from a row's index and its encoded vector; without it, the encoded
            vector is the item.
    """
    before, *others = _dumps(content).split(_PLACEHOLDER)
    if not others:
        yield before
    count = len(embeddings.rows)
    step = rows_per_part(embeddings.dimensions)
    for form, after in zip(forms, others, strict=True):
        encode = _row_encoder(embeddings, form)
        for start in range(0, count, step):
            rows: Any = encode(embeddings.rows[start : start + step])
            items = rows if wrap is None else [wrap(start + i, row) for i, row in enumerate(rows)]
            opening = before + b"[" if start == 0 else b","
            closing = b"]" + after if start + step >= count else b""
            yield b"".join((opening, _dumps(items)[1:-1], closing))
        before = b""


def rows_per_part(dimensions: int) -> int:
    return max(1, FLOATS_PER_PART // dimensions)


def encoded_bytes(texts: int, dimensions: int) -> int:
    """Estimate what the encoded parts of an answer take at the same time."""
    rows = min(texts, 2 * rows_per_part(dimensions))
    return rows * dimensions * BYTES_PER_JSON_FLOAT


def _row_encoder(
    embeddings: Embeddings, form: VectorForm
) -> Callable[[Int64Vector], ByteMatrix | Float32Matrix | list[orjson.Fragment]]:
    distinct = embeddings.distinct
    repeats = len(distinct) < len(embeddings.rows)
    if not repeats or len(distinct) > rows_per_part(embeddings.dimensions):
        return lambda rows: encode_vectors(distinct[rows], form)
    encoded = [orjson.Fragment(_dumps(row)) for row in encode_vectors(distinct, form)]
    return lambda rows: [encoded[row] for row in rows]


def _dumps(content: object) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def choose_request_id(sent: str) -> str:
    """Use the caller's ID if it is safe in a header and in a log line, else create one."""
    return sent if REQUEST_ID.fullmatch(sent) else f"{random.getrandbits(128):032x}"


def raw_head(response: Response) -> bytes:
    """Write a response's status line and headers, for what is refused before the framework."""
    status = HTTPStatus(response.status_code)
    line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    return line + b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
