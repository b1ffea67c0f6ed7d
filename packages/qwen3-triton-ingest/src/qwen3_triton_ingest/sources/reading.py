"""A shard to documents: whatever is wrong with one, the others follow."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator

from ..config import ReadOptions
from ..documents import BadRecord, Document, Origin
from ..errors import SourceError
from .csv_files import read_csv
from .finding import SourceFile, shown
from .formats import DOCUMENT_KINDS, why_unreadable
from .html_files import read_html
from .jsonl_files import read_jsonl
from .parquet_files import read_parquet
from .pdf_files import read_pdf
from .plain_values import UnreadableError, checked_id, checked_metadata, checked_text
from .records import RecordReader
from .shards import Shard
from .sql import read_sql
from .text_files import Extracted, read_markdown, read_text

__all__ = ["read_shard"]

_EXTRACT: dict[str, Callable[[str, ReadOptions], Extracted]] = {
    "text": read_text,
    "markdown": read_markdown,
    "html": read_html,
    "pdf": read_pdf,
}
_READ: dict[
    str,
    Callable[[Shard, SourceFile, ReadOptions, RecordReader], Iterator[Document | BadRecord]],
] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}


def read_shard(
    shard: Shard,
    options: ReadOptions,
    *,
    source_dsn: str | None = None,
    dimensions: int | None = None,
) -> Generator[Document | BadRecord]:
    """Read the documents of a shard one after the other, in bounded memory.

    Args:
        shard: Of `plan_shards` with the same options.
        options: How it is read.
        source_dsn: Where the query runs: the SOURCE with its password, or what `sql` stands for.
        dimensions: Length that vectors computed before must have; None takes any.

    Raises:
        SourceError: An SQL query cannot be run to its end.
    """
    reader = RecordReader(options, dimensions)
    if shard.kind == "sql":
        if source_dsn is None:
            raise SourceError(f"`source_dsn` is missing: the query of {shard.source} needs it")
        yield from read_sql(shard, source_dsn, options, reader)
        return
    for file in shard.files:
        try:
            if reason := file.problem or why_unreadable(shard.kind, options):
                raise UnreadableError(reason)
            if shard.kind in DOCUMENT_KINDS:
                yield _read_document(shard, file, options)
            else:
                yield from _READ[shard.kind](shard, file, options, reader)
        except UnreadableError as error:
            yield _bad(shard, file, str(error))
        except OSError as error:
            yield _bad(shard, file, f"cannot be read: {error.strerror or error}")


def _read_document(shard: Shard, file: SourceFile, options: ReadOptions) -> Document:
    path = shown(file.path)
    extracted = _EXTRACT[shard.kind](file.path, options)
    metadata = {"source": path} | ({"title": extracted.title} if extracted.title else {})
    return Document(
        doc_id=checked_id(path, options),
        text=checked_text(extracted.text, options),
        origin=Origin(shard.source, path),
        metadata=checked_metadata(metadata, options),
        markup=extracted.markup,
    )


def _bad(shard: Shard, file: SourceFile, reason: str) -> BadRecord:
    """Report a file, by the id of its document if it is one and so keeps what was loaded of it."""
    path = shown(file.path)
    is_document = shard.kind in DOCUMENT_KINDS and not os.path.isdir(file.path)
    return BadRecord(Origin(shard.source, path), reason, doc_id=path if is_document else None)
