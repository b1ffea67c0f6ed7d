"""How a CSV file is written, found in its beginning: separator, quotes, line ends, header."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, BinaryIO, TypeAlias

from ..config import ReadOptions
from .encodings import UTF_8
from .records import find_column, needed_columns

# In the order of preference. Without any of them, a line is one field.
_DELIMITERS = (",", ";", "\t", "|")
_NO_DELIMITER = "\x1f"
_QUOTES = ('"', "'")
_ESCAPES = (None, "\\")
# The first line that Excel writes and reads for a list separator other than the system's.
_SEPARATOR_LINE = re.compile(r"\ufeff?sep=(.)\r?\n", re.I)
# Titles and remarks that exports put above the header.
_MAX_LINES_ABOVE = 20
_ROWS = 100
_BLOCK_BYTES = 1 << 20
# Fields in double quotes; an apostrophe is not taken for a quote.
_DOUBLE_QUOTED = re.compile(r'(?:^|[,;\t|])"', re.M)
_ESCAPED_QUOTE = re.compile(r"\\[\"']")
# The share of records with as many fields as the header has from which a layout fits.
_MOST = 0.9

_Score: TypeAlias = tuple[bool, bool, bool, bool, float]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a CSV file is written.

    Attributes:
        quote: None if no field is quoted.
        escape: What precedes a quote within a quoted field, if quotes are not doubled there.
        rows_above: Rows before the header.
        header: Names of the columns.
        has_header: Whether the header is a row of the file.
    """

    delimiter: str
    quote: str | None
    escape: str | None
    rows_above: int
    header: tuple[str, ...]
    has_header: bool = True

    def reader(self, lines: Iterator[str]) -> Any:
        """Return a `csv.reader` over the lines of the file, from the first."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            escapechar=self.escape,
            strict=True,
        )


def find_layout(head: str, options: ReadOptions, *, is_whole: bool, preferred: str) -> Layout:
    """Return the layout under which a file's beginning makes most sense.

    That is the one in which there are the columns that the options name, and then the one with the
    most records of as many fields as the header has.

    Args:
        head: Beginning of the file, with newlines at the ends of lines.
        options: What is not None there is not guessed.
        is_whole: Whether `head` is the whole file; else its end is in the middle of a record.
        preferred: Delimiter of two that fit equally.
    """
    stated = _SEPARATOR_LINE.match(head)
    above = 1 if stated else 0
    head = head[stated.end() :] if stated else head
    chosen = {"tab": "\t"}.get(options.delimiter or "", options.delimiter)
    if chosen is None and stated:
        chosen = stated[1]
    delimiters = (chosen,) if chosen else (preferred, *_DELIMITERS, _NO_DELIMITER)
    quotes: Sequence[str | None] = _QUOTES[:1] if _DOUBLE_QUOTED.search(head) else _QUOTES
    if options.quote is not None:
        quotes = (None if options.quote == "none" else options.quote,)
    escapes = _ESCAPES if _ESCAPED_QUOTE.search(head) else _ESCAPES[:1]
    best: tuple[_Score, Layout] | None = None
    for delimiter, quote, escape in product(dict.fromkeys(delimiters), quotes, escapes):
        if delimiter in (quote, escape):
            continue
        layout = Layout(delimiter, quote, escape, above, (), has_header=options.has_header)
        tried = _try(head, layout, options, is_whole=is_whole)
        if best is None or tried[0] > best[0]:
            best = tried
    assert best is not None
    return best[1]


def _try(
    head: str, layout: Layout, options: ReadOptions, *, is_whole: bool
) -> tuple[_Score, Layout]:
    """Return how well a layout fits, comparable to others, and the layout with the header."""
    rows: list[list[str]] = []
    is_valid = True
    try:
        rows.extend(islice(layout.reader(iter(io.StringIO(head, newline=""))), _ROWS))
    except csv.Error as error:
        is_valid = not is_whole and "unexpected end" in str(error)
    else:
        if not is_whole and len(rows) < _ROWS:
            rows = rows[:-1]  # it may be cut off
    at, has_all = _find_header(rows, options)
    header = rows[at] if rows else []
    if not layout.has_header:
        at, header = -1, [str(number) for number in range(1, len(header) + 1)]
        has_all = all(name in header for name in needed_columns(options).values())
    data = [row for row in rows[at + 1 :] if not is_blank(row)]
    fitting = sum(len(row) == len(header) for row in data) / len(data) if data else 1.0
    fits = fitting > _MOST
    score = (has_all, is_valid, fits, len(header) > 1, 1.0 if fits else round(fitting, 1))
    above = layout.rows_above + max(at, 0)
    return score, replace(layout, rows_above=above, header=tuple(header))


def _find_header(rows: Sequence[Sequence[str]], options: ReadOptions) -> tuple[int, bool]:
    """Return the row with the columns that the options name, else the first that is not blank."""
    names = needed_columns(options).values()
    first = next((at for at, row in enumerate(rows) if not is_blank(row)), 0)
    if options.has_header:
        for at, row in enumerate(rows[: _MAX_LINES_ABOVE + 1]):
            if all(find_column(name, row) for name in names):
                return at, True
    return first, False


def is_blank(row: Sequence[str]) -> bool:
    """Return whether a row has nothing in its fields."""
    return not any(field.strip() for field in row)


def with_newlines(stream: BinaryIO, encoding: str | None, *, is_cr: bool) -> BinaryIO:
    """Return a stream in which a newline is one byte and ends the lines.

    Args:
        stream: The file, at its beginning.
        encoding: To read in UTF-8 what is in this encoding; None leaves the bytes as they are.
        is_cr: Whether its lines end with carriage returns alone.
    """
    return io.BufferedReader(_WithNewlines(stream, encoding, is_cr=is_cr))


class _WithNewlines(io.RawIOBase):
    def __init__(self, stream: BinaryIO, encoding: str | None, *, is_cr: bool) -> None:
        self._stream = stream
        self._decoder: Any = encoding and codecs.getincrementaldecoder(encoding)("replace")
        self._is_cr = is_cr
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        is_end = False
        while not self._rest and not is_end:
            block = self._stream.read(_BLOCK_BYTES)
            is_end = not block
            if self._decoder:
                text: str = self._decoder.decode(block, is_end)
                block = text.encode(UTF_8, "replace")
            self._rest = block.replace(b"\r", b"\n") if self._is_cr else block
        part = self._rest[: len(buffer)]
        self._rest = self._rest[len(part) :]
        buffer[: len(part)] = part
        return len(part)
