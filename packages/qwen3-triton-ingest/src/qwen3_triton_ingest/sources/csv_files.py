"""CSV and TSV files with a header, read by the standard library."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import BinaryIO

from ..config import ReadOptions
from ..documents import BadRecord, Document, Origin
from .finding import SourceFile, shown
from .formats import extension
from .lines import read_lines
from .plain_values import UnreadableError
from .records import RecordReader, missing_column
from .shards import Shard
from .text_files import check_no_binary, decoded

__all__ = ["read_csv"]


class _TextLines:
    """Give the lines of a file as text, and keep what is wrong with the latest ones."""

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
                self.problem = f"a line is longer than {limit:,} bytes (`max_document_bytes`)"
                yield "\n"
                continue
            try:
                yield decoded(line.content, self._options, offset=line.start)
            except UnreadableError as error:
                self.problem = str(error)
                yield line.content.decode("ascii", "replace")  # to find where the record ends

    def take_problem(self) -> str | None:
        """Return what was wrong since the last call."""
        problem, self.problem = self.problem, None
        return problem


def read_csv(
    shard: Shard, file: SourceFile, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    """Read the records of a file; the position of each is the line that it begins on."""
    path = shown(file.path)
    # The limit is the process's; a document may be as long as any other format's.
    csv.field_size_limit(max(csv.field_size_limit(), options.max_document_bytes))
    delimiter = "\t" if extension(file.path) == ".tsv" else ","
    with open(file.path, "rb") as stream:
        check_no_binary(stream)
        lines = _TextLines(stream, options)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _header(rows, lines, options)
        while True:
            origin = Origin(shard.source, path, rows.line_num + 1)
            try:
                row = next(rows, None)
                if problem := lines.take_problem():
                    raise UnreadableError(problem)
                if row is None:
                    return
                if row and len(row) != len(header):
                    msg = f"the record has {len(row):,} fields where the header has {len(header):,}"
                    raise UnreadableError(msg)
            except (csv.Error, UnreadableError) as error:
                lines.take_problem()
                yield BadRecord(origin, str(error))
            else:
                if row:
                    yield reader.read(dict(zip(header, row, strict=True)), origin)


def _header(rows: Iterator[list[str]], lines: _TextLines, options: ReadOptions) -> list[str]:
    """Read the header.

    Raises:
        UnreadableError: There is none, or none with the columns that were named.
    """
    try:
        header = next(rows, list[str]())
    except csv.Error as error:
        raise UnreadableError(f"the header cannot be read: {error}") from None
    if problem := lines.take_problem():
        raise UnreadableError(problem)
    named = {
        "text": options.text_column,
        "id": options.id_column,
        "vector": options.vector_column,
    }
    for what, column in named.items():
        if column is not None and column not in header:
            raise UnreadableError(missing_column(what, column, header))
    return header
