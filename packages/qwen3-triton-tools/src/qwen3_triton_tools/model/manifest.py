"""`qwen3-triton.json`: where a folder's model came from, and the digest of each of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

MANIFEST_NAME = "qwen3-triton.json"


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of the folder: its path there and in the repository, its size and digest."""

    path: str
    source: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was fetched: `revision` is the commit, `date` an ISO 8601 time in UTC."""

    repo: str
    revision: str
    date: str
    files: tuple[ManifestFile, ...]


def read_manifest(folder: Path) -> Manifest | None:
    """Read a folder's manifest; None where there is none, or none that can be read."""
    try:
        content: dict[str, Any] = orjson.loads((folder / MANIFEST_NAME).read_bytes())
        files = tuple(ManifestFile(**entry) for entry in content.pop("files"))
        return Manifest(**content, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest in one step, so that nobody reads half of it."""
    written = folder / f".{MANIFEST_NAME}.new"
    written.write_bytes(orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2))
    written.replace(folder / MANIFEST_NAME)


def model_name(folder: Path) -> str | None:
    """Name the repository that a folder's model was fetched from, where a manifest says so."""
    manifest = read_manifest(folder)
    return manifest.repo if manifest else None


def file_sha256(path: Path) -> str:
    """Digest a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_files(folder: Path, files: Sequence[ManifestFile]) -> list[str]:
    """List the files that are missing or not what the manifest says."""
    return [
        file.path
        for file in files
        if not (folder / file.path).is_file()
        or (folder / file.path).stat().st_size != file.size_bytes
        or file_sha256(folder / file.path) != file.sha256
    ]
