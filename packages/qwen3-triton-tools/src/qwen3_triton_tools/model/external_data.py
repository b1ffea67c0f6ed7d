"""The files beside an ONNX file that hold its weights: whether they are there and whole."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..onnx_file import OnnxModel
from ..onnx_file.protobuf import LFS_POINTER
from .findings import Finding


@dataclass(frozen=True, slots=True)
class ExternalFile:
    """One such file: the bytes that tensors refer to up to its end, and those that are there.

    `names` counts its hard links, itself included.
    """

    location: str
    tensors: int
    needed_bytes: int
    size_bytes: int | None
    is_symlink: bool
    names: int

    @property
    def is_whole(self) -> bool:
        return self.size_bytes is not None and self.size_bytes >= self.needed_bytes


def list_external_files(model: OnnxModel) -> list[ExternalFile]:
    """Look at every file that the model's tensors refer to; only their sizes are asked for."""
    ends: defaultdict[str, list[int]] = defaultdict(list)
    for weight in model.weights:
        if weight.external:
            ends[weight.external.location].append(weight.external.offset + weight.external.length)
    files: list[ExternalFile] = []
    for location, needed in sorted(ends.items()):
        path = model.path.parent / location
        status = path.stat() if path.is_file() else None
        files.append(
            ExternalFile(
                location=location,
                tensors=len(needed),
                needed_bytes=max(needed),
                size_bytes=status.st_size if status else None,
                is_symlink=path.is_symlink(),
                names=status.st_nlink if status else 0,
            )
        )
    return files


def is_inside(location: str) -> bool:
    """Say whether a location stays within the model's folder, as every runtime demands."""
    path = PurePosixPath(location)
    return bool(location) and not path.is_absolute() and ".." not in path.parts


def check_external_files(model: OnnxModel, files: list[ExternalFile]) -> list[Finding]:
    """Report what is missing, cut short, outside of the folder or only linked to."""
    return [finding for file in files if (finding := _check(model.path.parent, file))]


def _check(folder: Path, file: ExternalFile) -> Finding | None:
    where = folder / file.location
    if not is_inside(file.location):
        return Finding(
            "error",
            f"Weights lie outside of the model's folder, at {file.location!r}.",
            "Runtimes refuse that: save the model again with its data in one file beside it.",
        )
    if file.size_bytes is None:
        return Finding(
            "error",
            f"{where} is missing, and holds {file.tensors} of the model's tensors.",
            f"Put it beside {folder.name}'s ONNX file, under this very name: it stands in the "
            "file. `qwen3-triton model pull` fetches both.",
        )
    if not file.is_whole:
        with where.open("rb") as reader:
            pointer = reader.read(len(LFS_POINTER)) == LFS_POINTER
        kind = "a Git LFS pointer" if pointer else "cut short"
        return Finding(
            "error",
            f"{where} is {kind}: {file.size_bytes:,} bytes of {file.needed_bytes:,}.",
            "Run `git lfs pull`." if pointer else "Fetch it again; the download did not end.",
        )
    if file.is_symlink:
        return Finding(
            "warning",
            f"{where} is a symbolic link, as the hub's cache makes them.",
            "ONNX Runtime 1.24 (Triton 26.02 to 26.06) refuses linked weights. `model pool -o` "
            "and `model repository` write real files.",
        )
    return None
