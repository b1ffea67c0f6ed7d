"""PostgreSQL's binary forms, packed by hand so that a vector is never made of Python numbers.

Sources: "COPY", section "Binary Format", of the PostgreSQL manual; `vector_recv` of pgvector.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence

from qwen3_triton_client import Vector

__all__ = ["as_float32", "copy_stream", "pack_json", "pack_vector"]

_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)  # signature, flags, no extension
_TRAILER = struct.pack("!h", -1)
_NULL = struct.pack("!i", -1)
_JSONB_VERSION = b"\x01"
_BLOCK_BYTES = 256 * 1024
_SWAPPED = sys.byteorder == "little"


def as_float32(values: Iterable[float]) -> Vector:
    """Return the values as a vector; one that is one already is taken as it is."""
    if isinstance(values, array):
        numbers: array[float] = values
        if numbers.typecode == "f":
            return numbers
    return array("f", values)


def pack_vector(vector: Vector) -> bytes:
    """Return the binary form of pgvector's `vector`: int16 length, int16 0, float32 values."""
    values = array("f", vector)
    if _SWAPPED:
        values.byteswap()
    return struct.pack("!hh", len(values), 0) + values.tobytes()


def pack_json(data: bytes, kind: str) -> bytes:
    """Return the binary form of a `json` or `jsonb` value of this JSON text."""
    return _JSONB_VERSION + data if kind == "jsonb" else data


def copy_stream(rows: Iterable[Sequence[bytes | None]]) -> Iterator[bytes]:
    """Yield what COPY ... (FORMAT binary) reads, in blocks of about 256 KiB.

    Args:
        rows: Of each row the fields' binary forms; None is NULL.
    """
    parts, size = [_HEADER], 0
    for fields in rows:
        parts.append(struct.pack("!h", len(fields)))
        for field in fields:
            if field is None:
                parts.append(_NULL)
            else:
                parts.append(len(field).to_bytes(4, "big"))
                parts.append(field)
                size += len(field)
        if size >= _BLOCK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    parts.append(_TRAILER)
    yield b"".join(parts)
