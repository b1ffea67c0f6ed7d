"""Compressed request bodies, decompressed as they arrive and no further than the body limit."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .dialects import dialect_of, error_response
from .errors import (
    BodyTooLargeError,
    EmbeddingServerError,
    InvalidRequestError,
    UnsupportedEncodingError,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# What a decoder may keep of its own output, 8 MiB: RFC 9659 asks HTTP's senders to stay below.
MAX_WINDOW_LOG = 23
GZIP_OR_ZLIB_WBITS, ZLIB_WBITS, RAW_WBITS = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
ZLIB_METHOD = 8  # the low half of the first byte of a zlib stream (RFC 1950, 2.2)
BODY_HEADERS = (b"content-encoding", b"content-length")


class Decoder(Protocol):
    """What zlib's and zstd's decompressors have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _gzip(_: bytes) -> Decoder:
    return zlib.decompressobj(GZIP_OR_ZLIB_WBITS)


def _deflate(start: bytes) -> Decoder:
    """Build a decoder for `deflate`, which some clients send without the zlib header."""
    has_header = start[0] & 0x0F == ZLIB_METHOD
    return zlib.decompressobj(ZLIB_WBITS if has_header else RAW_WBITS)


def _zstd(_: bytes) -> Decoder:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=options)


ENCODINGS: dict[str, Callable[[bytes], Decoder]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
# The streams that may follow one another in one body (RFC 1952, 2.2; RFC 8878, 3).
CONCATENATED = {"gzip", "x-gzip", "zstd"}


class Decompression:
    """Middleware that decompresses bodies; everything below it sees them as plain JSON."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = ""
        if scope["type"] == "http":
            encoding = Headers(scope=scope).get("content-encoding", "").strip().lower()
        if encoding in {"", "identity"}:
            await self._app(scope, receive, send)
            return
        try:
            body = BodyDecoder(encoding, self._max_body_bytes)
        except EmbeddingServerError as error:
            await error_response(error, dialect_of(scope))(scope, receive, send)
            return

        async def receive_decompressed() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                plain = body.decode(message.get("body", b""))
                if not message.get("more_body", False):
                    body.finish()
                message = {**message, "body": plain}
            return message

        scope["headers"] = [item for item in scope["headers"] if item[0] not in BODY_HEADERS]
        await self._app(scope, receive_decompressed, send)


class BodyDecoder:
    """The decompression of one body, chunk by chunk."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        """Prepare for an encoding.

        Raises:
            UnsupportedEncodingError: The gateway cannot decompress it.
        """
        if encoding not in ENCODINGS:
            msg = (
                f"Content-Encoding {encoding[:40]!r} is not supported. Send the body as gzip, "
                "deflate or zstd, or uncompressed."
            )
            raise UnsupportedEncodingError(msg)
        self._encoding = encoding
        self._left = max_bytes
        self._max_bytes = max_bytes
        self._decoder: Decoder | None = None

    def decode(self, data: bytes) -> bytes:
        """Decompress a chunk.

        Raises:
            BodyTooLargeError: The body is larger than allowed once it is decompressed.
            InvalidRequestError: The chunk is not in this encoding.
        """
        parts: list[bytes] = []
        while data:
            if self._decoder is None:
                self._decoder = ENCODINGS[self._encoding](data)
            elif self._decoder.eof and self._encoding not in CONCATENATED:
                raise self._corrupt("has more data after its end")
            try:
                # One byte more than is allowed, so that too many are noticed.
                plain = self._decoder.decompress(data, self._left + 1)
            except (zlib.error, zstd.ZstdError, EOFError) as error:
                raise self._corrupt(f"cannot be decompressed ({error})") from None
            parts.append(plain)
            self._left -= len(plain)
            if self._left < 0:
                raise BodyTooLargeError(self._max_bytes, " once it is decompressed")
            data = self._decoder.unused_data if self._decoder.eof else b""
            if data and self._encoding in CONCATENATED:
                self._decoder = None
        return b"".join(parts)

    def finish(self) -> None:
        """Check that the body is complete.

        Raises:
            InvalidRequestError: It ends in the middle.
        """
        if self._decoder is not None and not self._decoder.eof:
            raise self._corrupt("ends too early")

    def _corrupt(self, problem: str) -> InvalidRequestError:
        msg = f"The body's Content-Encoding is {self._encoding}, but it {problem}."
        return InvalidRequestError(msg, code="malformed_encoding")
