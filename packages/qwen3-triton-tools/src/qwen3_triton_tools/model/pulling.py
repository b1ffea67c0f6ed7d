"""From a repository of the hub to a folder that `EMBED_MODEL_DIR` can name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..onnx_file import OnnxFileError, read_model
from .errors import ModelToolError
from .hub import HubRepo, fetch_file, list_repo, partial_path
from .hub_selection import MODEL_FILE, Selected, select_files, select_weights
from .manifest import Manifest, ManifestFile, file_sha256, read_manifest, write_manifest

FreeBytes = Callable[[Path], int]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pull:
    """What is wanted: a repository, at a revision, in a folder."""

    repo: str
    folder: Path
    revision: str | None = None
    variant: str | None = None
    include: tuple[str, ...] = ()


def default_folder(repo: str, variant: str | None) -> Path:
    """Name a folder after a repository and the variant of it."""
    name = repo.rstrip("/").rpartition("/")[2]
    return Path(f"{name}-{variant}" if variant else name)


def free_bytes(folder: Path) -> int:
    """Say how much fits where a folder is, or will be."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def pull_model(
    wanted: Pull, *, endpoint: str | None, say: Say, free: FreeBytes = free_bytes
) -> Manifest:
    """Fetch what is missing, compare every file with its checksum, and write the manifest.

    Files that are there and whole stay; an interrupted run is gone on with.

    Raises:
        ModelToolError: what kept the folder from being complete.
    """
    repo = list_repo(wanted.repo, revision=wanted.revision, endpoint=endpoint)
    chosen = select_files(repo, variant=wanted.variant, include=wanted.include)
    _check_folder(wanted.folder, repo, chosen)
    _fetch_missing(wanted.folder, repo, chosen, endpoint=endpoint, say=say, free=free)
    named = _weights_of(wanted.folder, repo, chosen)
    if named:
        _fetch_missing(wanted.folder, repo, named, endpoint=endpoint, say=say, free=free)
    manifest = Manifest(
        repo=repo.name,
        revision=repo.commit,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        files=tuple(_entry(wanted.folder, selected) for selected in [*chosen, *named]),
    )
    write_manifest(wanted.folder, manifest)
    return manifest


def _fetch_missing(
    folder: Path,
    repo: HubRepo,
    chosen: Sequence[Selected],
    *,
    endpoint: str | None,
    say: Say,
    free: FreeBytes,
) -> None:
    missing = [
        selected for selected in chosen if not selected.file.describes(folder / selected.path)
    ]
    whole = len(chosen) - len(missing)
    if whole:
        say(f"{whole} of {len(chosen)} files are there already, with the right checksum.")
    _check_disk(folder, missing, free)
    for selected in missing:
        say(f"{selected.path}: {_megabytes(selected.file.size_bytes)} from {selected.file.path}")
        fetch_file(repo, selected.file, folder / selected.path, endpoint=endpoint)


def _check_disk(folder: Path, missing: Sequence[Selected], free: FreeBytes) -> None:
    needed = 0
    for selected in missing:
        partial = partial_path(folder / selected.path, selected.file)
        needed += selected.file.size_bytes - (partial.stat().st_size if partial.is_file() else 0)
    there = free(folder)
    if needed > there:
        msg = (
            f"{_megabytes(needed)} are to be fetched, and {_megabytes(there)} are free at "
            f"{folder}. Make room, or name a folder on another disk with --to."
        )
        raise ModelToolError(msg)


def _check_folder(folder: Path, repo: HubRepo, chosen: Sequence[Selected]) -> None:
    """Keep one model's weights from mixing with another's."""
    known = read_manifest(folder)
    if known is None:
        return
    source = next((file.source for file in known.files if file.path == MODEL_FILE), "")
    if known.repo != repo.name or source != chosen[0].file.path:
        msg = f"{folder} holds {source} of {known.repo}; name another folder with --to."
        raise ModelToolError(msg)


def _weights_of(folder: Path, repo: HubRepo, chosen: Sequence[Selected]) -> list[Selected]:
    """Choose the files of weights that the graph names and that its name did not tell."""
    try:
        locations = read_model(folder / MODEL_FILE).external_locations
    except OnnxFileError as error:
        msg = f"{chosen[0].file.path} of {repo.name} cannot be served: {error}"
        raise ModelToolError(msg) from error
    there = {selected.path for selected in chosen}
    return select_weights(repo, chosen[0].file, [name for name in locations if name not in there])


def _entry(folder: Path, selected: Selected) -> ManifestFile:
    digest = selected.file.sha256 or file_sha256(folder / selected.path)
    return ManifestFile(selected.path, selected.file.path, selected.file.size_bytes, digest)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
