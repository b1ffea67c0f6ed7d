"""CSV and TSV files with a header."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import BinaryIO

from ..config import ReadOptions
from ..documents import BadRecord, Document, Origin
from .records import RecordReader, missing_column
from .shards import Shard, SourceFile, extension, shown
from .text_files import check_not_binary, decoded, read_lines
from .values import UnreadableError


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
                yield decoded(line.content, self._options, offset=line.start)
            except UnreadableError as error:
                self.problem = str(error)
                yield line.content.decode("ascii", "replace")  # to find the end of the record

    def take_problem(self) -> str | None:
        """Return what was wrong since the last call."""
        problem, self.problem = self.problem, None
        return problem


def read_csv(
    shard: Shard, file: SourceFile, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    """Read the records of a file; the position of each is the line where it begins."""
    path = shown(file.path)
    # The limit is the process's; a document may be as long as in any other format.
    csv.field_size_limit(max(csv.field_size_limit(), options.max_document_bytes))
    with open(file.path, "rb") as stream:
        check_not_binary(stream)
        lines = _TextLines(stream, options)
        rows = csv.reader(lines, delimiter=_delimiter(file), strict=True)
        header = _header(rows, lines)
        if missing := _missing(header, options):
            raise UnreadableError(missing)
        while True:
            origin = Origin(shard.source, path, rows.line_num + 1)
            try:
                row = next(rows, None)
                if problem := lines.take_problem():
                    raise UnreadableError(problem)
                if row is None:
                    return
                if row and len(row) != len(header):
                    msg = f"The record has {len(row):,} fields, but the header has {len(header):,}."
                    raise UnreadableError(msg)
            except csv.Error as error:
                lines.take_problem()
                yield BadRecord(origin, f"The record is not valid CSV: {error}.")
            except UnreadableError as error:
                lines.take_problem()
                yield BadRecord(origin, str(error))
            else:
                if row:
                    yield reader.read(dict(zip(header, row, strict=True)), origin)


def find_missing_in_csv(file: SourceFile, options: ReadOptions) -> str | None:
    """Return the message that a file lacks a column; None if it does not, or cannot be read."""
    try:
        with open(file.path, "rb") as stream:
            check_not_binary(stream)
            lines = _TextLines(stream, options)
            header = _header(csv.reader(lines, delimiter=_delimiter(file), strict=True), lines)
    except (OSError, UnreadableError):
        return None
    return _missing(header, options)


def _delimiter(file: SourceFile) -> str:
    return "\t" if extension(file.path) == ".tsv" else ","


def _header(rows: Iterator[list[str]], lines: _TextLines) -> list[str]:
    """Read the header.

    Raises:
        UnreadableError: There is none, or it cannot be read.
    """
    try:
        header = next(rows, list[str]())
    except csv.Error as error:
        raise UnreadableError(f"The header is not valid CSV: {error}.") from None
    if problem := lines.take_problem():
        raise UnreadableError(problem)
    return header


def _missing(header: list[str], options: ReadOptions) -> str | None:
    columns = {
        "text": options.text_column,
        "id": options.id_column,
        "vector": options.vector_column,
    }
    for what, column in columns.items():
        if column is not None and column not in header:
            return missing_column(what, column, header)
    return None
