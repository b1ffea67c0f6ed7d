"""Files of a folder or a pattern, in a fixed order, however many there are."""

from __future__ import annotations

import heapq
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath

__all__ = ["SourceFile", "find_files", "has_pattern", "normalized", "shown"]

# So many names of one folder are held at a time; a larger folder is listed several times over.
_NAMES_AT_ONCE = 100_000
_MAGIC = re.compile(r"[*?\[]")
_ANY_FOLDERS = "**"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Name a file as it was found."""

    path: str
    """As reached through the SOURCE, with `/`."""
    size: int
    """In bytes."""
    mtime_ns: int
    problem: str | None = None
    """Why it, or the folder that this stands for, cannot be looked into."""


def normalized(source: str) -> str:
    """Return a path or pattern as it stands in ids and in the ledger: with `/`, without `./`."""
    return PurePath(source).as_posix()


def shown(path: str) -> str:
    """Return a path for ids and messages: names that are no UTF-8 get their bytes escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def has_pattern(source: str) -> bool:
    """Tell whether a SOURCE is a pattern; a file or folder of that very name is none."""
    return bool(_MAGIC.search(source)) and not os.path.lexists(source)


def find_files(source: str) -> Iterator[SourceFile]:
    """List the files of a source, sorted within each folder, without hidden ones.

    Links to files are followed, links to folders only where the source itself is one.

    Args:
        source: File, folder (with all below it) or pattern; in a pattern, `**` stands for any
            number of folders.
    """
    if not has_pattern(source):
        if os.path.isdir(source):
            yield from _walk(source, (), (_ANY_FOLDERS,))
        else:
            yield _look_at(source)
        return
    parts = source.split("/")
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    base = "/".join(parts[:first]) or ("/" if source.startswith("/") else ".")
    if os.path.isdir(base):
        yield from _walk(base, (), tuple(parts[first:]))


def _walk(folder: str, inside: tuple[str, ...], pattern: tuple[str, ...]) -> Iterator[SourceFile]:
    """List what matches the pattern below a folder that lies `inside` the pattern's base."""
    try:
        for name in _sorted_names(folder):
            path = name if folder == "." else posixpath.join(folder, name)
            parts = (*inside, name)
            if _is_folder(path):
                if _may_hold(parts, pattern):
                    yield from _walk(path, parts, pattern)
            elif _matches(parts, pattern) and not os.path.isdir(path):
                yield _look_at(path)
    except OSError as error:
        yield SourceFile(folder, 0, 0, f"the folder cannot be listed: {error.strerror}")


def _sorted_names(folder: str) -> Iterator[str]:
    last = ""
    while True:
        with os.scandir(folder) as entries:
            visible = (e.name for e in entries if not e.name.startswith(".") and e.name > last)
            names = heapq.nsmallest(_NAMES_AT_ONCE, visible)
        yield from names
        if len(names) < _NAMES_AT_ONCE:
            return
        last = names[-1]


def _is_folder(path: str) -> bool:
    """Tell whether a path is a folder and no link to one, which may lead in circles."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _look_at(path: str) -> SourceFile:
    try:
        found = os.stat(path)
    except OSError as error:
        return SourceFile(path, 0, 0, f"cannot be read: {error.strerror}")
    problem = None if stat.S_ISREG(found.st_mode) else "is no regular file"
    return SourceFile(path, found.st_size, found.st_mtime_ns, problem)


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern == (_ANY_FOLDERS,):
        return bool(parts)
    if pattern[0] == _ANY_FOLDERS:
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _may_hold(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Tell whether something below the folder may match."""
    if not pattern or pattern[0] == _ANY_FOLDERS or not parts:
        return bool(pattern)
    return fnmatchcase(parts[0], pattern[0]) and _may_hold(parts[1:], pattern[1:])
