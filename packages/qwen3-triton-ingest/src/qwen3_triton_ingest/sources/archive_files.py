"""Archives: each member is unpacked into a temporary file, one after the other, within bounds."""

from __future__ import annotations

import gzip
import os
import posixpath
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from .shards import SourceFile, extension
from .values import UnreadableError

# What Python's `zipfile` raises for a damaged archive.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
ZIP, GZIP = ".zip", ".gz"
NESTED = frozenset((ZIP, GZIP, ".7z", ".bz2", ".rar", ".tar", ".tgz", ".xz", ".zst"))
_MAX_MEMBERS = 100_000
# Texts with much repetition reach 100; archives that are made to fill a disk 1,000.
_MAX_RATIO = 200
_FREE_BYTES = 64 << 20  # whatever the ratio
_BLOCK_BYTES = 1 << 20
_IS_ENCRYPTED = 1  # a flag of a member of a ZIP archive


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        file: As it is shown: with the path of the archive, `/`, and its name.
        unpacked: The temporary file, which exists until the next member is asked for; None if the
            member is not wanted.
        problem: Why it cannot be unpacked.
    """

    file: SourceFile
    unpacked: SourceFile | None = None
    problem: str | None = None


def inner_path(path: str) -> str | None:
    """Return the path of what is in a gzip file, without its folder; None for other files."""
    if extension(path) != GZIP:
        return None
    return posixpath.basename(path)[: -len(GZIP)] or "content"


def members(file: SourceFile, wanted: frozenset[str]) -> Iterator[Member]:
    """Unpack what is in an archive.

    Args:
        file: The archive.
        wanted: Extensions of what is unpacked.

    Raises:
        UnreadableError: It is damaged, or exceeds a bound.
    """
    with tempfile.TemporaryDirectory(prefix="qwen3-triton-ingest-") as folder:
        unpacking = _Unpacking(file, folder)
        try:
            if inner := inner_path(file.path):
                with gzip.open(file.path) as stream, unpacking.member(inner, stream) as member:
                    yield member
            else:
                yield from _zipped(unpacking, wanted)
        except (*ZIP_ERRORS, gzip.BadGzipFile):
            raise UnreadableError("The archive is damaged.") from None


def _zipped(unpacking: _Unpacking, wanted: frozenset[str]) -> Iterator[Member]:
    with zipfile.ZipFile(unpacking.archive.path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        if len(infos) > _MAX_MEMBERS:
            raise UnreadableError(
                f"The archive has {len(infos):,} files; the limit is {_MAX_MEMBERS:,}. Unpack it."
            )
        for info in infos:
            name = posixpath.normpath("/" + info.filename.replace("\\", "/")).lstrip("/")
            if any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
                continue  # hidden
            shown = unpacking.shown(name)
            if info.flag_bits & _IS_ENCRYPTED:
                yield Member(shown, problem="It is encrypted. Unpack the archive.")
            elif extension(name) in NESTED:
                yield Member(shown, problem="It is an archive in an archive. Unpack the outer one.")
            elif extension(name) not in wanted:
                yield Member(shown)
            else:
                with archive.open(info) as stream, unpacking.member(name, stream) as member:
                    yield member


class _Unpacking:
    """What has been unpacked of an archive, and where to."""

    def __init__(self, archive: SourceFile, folder: str) -> None:
        self.archive = archive
        self._folder = folder
        size = os.stat(archive.path).st_size
        self._left = max(_FREE_BYTES, _MAX_RATIO * size)

    def shown(self, name: str) -> SourceFile:
        return SourceFile(f"{self.archive.path}/{name}", 0, self.archive.mtime_ns)

    @contextmanager
    def member(self, name: str, stream: IO[bytes] | gzip.GzipFile) -> Generator[Member]:
        # The name is another's: only its extension is used.
        path = posixpath.join(self._folder, f"member{extension(name)}")
        try:
            with open(path, "wb") as target:
                while block := stream.read(_BLOCK_BYTES):
                    self._left -= len(block)
                    if self._left < 0:
                        raise UnreadableError(
                            f"The archive unpacks to more than {_MAX_RATIO} times its size, which "
                            "is taken for an attack. If it is not, unpack it."
                        )
                    target.write(block)
            unpacked = SourceFile(path, os.stat(path).st_size, self.archive.mtime_ns)
            yield Member(self.shown(name), unpacked)
        finally:
            os.unlink(path)
