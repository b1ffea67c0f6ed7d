"""Lines of a part of a file in bounded memory, whatever their length."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

__all__ = ["Line", "read_lines"]

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """Hold one line."""

    start: int
    """Its first byte in the file, from 0."""
    content: bytes | None = field(repr=False)
    """With its end; None if it is too long."""


def read_lines(stream: BinaryIO, *, start: int, stop: int, max_bytes: int) -> Iterator[Line]:
    """Read the lines that begin in a range of bytes: no other range has any of them.

    A line that is too long is passed over without being held, and not beyond the range: the next
    line is another range's then.

    Args:
        stream: The file, which is read from `start` on.
        start: First byte of the range.
        stop: Byte after the range.
        max_bytes: Most bytes of a line.
    """
    position = start
    if start > 0:
        # The line before is another range's, unless it ends just here.
        stream.seek(start - 1)
        position = _skip_line(stream, start - 1, stop)
    while position < stop:
        content = stream.readline(max_bytes + 1)
        if not content:
            return
        line_start = position
        position += len(content)
        if len(content) > max_bytes and not content.endswith(b"\n"):
            del content  # not to be held while the rest of the line goes by
            yield Line(line_start, None)
            position = _skip_line(stream, position, stop)
        else:
            yield Line(line_start, content if line_start else _without_mark(content))


def _skip_line(stream: BinaryIO, position: int, stop: int) -> int:
    """Read to the end of the line or of the range; return the position there."""
    while position < stop:
        content = stream.readline(_BLOCK_BYTES)
        position += len(content)
        if not content or content.endswith(b"\n"):
            return position if content else stop
    return position


def _without_mark(content: bytes) -> bytes:
    return content.removeprefix(codecs.BOM_UTF8)
