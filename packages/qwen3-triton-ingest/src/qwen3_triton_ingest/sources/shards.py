"""A part of a source that one worker reads, as a value that can be sent to it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..config import SourceFormat
from ..documents import text_digest
from .finding import SourceFile, shown

__all__ = ["Shard", "file_shard"]


@dataclass(frozen=True, slots=True)
class Shard:
    """Name a part of a source."""

    source: str
    """The SOURCE as the user named it; of a database, without user and password."""
    name: str
    """For progress."""
    key: bytes
    """The same for the same part of unchanged files, in every run."""
    kind: SourceFormat
    files: tuple[SourceFile, ...] = ()
    start: int = 0
    """First byte (JSONL) or row group (Parquet) of the only file."""
    stop: int = 0
    """Byte or row group after the last."""


def file_shard(
    source: str,
    kind: SourceFormat,
    files: tuple[SourceFile, ...],
    *,
    start: int = 0,
    stop: int = 0,
    part: str = "",
) -> Shard:
    """Make the shard of some files, or of a part of one.

    Args:
        source: The SOURCE as the user named it.
        kind: Format of all the files.
        files: One file, or several of which each is one document.
        start: First byte or row group.
        stop: Byte or row group after the last.
        part: What part of the file it is, for progress.
    """
    name = shown(files[0].path)
    if len(files) > 1:
        name += f" and {len(files) - 1} more"
    parts: list[str | bytes] = [kind, os.fsencode(source), str(start), str(stop)]
    for file in files:
        parts += [os.fsencode(file.path), str(file.size), str(file.mtime_ns)]
    return Shard(shown(source), name + part, text_digest(*parts), kind, files, start, stop)
