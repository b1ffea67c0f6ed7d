"""Read and write the wire format of protocol buffers, over spans of a memory map.

The format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from .errors import OnnxFileError

Span: TypeAlias = tuple[int, int]
Buffer: TypeAlias = bytes | mmap.mmap

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# The longest varint: 64 bits in groups of seven.
_MAX_SHIFT = 63
LFS_POINTER = b"version https://git-lfs"


@contextmanager
def mapped(path: Path) -> Generator[mmap.mmap]:
    """Map a file that holds an ONNX model, and say what is wrong where its reader stumbles.

    Raises:
        OnnxFileError: the file is missing, empty, a Git LFS pointer or no protocol buffer.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[: len(LFS_POINTER)] == LFS_POINTER:
                msg = (
                    f"{path} is not an ONNX model but a Git LFS pointer: run `git lfs pull`, or "
                    "fetch the file again."
                )
                raise OnnxFileError(msg)
            yield data
    except OSError as error:
        raise OnnxFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise OnnxFileError(
            f"{path} is not an ONNX model ({error}); is it a Git LFS pointer or a broken download?"
        ) from error


def fields(data: Buffer, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Yield (field number, integer or the span of its bytes) for one encoded message.

    Floating-point fields are passed over.
    """
    for number, value, _ in scan(data, span):
        if value is not None:
            yield number, value


def scan(data: Buffer, span: Span) -> Iterator[tuple[int, int | Span | None, Span]]:
    """Yield (field number, value as of `fields` or None, span of the whole field with its tag)."""
    position, end = span
    while position < end:
        start = position
        tag, position = varint(data, position)
        wire = tag & 7
        value: int | Span | None = None
        if wire == VARINT:
            value, position = varint(data, position)
        elif wire == BYTES:
            size, position = varint(data, position)
            value = (position, position + size)
            position += size
        elif wire in (FIXED64, FIXED32):
            position += 8 if wire == FIXED64 else 4
        else:
            raise ValueError("it is not a protocol buffer")
        if not start < position <= end:
            raise ValueError("it ends too early")
        yield tag >> 3, value, (start, position)


def first(data: Buffer, span: Span, wanted: int) -> Span | None:
    """Find the first field of that number that holds bytes."""
    for number, value in fields(data, span):
        if number == wanted and not isinstance(value, int):
            return value
    return None


def text(data: Buffer, span: Span | None) -> str:
    """Decode a string field; one that is absent is empty."""
    return data[span[0] : span[1]].decode() if span else ""


def varint(data: Buffer, position: int) -> tuple[int, int]:
    """Decode one integer and give the position behind it."""
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            # Negative int64 are kept as ten bytes of two's complement.
            return (result - (1 << 64) if result >= 1 << 63 else result), position
        shift += 7
        if shift > _MAX_SHIFT:
            raise ValueError("it is not a protocol buffer")


def encode_varint(value: int) -> bytes:
    """Encode one integer; a negative one as two's complement of 64 bits."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004  (seven bits a byte)
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_field(number: int, value: int | str | bytes) -> bytes:
    """Encode one field: an integer as varint, anything else with its length before it."""
    if isinstance(value, int):
        return encode_varint(number << 3 | VARINT) + encode_varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return encode_varint(number << 3 | BYTES) + encode_varint(len(payload)) + payload
