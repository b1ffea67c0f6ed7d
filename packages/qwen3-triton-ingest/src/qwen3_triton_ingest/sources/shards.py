"""The files of a source, in a fixed order, and the shards that a source is divided into."""

from __future__ import annotations

import heapq
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from ..config import ReadOptions, SourceFormat
from ..connection_strings import is_uri, libpq_dsn
from ..documents import Origin, fit_place, text_digest
from ..errors import DatabaseError, SourceError

# How many names of one folder are held at once; a larger folder is listed several times.
NAMES_AT_ONCE = 100_000
_MAGIC = re.compile(r"[*?\[]")
_ANY_FOLDERS = "**"
TARGET_DATABASE = "sql"
_DIGEST_DIGITS = 12


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source.

    Attributes:
        path: As reached through the SOURCE, with `/`.
        size: In bytes.
        mtime_ns: Time of the last change, in nanoseconds.
        problem: Why this file, or folder, cannot be read; None if it can.
        leads_out: Whether it is a link that leads out of its folder, and is not followed.
    """

    path: str
    size: int
    mtime_ns: int
    problem: str | None = None
    leads_out: bool = False


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a source that one worker reads; it can be sent to another machine.

    Attributes:
        source: What its documents belong to, see `source_name`.
        name: For progress displays.
        key: The same for the same part of unchanged files in every run.
        kind: Format of all its files.
        files: One file, or several files that are one document each; none for a query.
        start: First byte (JSONL) or row group (Parquet) of the only file.
        stop: The byte or row group after the last one.
    """

    source: str
    name: str
    key: bytes
    kind: SourceFormat
    files: tuple[SourceFile, ...] = ()
    start: int = 0
    stop: int = 0


def file_shard(
    source: str,
    kind: SourceFormat,
    files: tuple[SourceFile, ...],
    *,
    start: int = 0,
    stop: int = 0,
    part: str = "",
) -> Shard:
    """Return the shard of some files, or of a part of one file, which `part` describes."""
    name = shown(files[0].path)
    if len(files) > 1:
        name += f" and {len(files) - 1} more"
    parts: list[str | bytes] = [kind, os.fsencode(source), str(start), str(stop)]
    for file in files:
        parts += [os.fsencode(file.path), str(file.size), str(file.mtime_ns)]
    return Shard(shown(source), name + part, text_digest(*parts), kind, files, start, stop)


def is_sql(source: str) -> bool:
    """Return whether a SOURCE is a database."""
    return is_uri(source) or source == TARGET_DATABASE


def source_name(source: str, options: ReadOptions) -> str:
    """Return the name of a SOURCE in the ledger, which no other source shares.

    It is the name in the options, else a file's, folder's or pattern's absolute path, else the
    database with a digest of the query.

    Raises:
        SourceError: libpq cannot parse the URI, or the name in the options is blank.
    """
    if options.source_name is not None:
        if not options.source_name.strip():
            raise SourceError("`source_name` is blank. Give the source a name, or leave it out.")
        return fit_place(f"name:{options.source_name}")
    if is_sql(source):
        digest = text_digest((options.query or "").strip()).hex()[:_DIGEST_DIGITS]
        return f"{fit_place(shown_source(source))}#{digest}"
    # Links stay in it: what a link leads to may change with every release.
    return fit_place(shown(PurePath(os.path.abspath(source)).as_posix()))


def former_names(source: str, options: ReadOptions) -> set[str]:
    """Return the names under which the ledger may have the documents of a SOURCE, too.

    First ledgers have the SOURCE as it was written, and a source can get a name later.
    """
    names = {shown_source(source), source_name(source, replace(options, source_name=None))}
    if is_uri(source):
        parts = _connection_parameters(source)
        host, port = parts.get("host") or "localhost", parts.get("port") or 5432
        names.add(f"postgresql://{host}:{port}/{parts.get('dbname') or ''}")
    return names - {source_name(source, options)}


def is_same_file(origin: Origin, other: Origin) -> bool:
    """Return whether records of different sources are of one file, such as a folder's and its own.

    Paths are as reached through the source; a relative one is below the folder in which the source
    was written, which follows from what the end of the source's name and the path have in common.
    """
    is_path = _is_path(origin.source) and _is_path(other.source)
    if not is_path or origin.path != other.path:
        return False
    if PurePath(origin.path).is_absolute():
        return True
    return not _working_folders(origin).isdisjoint(_working_folders(other))


def _is_path(name: str) -> bool:
    return PurePath(name).is_absolute()


def _working_folders(origin: Origin) -> set[str]:
    """Return the folders in which the source may have been written."""
    folder, parts = _folder(origin.source), origin.path.split("/")
    ends = ("".join(f"/{part}" for part in parts[:count]) for count in range(len(parts) + 1))
    return {folder.removesuffix(end) for end in ends if folder.endswith(end)}


def _folder(name: str) -> str:
    """Return the file or folder that a source is, or the folder in which its pattern begins."""
    found = _MAGIC.search(name)
    return name[: name.rindex("/", 0, found.start())] if found else name


def wider_source(first: str, second: str) -> str:
    """Return that of two sources with a common file which has more files."""
    return min(first, second, key=lambda name: (len(_folder(name)), len(name)))


def shown_source(source: str) -> str:
    """Return a SOURCE for messages: a path with `/`, or a database without secrets.

    Raises:
        SourceError: libpq cannot parse the URI.
    """
    if not is_sql(source):
        return shown(normalized(source))
    if source == TARGET_DATABASE:
        return source
    parts = _connection_parameters(source)
    given = {name: _parameter(parts, name) for name in ("service", "options")}
    database = _parameter(parts, "dbname") or _parameter(parts, "user")
    host = _parameter(parts, "hostaddr") or _parameter(parts, "host")
    # The rest is in the service file.
    default = (
        "" if given["service"] else f"{host or 'localhost'}:{_parameter(parts, 'port') or 5432}"
    )
    query = "&".join(f"{name}={value}" for name, value in given.items() if value)
    return f"postgresql://{default}/{database or ''}" + (f"?{query}" if query else "")


def _connection_parameters(source: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(libpq_dsn(source))
    except DatabaseError as error:
        raise SourceError(f"The SOURCE is not a valid URI. {error}") from None


def _parameter(parts: Mapping[str, Any], name: str) -> str | None:
    """Return a parameter of a connection, from libpq's variables if the URI leaves it out."""
    variable = "PGDATABASE" if name == "dbname" else f"PG{name.upper()}"
    return str(parts[name]) if parts.get(name) else os.environ.get(variable)


def normalized(source: str) -> str:
    """Return a path or pattern as used in ids: with `/`, without `./`."""
    return PurePath(source).as_posix()


def shown(path: str) -> str:
    """Return a path for ids and messages; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def extension(path: str) -> str:
    """Return a file name's extension in lowercase, with the dot; empty if it has none."""
    return posixpath.splitext(path)[1].lower()


def has_pattern(source: str) -> bool:
    """Return whether a SOURCE is a pattern; the name of an existing file or folder is not."""
    return bool(_MAGIC.search(source)) and not os.path.lexists(source)


def find_files(source: str, options: ReadOptions) -> Iterator[SourceFile]:
    """List the files of a source, sorted within each folder, without hidden ones.

    A link that leads out of the folder is listed as such, unless links are followed.

    Args:
        source: File, folder (with everything below it) or pattern, in which `**` matches any
            number of folders.
        options: Which files of folders and patterns are wanted.
    """
    if not has_pattern(source):
        if os.path.isdir(source):
            yield from _Walk(source, (_ANY_FOLDERS,), options).files(source)
        else:
            yield _look_at(source)
        return
    parts = source.split("/")
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    base = "/".join(parts[:first]) or ("/" if source.startswith("/") else ".")
    if os.path.isdir(base):
        yield from _Walk(base, tuple(parts[first:]), options).files(base)


def matches_end(path: str, patterns: Iterable[str]) -> bool:
    """Return whether the end of a path matches a pattern, such as `*.md` or `guides/**`."""
    return _PathPatterns(patterns).match(tuple(path.split("/")))


class _PathPatterns:
    """Patterns that are compared with the ends of paths."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [
            (_ANY_FOLDERS, *pattern.strip("/").removeprefix("./").split("/"))
            for pattern in patterns
        ]

    def match(self, parts: tuple[str, ...]) -> bool:
        return any(_matches(parts, pattern) for pattern in self._patterns)

    def match_part(self, parts: tuple[str, ...]) -> bool:
        """Return whether a path matches, or one of the folders that it is in."""
        return any(self.match(parts[:count]) for count in range(1, len(parts) + 1))


class _Walk:
    """The files below a folder that match a pattern."""

    def __init__(self, base: str, pattern: tuple[str, ...], options: ReadOptions) -> None:
        self._pattern = pattern
        self._root = os.path.realpath(base)
        self._include = _PathPatterns(options.include or ["**"])
        self._exclude = _PathPatterns(options.exclude or ())
        self._follows = options.follow_links

    def files(
        self, folder: str, inside: tuple[str, ...] = (), above: tuple[str, ...] = ()
    ) -> Iterator[SourceFile]:
        """List what is in a folder.

        Args:
            folder: Its path.
            inside: Its path from the pattern's base.
            above: Real paths of the folders that it is in, if links are followed: no loop.
        """
        try:
            if self._follows:
                real = os.path.realpath(folder)
                if real in above:
                    return
                above = (*above, real)
            for name in _sorted_names(folder):
                path = name if folder == "." else posixpath.join(folder, name)
                parts = (*inside, name)
                if not self._exclude.match(parts):
                    yield from self._entry(path, parts, above)
        except OSError as error:
            yield SourceFile(folder, 0, 0, f"The folder cannot be listed: {error.strerror}.")

    def _entry(
        self, path: str, parts: tuple[str, ...], above: tuple[str, ...]
    ) -> Iterator[SourceFile]:
        is_link, is_folder = os.path.islink(path), os.path.isdir(path)
        leads_out = is_link and not self._follows and self._leads_out(path)
        if is_folder and (self._follows or not is_link):
            if _may_hold(parts, self._pattern):
                yield from self.files(path, parts, above)
        elif is_folder and leads_out and _may_hold(parts, self._pattern):
            yield SourceFile(path, 0, 0, leads_out=True)
        elif not is_folder and _matches(parts, self._pattern) and self._include.match_part(parts):
            yield SourceFile(path, 0, 0, leads_out=True) if leads_out else _look_at(path)

    def _leads_out(self, path: str) -> bool:
        target = os.path.realpath(path)
        return os.path.commonpath([self._root, target]) != self._root


def _sorted_names(folder: str) -> Iterator[str]:
    last = ""
    while True:
        with os.scandir(folder) as entries:
            visible = (e.name for e in entries if not e.name.startswith(".") and e.name > last)
            names = heapq.nsmallest(NAMES_AT_ONCE, visible)
        yield from names
        if len(names) < NAMES_AT_ONCE:
            return
        last = names[-1]


def _look_at(path: str) -> SourceFile:
    try:
        found = os.stat(path)
    except OSError as error:
        return SourceFile(path, 0, 0, f"Cannot be read: {error.strerror}.")
    problem = None if stat.S_ISREG(found.st_mode) else "Not a regular file."
    return SourceFile(path, found.st_size, found.st_mtime_ns, problem)


def has_changed(file: SourceFile) -> bool:
    """Return whether a file is not the one that was listed."""
    return _look_at(file.path) != file


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern == (_ANY_FOLDERS,):
        return bool(parts)
    if pattern[0] == _ANY_FOLDERS:
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _may_hold(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Return whether something below the folder may match."""
    if not pattern or pattern[0] == _ANY_FOLDERS or not parts:
        return bool(pattern)
    return fnmatchcase(parts[0], pattern[0]) and _may_hold(parts[1:], pattern[1:])
