"""The file formats, and how a shard of each is read.

To add a format, write a module with its reader, add it to `FORMATS` and to `config.SourceFormat`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..config import ReadOptions, SourceFormat
from ..documents import BadRecord, Document, Origin
from ..errors import SourceError
from .archive_files import GZIP, NESTED, ZIP, Member, inner_path, members
from .conversion import Request, read_isolated
from .converters import converted_extensions, has_converter, read_converted
from .csv_files import find_missing_in_csv, read_csv
from .encodings import is_line_encoding
from .html_files import read_html
from .json_files import read_json, read_notebook
from .jsonl_files import plan_jsonl, read_jsonl
from .mail_files import read_mail
from .markdown_files import read_markdown
from .office_files import read_office
from .parquet_files import find_missing_in_parquet, plan_parquet, read_parquet
from .pdf_files import read_pdf
from .records import RecordReader
from .shards import Shard, SourceFile, extension, has_changed, matches_end, shown
from .sql import read_sql
from .text_files import Extracted, read_rst, read_text
from .values import UnreadableError, checked_id, checked_metadata, checked_text, reader_failure
from .xml_files import read_epub, read_xml

_SHOWN_EXTENSIONS = 5
_CHANGED = (
    "The file was changed while it was being loaded, so some of its records may be missing. Run "
    "the same command again."
)

ReadRecords: TypeAlias = Callable[
    [Shard, SourceFile, ReadOptions, RecordReader], Iterator[Document | BadRecord | Extracted]
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A file format. Exactly one of `read_document` and `read_records` is set.

    Attributes:
        extensions: Lowercase, with the dot.
        read_document: Reads a file that is one document.
        read_records: Reads the records of a shard of a file.
        plan: Divides a file of records into shards of about a number of bytes; None if a file is
            always one shard.
        is_line_based: Whether a file is read line by line, in the memory of a few; the others are
            read in a process of their own.
        is_cut: Whether the file is cut at newline bytes, which rules out UTF-16.
        library: Module that the reader imports.
        extra: What installs it; None if it has the format's name.
        find_missing: Returns the message that a file of records lacks a column that the options
            name; None if it does not, or cannot be read.
    """

    extensions: tuple[str, ...]
    read_document: Callable[[str, ReadOptions], Extracted] | None = None
    read_records: ReadRecords | None = None
    plan: Callable[[str, SourceFile, int], Iterator[Shard]] | None = None
    is_line_based: bool = False
    is_cut: bool = False
    library: str | None = None
    extra: str | None = None
    find_missing: Callable[[SourceFile, ReadOptions], str | None] | None = None


def _read_archive(
    shard: Shard, file: SourceFile, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    """Read the members of an archive, each in its own format."""
    options = replace(options, format=None)
    wanted = frozenset(EXTENSIONS) | converted_extensions(options)
    others: set[str] = set()
    is_empty = True
    for member in members(file, wanted - NESTED):
        kind = format_of(member.file.path, options)
        if not member.problem and (member.unpacked is None or kind is None):
            others.add(extension(member.file.path) or "no extension")
            continue
        is_empty = False
        if kind is None or kind == "archive":
            kind = "text"  # for the report
        yield from _read_member(shard, member, kind, options, reader.dimensions)
    if is_empty:
        found = f" (only {', '.join(sorted(others)[:_SHOWN_EXTENSIONS])})" if others else ""
        raise UnreadableError(f"The archive contains no file of a known format{found}.")


def _read_member(
    shard: Shard,
    member: Member,
    kind: SourceFormat,
    options: ReadOptions,
    dimensions: int | None,
) -> Iterator[Document | BadRecord]:
    place, file = member.file, member.unpacked
    part = replace(shard, kind=kind, files=())
    options = options_for(place.path, options)
    try:
        if reason := member.problem or why_unreadable(kind, options):
            raise UnreadableError(reason)
        assert file is not None
        plan = FORMATS[kind].plan
        parts = plan(shard.source, file, file.size + 1) if plan else (part,)
        for each in parts:
            for item in read_file(replace(each, source=shard.source), file, options, dimensions):
                if isinstance(item, Extracted):
                    yield _document(part, place, item, options)
                else:
                    yield _renamed(item, shown(file.path), shown(place.path), options)
    except UnreadableError as error:
        yield _bad(part, place, str(error))
    except MemoryError:
        raise
    except Exception as error:  # whatever a library raises concerns this member only
        yield _bad(part, place, reader_failure(error))


def _renamed(
    item: Document | BadRecord, unpacked: str, path: str, options: ReadOptions
) -> Document | BadRecord:
    """Return a record of a member with the path that is shown, which may be part of its id."""
    origin = replace(item.origin, path=path)
    doc_id = item.doc_id
    if doc_id is not None and doc_id.startswith(f"{unpacked}#"):
        doc_id = checked_id(path + doc_id.removeprefix(unpacked), options)
    if isinstance(item, BadRecord):
        return replace(item, origin=origin, doc_id=doc_id)
    assert doc_id is not None
    return replace(item, origin=origin, doc_id=doc_id)


FORMATS: dict[SourceFormat, Format] = {
    "jsonl": Format(
        extensions=(".jsonl", ".ndjson"),
        read_records=read_jsonl,
        plan=plan_jsonl,
        is_line_based=True,
        is_cut=True,
    ),
    "csv": Format(
        extensions=(".csv", ".tsv"),
        read_records=read_csv,
        is_line_based=True,
        find_missing=find_missing_in_csv,
    ),
    "parquet": Format(
        extensions=(".parquet",),
        read_records=read_parquet,
        plan=plan_parquet,
        library="pyarrow",
        find_missing=find_missing_in_parquet,
    ),
    "text": Format(extensions=(".txt",), read_document=read_text),
    "rst": Format(extensions=(".rst",), read_document=read_rst),
    "markdown": Format(extensions=(".md", ".markdown", ".mdx"), read_document=read_markdown),
    "html": Format(extensions=(".html", ".htm"), read_document=read_html, library="lxml"),
    "pdf": Format(extensions=(".pdf",), read_document=read_pdf, library="pypdfium2"),
    "office": Format(
        extensions=(".docx", ".pptx", ".xlsx", ".odt", ".rtf"),
        read_document=read_office,
        library="all2md",
    ),
    "json": Format(extensions=(".json",), read_records=read_json),
    "ipynb": Format(extensions=(".ipynb",), read_document=read_notebook),
    "xml": Format(extensions=(".xml",), read_document=read_xml, library="lxml", extra="html"),
    "epub": Format(extensions=(".epub",), read_document=read_epub, library="lxml", extra="html"),
    "archive": Format(extensions=(ZIP, GZIP), read_records=_read_archive),
    "converter": Format(extensions=(), read_document=read_converted),
    "eml": Format(extensions=(".eml",), read_document=read_mail, library="lxml", extra="html"),
}
EXTENSIONS: dict[str, SourceFormat] = {
    extension: name for name, each in FORMATS.items() for extension in each.extensions
}


def format_of(path: str, options: ReadOptions) -> SourceFormat | None:
    """Return the format of a file, None if it is unknown.

    It is the one in the options, else that of a user's converter for its extension, else the one
    that has the extension.
    """
    if options.format is None and has_converter(path, options):
        return "converter"
    if options.format is None and (inner := inner_path(path)) is not None:
        is_nested = extension(inner) in NESTED
        return "archive" if not is_nested and format_of(inner, options) else None
    return options.format or EXTENSIONS.get(extension(path))


def options_for(path: str, options: ReadOptions) -> ReadOptions:
    """Return the options with the encoding of a file."""
    for pattern, encoding in options.encodings.items():
        if matches_end(path, [pattern]):
            return replace(options, encoding=encoding)
    return options


def how_to_install(kind: SourceFormat) -> str:
    """Return the command that installs what reads a format."""
    return f"pip install 'qwen3-triton-ingest[{FORMATS[kind].extra or kind}]'"


def why_unreadable(kind: SourceFormat, options: ReadOptions) -> str | None:
    """Return why no file of a format can be read here, and what to do; None if they can."""
    reader = FORMATS[kind]
    if reader.library and importlib.util.find_spec(reader.library) is None:
        return f"Reading {kind} files needs {reader.library}: {how_to_install(kind)}."
    if reader.is_cut and not is_line_encoding(options):
        return (
            f"`encoding` {options.encoding!r} cannot be read line by line. Convert the files "
            f"first: `iconv -f {options.encoding} -t utf-8`."
        )
    return None


def read_shard(
    shard: Shard,
    options: ReadOptions,
    *,
    source_dsn: str | None = None,
    dimensions: int | None = None,
    on_encoding: Callable[[str], None] | None = None,
) -> Generator[Document | BadRecord]:
    """Read the documents of a shard one by one, in bounded memory.

    A document that cannot be read is a `BadRecord`; the documents after it are still read.

    Args:
        shard: From `plan_shards` with the same options.
        options: How the source is read.
        source_dsn: Where a query runs: the SOURCE with its password, or what `sql` refers to.
        dimensions: Required length of precomputed vectors; None accepts any.
        on_encoding: Called with the encoding of each file for which it had to be detected.

    Raises:
        SourceError: An SQL query fails.
    """
    if shard.kind == "sql":
        if source_dsn is None:
            raise SourceError(f"`source_dsn` is missing; the query on {shard.source} needs it.")
        yield from read_sql(shard, source_dsn, options, RecordReader(options, dimensions))
        return
    for file in shard.files:
        chosen = options_for(file.path, options)
        encoding: str | None = None
        try:
            if reason := file.problem or why_unreadable(shard.kind, chosen):
                raise UnreadableError(reason)
            encoding = yield from _read(shard, file, chosen, dimensions)
            # Records may have moved to a part that was read before, and must not count as vanished.
            if FORMATS[shard.kind].read_records and has_changed(file):
                raise UnreadableError(_CHANGED)
        except UnreadableError as error:
            yield _bad(shard, file, str(error))
        except OSError as error:
            yield _bad(shard, file, f"Cannot be read: {error.strerror or error}.")
        if encoding and on_encoding:
            on_encoding(encoding)


def read_file(
    shard: Shard, file: SourceFile, options: ReadOptions, dimensions: int | None
) -> Generator[Document | BadRecord | Extracted, None, str | None]:
    """Yield the records of a file, or the one document that it is; return a detected encoding."""
    reader = FORMATS[shard.kind]
    if reader.read_document:
        extracted = reader.read_document(file.path, options)
        yield extracted
        return extracted.encoding
    assert reader.read_records is not None
    records = RecordReader(options, dimensions)
    yield from reader.read_records(shard, file, options, records)
    # A file of many shards counts once.
    return records.encoding if shard.start == 0 else None


def _read(
    shard: Shard, file: SourceFile, options: ReadOptions, dimensions: int | None
) -> Generator[Document | BadRecord, None, str | None]:
    if FORMATS[shard.kind].is_line_based:
        items = read_file(shard, file, options, dimensions)
    else:
        items = read_isolated(Request.of(shard, file, options, dimensions))
    with closing(items):
        while True:
            try:
                item = next(items)
            except StopIteration as end:
                return end.value
            if isinstance(item, Extracted):
                item = _document(shard, file, item, options)
            yield item


def _document(
    shard: Shard, file: SourceFile, extracted: Extracted, options: ReadOptions
) -> Document:
    path = shown(file.path)
    metadata = {**extracted.metadata, "source": path}
    metadata |= {"title": extracted.title} if extracted.title else {}
    return Document(
        doc_id=checked_id(path, options),
        text=checked_text(extracted.text, options),
        origin=Origin(shard.source, path),
        metadata=checked_metadata(metadata, options),
        markup=extracted.markup,
        marks=extracted.marks,
    )


def _bad(shard: Shard, file: SourceFile, reason: str) -> BadRecord:
    """Report a file; with an id if it is one document, so that what was loaded of it is kept."""
    path = shown(file.path)
    is_document = FORMATS[shard.kind].read_document and not os.path.isdir(file.path)
    return BadRecord(Origin(shard.source, path), reason, doc_id=path if is_document else None)
