"""Text and Markdown files, and what all files of text share: no binary content, one encoding."""

from __future__ import annotations

import codecs
import os
import re
from dataclasses import dataclass, field
from typing import BinaryIO

from ..config import ReadOptions
from ..documents import Markup
from .plain_values import UnreadableError, too_large

__all__ = [
    "Extracted",
    "check_no_binary",
    "decoded",
    "is_utf8",
    "read_content",
    "read_markdown",
    "read_text",
]

_HEAD_BYTES = 8192
_MARKS_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# YAML before the first line of Markdown, as Jekyll, Hugo and Obsidian write it.
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.S | re.M)
_TITLE = re.compile(r"^title:[ \t]*(\"|'|)([^\r\n]+?)\1[ \t]*$", re.M)
_MAX_FRONT_MATTER = 1 << 16


@dataclass(frozen=True, slots=True)
class Extracted:
    """Hold what a file says."""

    text: str = field(repr=False)
    markup: Markup = "text"
    title: str | None = field(default=None, repr=False)


def read_text(path: str, options: ReadOptions) -> Extracted:
    """Read a file of plain text."""
    return Extracted(_whole_text(path, options))


def read_markdown(path: str, options: ReadOptions) -> Extracted:
    """Read a Markdown file without its front matter, of which the title is kept."""
    text = _whole_text(path, options)
    found = _FRONT_MATTER.match(text, 0, _MAX_FRONT_MATTER)
    if not found:
        return Extracted(text, "markdown")
    title = _TITLE.search(found[1])
    return Extracted(text[found.end() :], "markdown", title[2] if title else None)


def read_content(path: str, options: ReadOptions) -> bytes:
    """Read a file that is one document.

    Raises:
        UnreadableError: It is empty, or larger than a document may be; then it is not read.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > options.max_document_bytes:
            raise UnreadableError(too_large("the file", size, options))
        content = stream.read(options.max_document_bytes)
    if not content:
        raise UnreadableError("the file is empty")
    return content


def decoded(content: bytes, options: ReadOptions, *, offset: int = 0) -> str:
    """Decode text, in which `content` begins at the byte `offset` of its file.

    Raises:
        UnreadableError: It is not valid in `options.encoding`.
    """
    try:
        return content.decode("utf-8-sig" if is_utf8(options) else options.encoding)
    except UnicodeDecodeError as error:
        msg = f"byte {offset + error.start:,} is not valid {options.encoding}"
        if content.startswith(_MARKS_16):
            raise UnreadableError(f"{msg}; it looks like `--encoding utf-16`") from None
        raise UnreadableError(f"{msg}: name the right one by `--encoding`") from None


def is_utf8(options: ReadOptions) -> bool:
    """Tell whether the encoding is UTF-8, by whatever name."""
    return codecs.lookup(options.encoding).name == "utf-8"


def check_no_binary(stream: BinaryIO) -> None:
    """Look at the begin of a file of lines and go back there.

    Raises:
        UnreadableError: The file is empty or holds NUL bytes, so that its lines are none.
    """
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    if not head:
        raise UnreadableError("the file is empty")
    if b"\0" in head:
        if head.startswith(_MARKS_16):
            raise UnreadableError("the file looks like UTF-16: convert it with `iconv -t utf-8`")
        raise UnreadableError(f"{_BINARY}; unpack it if it is compressed")


_BINARY = "the file holds NUL bytes: it is binary and no text"


def _whole_text(path: str, options: ReadOptions) -> str:
    content = read_content(path, options)
    one_byte = "\n".encode(options.encoding) == b"\n"
    marked = content.startswith(_MARKS_16)
    if one_byte and b"\0" in content and not marked and not options.replace_nul:
        raise UnreadableError(_BINARY)
    return decoded(content, options)
