"""CSV and TSV files."""

from __future__ import annotations

import codecs
import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from ..config import ReadOptions
from ..documents import BadRecord, Document, Origin
from .csv_layout import Layout, find_layout, is_blank, with_newlines
from .encodings import UTF_8, is_line_encoding, with_encoding_of
from .records import RecordReader, find_column, missing_column, needed_columns, with_columns
from .shards import Shard, SourceFile, extension, shown
from .text_files import HEAD_BYTES, check_not_binary, decode, read_lines
from .values import UnreadableError

_SNIFFED_BYTES = 64 << 10
_LINE_END = re.compile(r"\r?\n|\r")
# A number or a long text, which is rarely the name of a column.
_LIKE_DATA = re.compile(r"\s*-?[\d.,]+\s*|.{60,}", re.S)


class _TextLines:
    """The lines of a file as text, and what is wrong with the latest ones."""

    def __init__(self, stream: BinaryIO, options: ReadOptions) -> None:
        self._lines = read_lines(
            stream, start=0, stop=sys.maxsize, max_bytes=options.max_document_bytes
        )
        self._options = options
        self.problem: str | None = None

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            if line.content is None:
                limit = self._options.max_document_bytes
                self.problem = f"A line is longer than {limit:,} bytes (`max_document_bytes`)."
                yield "\n"
                continue
            try:
                yield decode(line.content, self._options, offset=line.start)[0]
            except UnreadableError as error:
                self.problem = str(error)
                yield line.content.decode("ascii", "replace")  # to find the end of the record

    def take_problem(self) -> str | None:
        """Return what was wrong since the last call."""
        problem, self.problem = self.problem, None
        return problem


@dataclass(frozen=True, slots=True)
class _OpenedFile:
    """A file whose layout is known.

    Attributes:
        stream: At its beginning.
        options: With the encoding of the stream and the columns of the file.
        encoding: Of the file, if it had to be detected.
    """

    stream: BinaryIO
    layout: Layout
    options: ReadOptions
    encoding: str | None


def read_csv(
    shard: Shard, file: SourceFile, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    """Read the records of a file; the position of each is the line where it begins."""
    path = shown(file.path)
    # The limit is the process's; a document may be as long as in any other format.
    csv.field_size_limit(max(csv.field_size_limit(), options.max_document_bytes))
    with open(file.path, "rb") as stream:
        opened = _open(stream, file, options)
        layout, header = opened.layout, opened.layout.header
        reader.match(header)
        reader.encoding = opened.encoding
        if missing := _missing(layout, opened.options):
            raise UnreadableError(missing)
        needed = max(map(header.index, needed_columns(opened.options).values()))
        lines = _TextLines(opened.stream, opened.options)
        rows = layout.reader(iter(lines))
        _skip_header(rows, layout, lines)
        while True:
            origin = Origin(shard.source, path, rows.line_num + 1)
            try:
                row = next(rows, None)
                if problem := lines.take_problem():
                    raise UnreadableError(problem)
                if row is None:
                    return
            except csv.Error as error:
                lines.take_problem()
                yield BadRecord(origin, f"The record is not valid CSV: {error}.")
            except UnreadableError as error:
                lines.take_problem()
                yield BadRecord(origin, str(error))
            else:
                if not is_blank(row):
                    yield _read_row(row, needed, layout, origin, reader)


def _read_row(
    row: list[str], needed: int, layout: Layout, origin: Origin, reader: RecordReader
) -> Document | BadRecord:
    """Read a row, which may lack the last columns and have blank ones too many."""
    header = layout.header
    record = dict(zip(header, row, strict=False))
    reason = f"The record has {len(row):,} fields, but the header has {len(header):,}."
    if not is_blank(row[len(header) :]):
        # Which of its fields was divided is not known, and so neither is its id.
        return BadRecord(origin, f"{reason} Quote fields that contain {layout.delimiter!r}.")
    if len(row) <= needed:
        return reader.refuse(record, origin, reason)
    return reader.read(record, origin)


def find_missing_in_csv(file: SourceFile, options: ReadOptions) -> str | None:
    """Return the message that a file lacks a column; None if it does not, or cannot be read."""
    try:
        with open(file.path, "rb") as stream:
            opened = _open(stream, file, options)
    except (OSError, UnreadableError):
        return None
    return _missing(opened.layout, opened.options)


def _open(stream: BinaryIO, file: SourceFile, options: ReadOptions) -> _OpenedFile:
    """Find out how a file is written.

    Raises:
        UnreadableError: It is empty, or not text.
    """
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    known = with_encoding_of(head, options)
    if is_line_encoding(known):
        check_not_binary(stream)
    if not head:
        raise UnreadableError("The file is empty.")
    sniffed = head[:_SNIFFED_BYTES]
    text = sniffed.removeprefix(codecs.BOM_UTF8).decode(known.encoding, "replace")
    first_end = _LINE_END.search(text)
    is_cr = first_end is not None and first_end[0] == "\r"
    if is_cr:
        text = text.replace("\r", "\n")  # newlines are those within fields
    as_read = known
    if not is_line_encoding(known):
        stream = with_newlines(stream, known.encoding, is_cr=is_cr)
        as_read = replace(known, encoding=UTF_8)
    elif is_cr:
        stream = with_newlines(stream, None, is_cr=True)
    layout = find_layout(
        text.removeprefix("\ufeff"),
        options,
        is_whole=len(head) <= _SNIFFED_BYTES,
        preferred="\t" if extension(file.path) == ".tsv" else ",",
    )
    detected = known.encoding if known is not options and known.encoding != UTF_8 else None
    return _OpenedFile(stream, layout, with_columns(as_read, layout.header), detected)


def _skip_header(rows: Any, layout: Layout, lines: _TextLines) -> None:
    """Read the rows up to the header.

    Raises:
        UnreadableError: The header cannot be read.
    """
    try:
        for _ in range(layout.rows_above + layout.has_header):
            next(rows, None)
    except csv.Error as error:
        raise UnreadableError(f"The header is not valid CSV: {error}.") from None
    if problem := lines.take_problem():
        raise UnreadableError(problem)


def _missing(layout: Layout, options: ReadOptions) -> str | None:
    for what, column in needed_columns(options).items():
        if find_column(column, layout.header) is None:
            reason = missing_column(what, column, list(layout.header))
            is_data = layout.has_header and any(map(_LIKE_DATA.fullmatch, layout.header))
            return f"{reason} A file without a header needs `--no-header`." if is_data else reason
    return None
