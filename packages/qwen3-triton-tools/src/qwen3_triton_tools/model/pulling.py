"""Fetch an export from the hub into a folder that can be served, with a manifest of its files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from ..errors import ModelError
from ..writing import replacing_file
from .files import format_bytes
from .hub import HubRepo, fetch_file, file_sha256, list_repo, partial_path
from .hub_selection import MODEL_FILE, Selected, named_weights, select_files

MANIFEST_NAME = "qwen3-triton.json"

FreeBytes = Callable[[Path], int]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: its path in the folder and in the repository, its size and its digest."""

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


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A repository at a revision, to be fetched into a folder."""

    repo: str
    folder: Path
    revision: str | None = None
    variant: str | None = None
    include: tuple[str, ...] = ()


def default_folder(repo: str, variant: str | None) -> Path:
    """Return a folder named after a repository and its variant."""
    name = repo.rstrip("/").rpartition("/")[2]
    return Path(f"{name}-{variant}" if variant else name)


def free_bytes(folder: Path) -> int:
    """Return the free disk space where a folder is, or will be."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def pull_model(
    wanted: PullRequest, *, endpoint: str | None, report: Report, free: FreeBytes = free_bytes
) -> Manifest:
    """Fetch what is missing, compare every file with its checksum, and write the manifest.

    Complete files are kept, and an interrupted run is resumed.

    Raises:
        ModelError: A file cannot be fetched, does not fit the disk, or belongs to another model.
    """
    repo = list_repo(wanted.repo, revision=wanted.revision, endpoint=endpoint)
    chosen = select_files(repo, variant=wanted.variant, include=wanted.include)
    _check_folder(wanted.folder, repo, chosen)
    _fetch_missing(wanted.folder, repo, chosen, endpoint=endpoint, report=report, free=free)
    paths = {selected.path for selected in chosen}
    named = [s for s in named_weights(repo, chosen, wanted.folder) if s.path not in paths]
    if named:
        _fetch_missing(wanted.folder, repo, named, endpoint=endpoint, report=report, free=free)
    manifest = Manifest(
        repo=repo.name,
        revision=repo.commit,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        files=tuple(_entry(wanted.folder, selected) for selected in [*chosen, *named]),
    )
    write_manifest(wanted.folder, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Read a folder's manifest; None if there is none, or it cannot be parsed."""
    try:
        content: dict[str, Any] = orjson.loads((folder / MANIFEST_NAME).read_bytes())
        files = tuple(ManifestFile(**entry) for entry in content.pop("files"))
        return Manifest(**content, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest in one step, so that no reader sees half of it."""
    with replacing_file(folder / MANIFEST_NAME) as written:
        written.write_bytes(orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2))


def model_name(folder: Path) -> str | None:
    """Return the repository that a folder's model was fetched from, if a manifest names it."""
    manifest = read_manifest(folder)
    return manifest.repo if manifest else None


def _fetch_missing(
    folder: Path,
    repo: HubRepo,
    chosen: Sequence[Selected],
    *,
    endpoint: str | None,
    report: Report,
    free: FreeBytes,
) -> None:
    missing = [selected for selected in chosen if not selected.file.matches(folder / selected.path)]
    complete = len(chosen) - len(missing)
    if complete:
        report(f"{complete} of {len(chosen)} files are already complete, with matching checksums.")
    _check_disk(folder, missing, free)
    for selected in missing:
        report(
            f"{selected.path}: {format_bytes(selected.file.size_bytes)} from {selected.file.path}"
        )
        fetch_file(repo, selected.file, folder / selected.path, endpoint=endpoint)


def _check_disk(folder: Path, missing: Sequence[Selected], free: FreeBytes) -> None:
    needed = 0
    for selected in missing:
        partial = partial_path(folder / selected.path, selected.file)
        needed += selected.file.size_bytes - (partial.stat().st_size if partial.is_file() else 0)
    available = free(folder)
    if needed > available:
        msg = (
            f"The download has {format_bytes(needed)}, but only {format_bytes(available)} are free "
            f"at {folder}. Free some space, or choose a folder on another disk with --to."
        )
        raise ModelError(msg)


def _check_folder(folder: Path, repo: HubRepo, chosen: Sequence[Selected]) -> None:
    """Prevent the weights of two models from mixing."""
    manifest = read_manifest(folder)
    if manifest is None:
        return
    source = next((file.source for file in manifest.files if file.path == MODEL_FILE), "")
    if manifest.repo != repo.name or source != chosen[0].file.path:
        msg = f"{folder} contains {source} of {manifest.repo}. Choose another folder with --to."
        raise ModelError(msg)


def _entry(folder: Path, selected: Selected) -> ManifestFile:
    digest = selected.file.sha256 or file_sha256(folder / selected.path)
    return ManifestFile(selected.path, selected.file.path, selected.file.size_bytes, digest)
