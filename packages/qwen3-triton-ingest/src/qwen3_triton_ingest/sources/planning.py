"""Planning: sources are divided into shards lazily, in a fixed order, without reading files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from ..config import AUTO_ENCODING, MIB, ReadOptions, SourceFormat
from ..errors import SourceError
from .converters import check_converters
from .formats import EXTENSIONS, FORMATS, format_of, options_for, why_unreadable
from .shards import (
    Shard,
    SourceFile,
    extension,
    file_shard,
    find_files,
    has_pattern,
    is_sql,
    normalized,
    shown,
    source_name,
)
from .sql import plan_sql

OnSkip: TypeAlias = Callable[[str], None]
"""Called for each file of a folder that is left out: with its extension, or `LINKS`."""

LINKS = "links out of the folder"

SHARD_BYTES = 16 * MIB
SHARD_FILES = 64
_SHOWN_EXTENSIONS = 5


def plan_shards(
    sources: Sequence[str], options: ReadOptions, *, on_skip: OnSkip | None = None
) -> Iterator[Shard]:
    """Check the sources, then divide them into shards as the caller asks for them.

    Args:
        sources: Files, folders, patterns (`docs/**/*.md`), `postgresql://` URIs, or `sql` for
            the database that is loaded into. A source that is listed twice counts once.
        options: How the sources are read.
        on_skip: Called for every file that is skipped.

    Raises:
        SourceError: There are no sources; a source does not exist, contains nothing readable, or
            is a file with an unknown extension or without the columns that the options name; a
            query comes without a database or the other way around; the library for the first file
            is missing. All before the first shard.
    """
    if not sources:
        raise SourceError("There is no SOURCE. Give files, folders, patterns or a database.")
    _check_options(options)
    queries = [source for source in sources if is_sql(source)]
    paths = dict.fromkeys(normalized(source) for source in sources if not is_sql(source))
    if paths and (options.query or options.format == "sql"):
        name = "query" if options.query else "format"
        msg = f"`{name}` needs a postgresql:// URI or `sql` as SOURCE, not `{next(iter(paths))}`."
        raise SourceError(msg)
    of_queries = [plan_sql(source, options) for source in queries]
    for path in paths:
        _check(path, options)

    def plan() -> Iterator[Shard]:
        yield from {shard.key: shard for shard in of_queries}.values()
        for path in paths:
            name = source_name(path, options)
            yield from (replace(each, source=name) for each in _plan_files(path, options, on_skip))

    return plan()


def _check_options(options: ReadOptions) -> None:
    check_converters(options)
    for name in (options.encoding, *options.encodings.values()):
        try:
            _ = name == AUTO_ENCODING or "\n".encode(name)
        except (LookupError, UnicodeError, ValueError):
            msg = f"`encoding` must be one that Python knows, such as utf-8, not {name!r}."
            raise SourceError(msg) from None
    for option, word in (("delimiter", "tab"), ("quote", "none")):
        value: str | None = getattr(options, option)
        if value is not None and value != word and (len(value) != 1 or value in "\r\n"):
            raise SourceError(f"`{option}` must be one character, or `{word}`, not {value!r}.")


def _check(source: str, options: ReadOptions) -> None:
    """Find the first readable file now, while a mistyped name is still easy to fix."""
    if not (has_pattern(source) or os.path.lexists(source)):
        msg = f"`{shown(source)}` is not a file or folder, nor a pattern that matches one."
        raise SourceError(msg)
    skipped: Counter[str] = Counter()
    for file in find_files(source, options):
        if file.leads_out:
            skipped[LINKS] += 1
            continue
        kind = format_of(file.path, options)
        if file.path == source and file.problem:
            raise SourceError(f"`{shown(source)}`: {file.problem}")
        if file.path == source and kind is None:
            raise _unknown_format(source)
        if kind is not None:
            reason = why_unreadable(kind, options_for(file.path, options))
            find_missing = FORMATS[kind].find_missing
            if not reason and find_missing and file.path == source:
                reason = find_missing(file, options_for(file.path, options))
            if reason:
                raise SourceError(f"`{shown(file.path)}`: {reason}")
            return
        skipped[extension(file.path)] += 1
    common = skipped.most_common(_SHOWN_EXTENSIONS)
    found = ", ".join(f"{count:,} {ext or 'without an extension'}" for ext, count in common)
    msg = f"`{shown(source)}` contains no file of a known format"
    msg += f" (only {found}). Set their format with `--format`" if found else ""
    msg += ", convert them with `--converter`" if found else ""
    msg += ", or follow links with `--follow-links`." if LINKS in skipped else "."
    raise SourceError(msg)


def _unknown_format(path: str) -> SourceError:
    extensions = ", ".join(EXTENSIONS)
    which = f"the unknown extension {extension(path)!r}" if extension(path) else "no extension"
    return SourceError(
        f"`{shown(path)}` has {which}. Set its format with `--format` ({', '.join(FORMATS)}), "
        f"convert it with `--converter`, or use one of the extensions {extensions}."
    )


def _plan_files(source: str, options: ReadOptions, on_skip: OnSkip | None) -> Iterator[Shard]:
    groups: dict[SourceFormat, list[SourceFile]] = {}
    for file in find_files(source, options):
        kind = format_of(file.path, options)
        if file.leads_out or (kind is None and file.problem is None):
            if on_skip is not None:
                on_skip(LINKS if file.leads_out else extension(file.path))
        elif kind is None or FORMATS[kind].read_document:
            # A folder that cannot be listed has no format; reading it reports the reason.
            group = groups.setdefault(kind or "text", [])
            if group and sum(each.size for each in group) + file.size > SHARD_BYTES:
                yield file_shard(source, kind or "text", tuple(group))
                group.clear()
            group.append(file)
            if len(group) == SHARD_FILES:
                yield file_shard(source, kind or "text", tuple(group))
                group.clear()
        else:
            yield from _plan_records(source, file, kind, options)
    for kind, group in groups.items():
        if group:
            yield file_shard(source, kind, tuple(group))


def _plan_records(
    source: str, file: SourceFile, kind: SourceFormat, options: ReadOptions
) -> Iterator[Shard]:
    plan = FORMATS[kind].plan
    if plan is None or file.problem or why_unreadable(kind, options_for(file.path, options)):
        yield file_shard(source, kind, (file,))
    else:
        yield from plan(source, file, SHARD_BYTES)
