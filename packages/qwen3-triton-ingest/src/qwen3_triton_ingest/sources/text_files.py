"""Text files, and what all text-based formats share: decoding, and lines."""

from __future__ import annotations

import codecs
import os
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..config import AUTO_ENCODING, ReadOptions
from ..documents import Markup, Metadata
from ..places import Mark
from .encodings import MARKS_16, UTF_8, UTF_16, detect, is_line_encoding, is_utf8
from .values import UnreadableError, too_large

# Enough of a line-based file to know its encoding by.
HEAD_BYTES = 1 << 20
_BINARY_HEAD_BYTES = 8192
_BLOCK_BYTES = 1 << 20
_BINARY = "The file contains NUL bytes: it is binary, not text."
FIRST_LINE = Mark(0, "line", 1)


@dataclass(frozen=True, slots=True)
class Extracted:
    """The text of a file that is one document.

    Attributes:
        marks: Where headings, pages and lines begin in the text, see `places.Mark`. Each chunk gets
            its own from them.
        encoding: Of the file, if it had to be detected.
        metadata: What the file says about itself in addition to its title.
    """

    text: str = field(repr=False)
    markup: Markup = "text"
    title: str | None = field(default=None, repr=False)
    marks: tuple[Mark, ...] = field(default=(), repr=False)
    encoding: str | None = None
    metadata: Metadata = field(default_factory=dict[str, Any], repr=False)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file.

    Attributes:
        start: Its first byte in the file, from 0.
        content: With the newline; None if the line is too long.
    """

    start: int
    content: bytes | None = field(repr=False)


def read_text(path: str, options: ReadOptions) -> Extracted:
    """Read a plain text file."""
    text, encoding = whole_text(path, options)
    return Extracted(text, marks=(FIRST_LINE,), encoding=encoding)


def read_rst(path: str, options: ReadOptions) -> Extracted:
    """Read a reStructuredText file; its titles, which are underlined, are headings."""
    text, encoding = whole_text(path, options)
    return Extracted(text, marks=(FIRST_LINE, *_titles(text)), encoding=encoding)


def _titles(text: str) -> Iterator[Mark]:
    styles: list[tuple[str, bool]] = []  # in the order in which they appear, the outermost first
    above, title = "", ""
    offset = 0  # of the line
    for whole in text.splitlines(keepends=True):
        line = whole.rstrip()
        is_overlined = _is_rule(above) and above[0] == line[:1]
        if title.strip() and _is_rule(line) and len(line) >= len(title.strip()):
            is_title = is_overlined or not (above or title[0].isspace())
            if is_title and not _is_rule(title):
                style = (line[0], is_overlined)
                styles += [style] if style not in styles else []
                begin = text.rindex(title, 0, offset)
                yield Mark(begin, "heading", title.strip(), 1 + styles.index(style))
        above, title = title, line
        offset += len(whole)


def _is_rule(line: str) -> bool:
    return len(line) > 1 and line[0] in string.punctuation and not line.strip(line[0])


def read_content(path: str, options: ReadOptions) -> bytes:
    """Read a file that is one document.

    Raises:
        UnreadableError: It is empty, or larger than a document may be; then it is not read.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > options.max_document_bytes:
            raise UnreadableError(too_large("The file", size, options))
        content = stream.read(options.max_document_bytes)
    if not content:
        raise UnreadableError("The file is empty.")
    return content


def decode(content: bytes, options: ReadOptions, *, offset: int = 0) -> tuple[str, str | None]:
    """Decode text that starts at byte `offset` of its file.

    Returns:
        The text, and its encoding if that had to be detected.

    Raises:
        UnreadableError: It is not valid in `options.encoding`, or that is to be detected and is not
            clear.
    """
    name = UTF_8 if options.encoding == AUTO_ENCODING else options.encoding
    try:
        return content.decode("utf-8-sig" if is_utf8(options) else name), None
    except UnicodeDecodeError as error:
        if options.encoding == AUTO_ENCODING and (found := detect(content)):
            return content.decode(found, "replace"), found
        msg = f"Byte {offset + error.start:,} is not valid {name}."
        if content.startswith(MARKS_16):
            raise UnreadableError(f"{msg} It looks like `--encoding utf-16`.") from None
        raise UnreadableError(f"{msg} Set the encoding with `--encoding`.") from None


def check_not_binary(stream: BinaryIO) -> None:
    """Check the beginning of a line-based file, and rewind it.

    Raises:
        UnreadableError: The file is empty or contains NUL bytes.
    """
    head = stream.read(_BINARY_HEAD_BYTES)
    stream.seek(0)
    if not head:
        raise UnreadableError("The file is empty.")
    if b"\0" in head:
        if detect(head) in UTF_16:
            raise UnreadableError("The file looks like UTF-16. Convert it: `iconv -t utf-8`.")
        raise UnreadableError(f"{_BINARY} If it is compressed, unpack it.")


def read_lines(stream: BinaryIO, *, start: int, stop: int, max_bytes: int) -> Iterator[Line]:
    """Read the lines that begin in a range of bytes; adjacent ranges have no line in common.

    A line that is too long is skipped without being held in memory, and only to the end of the
    range: the line after it belongs to another range.

    Args:
        stream: The file, which is read from `start`.
        start: First byte of the range.
        stop: Byte after the range.
        max_bytes: Longest line in bytes.
    """
    position = start
    if start > 0:
        # The line at `start` belongs to the range before, unless it begins exactly here.
        stream.seek(start - 1)
        position = _skip_line(stream, start - 1, stop)
    while position < stop:
        content = stream.readline(max_bytes + 1)
        if not content:
            return
        line_start = position
        position += len(content)
        if len(content) > max_bytes and not content.endswith(b"\n"):
            del content  # free it while the rest of the line is skipped
            yield Line(line_start, None)
            position = _skip_line(stream, position, stop)
        else:
            yield Line(line_start, content if line_start else content.removeprefix(codecs.BOM_UTF8))


def _skip_line(stream: BinaryIO, position: int, stop: int) -> int:
    """Read to the end of the line or of the range; return the position there."""
    while position < stop:
        content = stream.readline(_BLOCK_BYTES)
        position += len(content)
        if not content or content.endswith(b"\n"):
            return position if content else stop
    return position


def whole_text(path: str, options: ReadOptions) -> tuple[str, str | None]:
    """Return the text of a file, and its encoding if it had to be detected."""
    content = read_content(path, options)
    if b"\0" in content and is_line_encoding(options):
        found = detect(content)
        if found in UTF_16 and options.encoding == AUTO_ENCODING:
            return content.decode(found, "replace"), found
        if found not in UTF_16 and not options.replace_nul:
            raise UnreadableError(_BINARY)
    return decode(content, options)
