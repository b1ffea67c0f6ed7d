"""Sources to shards: lazily, in a fixed order, without reading the files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from ..config import MIB, ReadOptions, SourceFormat
from ..errors import SourceError
from .finding import SourceFile, find_files, has_pattern, normalized, shown
from .formats import (
    DOCUMENT_KINDS,
    check_encoding,
    extension,
    format_of,
    unknown_format,
    why_unreadable,
)
from .shards import Shard, file_shard
from .sql import is_sql, plan_sql

__all__ = ["OnSkip", "plan_shards"]

OnSkip: TypeAlias = Callable[[str], None]
"""Told the extension (`.png`, or empty) of each file of a folder that no format is known for."""

SHARD_BYTES = 16 * MIB
SHARD_FILES = 64
_SHOWN_EXTENSIONS = 5


def plan_shards(
    sources: Sequence[str], options: ReadOptions, *, on_skip: OnSkip | None = None
) -> Iterator[Shard]:
    """Check the sources, then divide them into shards as they are asked for.

    Args:
        sources: Files, folders, patterns (`docs/**/*.md`), `postgresql://` URIs, or `sql` for
            the database that is loaded into; a source that is named twice counts once.
        options: How the sources are read.
        on_skip: Told of every file that is passed over.

    Raises:
        SourceError: No sources; a source is not there, holds nothing that can be read, or is a
            file of an unknown extension; a query without a database or the other way round; a
            library for the first file is missing. All before the first shard.
    """
    if not sources:
        raise SourceError("no SOURCE was named: name files, folders, patterns or a database")
    check_encoding(options)
    queries = [source for source in sources if is_sql(source)]
    paths = dict.fromkeys(normalized(source) for source in sources if not is_sql(source))
    if paths and (options.query or options.format == "sql"):
        named = "query" if options.query else "format"
        msg = f"`{named}` asks for a postgresql:// URI or `sql` as SOURCE, not {next(iter(paths))}"
        raise SourceError(msg)
    of_queries = [plan_sql(source, options) for source in queries]
    for path in paths:
        _check(path, options)

    def plan() -> Iterator[Shard]:
        yield from {shard.key: shard for shard in of_queries}.values()
        for path in paths:
            yield from _plan_files(path, options, on_skip)

    return plan()


def _check(source: str, options: ReadOptions) -> None:
    """Find the first file that can be read, as early as a mistyped name can be mended."""
    if not (has_pattern(source) or os.path.lexists(source)):
        msg = f"{shown(source)}: no such file or folder, and no pattern that matches one"
        raise SourceError(msg)
    passed_over: Counter[str] = Counter()
    for file in find_files(source):
        kind = format_of(file.path, options)
        if file.path == source and file.problem:
            raise SourceError(f"{shown(source)}: {file.problem}")
        if file.path == source and kind is None:
            raise unknown_format(shown(source))
        if kind is not None:
            if reason := why_unreadable(kind, options):
                raise SourceError(f"{shown(file.path)}: {reason}")
            return
        passed_over[extension(file.path)] += 1
    common = passed_over.most_common(_SHOWN_EXTENSIONS)
    seen = ", ".join(f"{count:,} {ext or 'without an extension'}" for ext, count in common)
    msg = f"{shown(source)}: no file of a known format is there"
    msg += f" (only {seen}); name their format by `--format`" if seen else ""
    raise SourceError(msg)


def _plan_files(source: str, options: ReadOptions, on_skip: OnSkip | None) -> Iterator[Shard]:
    groups: dict[SourceFormat, list[SourceFile]] = {}
    for file in find_files(source):
        kind = format_of(file.path, options)
        if kind is None and file.problem is None:
            if on_skip is not None:
                on_skip(extension(file.path))
        elif kind is None or kind in DOCUMENT_KINDS:
            # What cannot be looked into has no format; its reading tells why.
            group = groups.setdefault(kind or "text", [])
            if group and sum(each.size for each in group) + file.size > SHARD_BYTES:
                yield file_shard(source, kind or "text", tuple(group))
                group.clear()
            group.append(file)
            if len(group) == SHARD_FILES:
                yield file_shard(source, kind or "text", tuple(group))
                group.clear()
        else:
            yield from _plan_records(source, kind, file, options)
    for kind, group in groups.items():
        if group:
            yield file_shard(source, kind, tuple(group))


def _plan_records(
    source: str, kind: SourceFormat, file: SourceFile, options: ReadOptions
) -> Iterator[Shard]:
    if file.problem or why_unreadable(kind, options) or kind not in {"jsonl", "parquet"}:
        yield file_shard(source, kind, (file,))
    elif kind == "parquet":
        from .parquet_files import plan_parquet

        yield from plan_parquet(source, file, SHARD_BYTES)
    else:
        count = max(1, -(-file.size // SHARD_BYTES))
        for index in range(count):
            start = index * SHARD_BYTES
            stop = min(start + SHARD_BYTES, file.size)
            part = f", part {index + 1} of {count}" if count > 1 else ""
            yield file_shard(source, kind, (file,), start=start, stop=stop, part=part)
