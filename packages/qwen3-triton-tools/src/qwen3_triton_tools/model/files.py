"""The files of an export: find them, check its external weights, transfer them to a folder."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from qwen3_triton_gateway import model_files
from qwen3_triton_gateway.model_files import ModelFileError, find_sibling

from ..errors import ModelError
from ..findings import Finding, failure, ok, warning
from ..onnx_model import OnnxModel, is_lfs_pointer
from ..writing import replacing_file

Transfer: TypeAlias = Literal["auto", "copy", "link"]

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What the gateway, transformers and sentence-transformers read next to a model.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "config.json",
)
# `triton-server` of NVIDIA's image, and its group; also in KServe and in Helm charts.
TRITON_USER = 1000
_KILO = 1000


@dataclass(frozen=True, slots=True)
class ExternalFile:
    """A file of external weights.

    Attributes:
        needed_bytes: Where the last tensor in it ends.
        size_bytes: Its actual size, None if it is missing.
        names: Number of its hard links, itself included.
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


def is_hub_name(path: Path) -> bool:
    """Return whether `path` does not exist on this machine and looks like `owner/repository`."""
    return not path.exists() and _HUB_NAME.fullmatch(str(path)) is not None


def find_model(path: Path) -> Path:
    """Find the ONNX file that `path` names, as the gateway does: a file, or a folder with one.

    Raises:
        ModelError: The folder has none, or several of which none has the usual name.
    """
    try:
        return model_files.find_model(path)
    except ModelFileError as error:
        hint = ""
        if is_hub_name(path):
            hint = f" To fetch it from the hub, run `qwen3-triton model pull {path}`."
        raise ModelError(f"{error}{hint}") from None


def check_place(folder: Path, model_path: Path, *, force: bool) -> None:
    """Check that a model may be written to `folder`, in place of what is there.

    Raises:
        ModelError: It exists and `force` is not set, the model itself is in it, or no model is; or
            it is a file.
    """
    if not os.path.lexists(folder):
        return
    if model_path.resolve().is_relative_to(folder.resolve()):
        msg = f"{model_path} is in {folder}, which would be replaced. Choose another name."
        raise ModelError(msg)
    if folder.is_file():
        raise ModelError(f"{folder} is a file, and a folder is written. Choose another name.")
    if not force:
        raise ModelError(f"{folder} already exists. Pass `--force` to replace it.")
    if folder.is_dir() and any(folder.iterdir()) and not _has_model(folder):
        msg = (
            f"{folder} has no model in it, but other files, which `--force` would remove. Choose "
            "another name."
        )
        raise ModelError(msg)


def _has_model(folder: Path) -> bool:
    """Return whether this is the folder of a model, or of one in a Triton repository."""
    patterns = ("config.pbtxt", "*.onnx", "onnx/*.onnx", "[0-9]*/*.onnx")
    return any(path for pattern in patterns for path in folder.glob(pattern))


def list_external_files(model: OnnxModel) -> list[ExternalFile]:
    """Describe every file that the model's tensors refer to, without reading any."""
    ends: defaultdict[str, list[int]] = defaultdict(list)
    for weight in model.weights:
        if weight.external:
            ends[weight.external.location].append(weight.external.offset + weight.external.length)
    files: list[ExternalFile] = []
    for location, needed in sorted(ends.items()):
        path = model.path.parent / location
        status = path.stat() if os.path.isfile(path) else None
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
    """Return whether a location stays within the model's folder, as every runtime demands."""
    path = PurePosixPath(location)
    return bool(location) and not path.is_absolute() and ".." not in path.parts


def check_external_file(folder: Path, file: ExternalFile) -> Finding:
    """Report weights that are missing, truncated, outside of the folder or only linked to."""
    name = f"weights {PurePosixPath(file.location).name}"
    path = folder / file.location
    if not is_inside(file.location):
        return failure(
            name,
            f"The weights are outside of the model's folder, at {file.location!r}.",
            "Runtimes refuse that. Save the model again with its weights in one file next to it.",
        )
    if file.size_bytes is None:
        problem = "is a symbolic link to nothing" if file.is_symlink else "is missing"
        return failure(
            name,
            f"{path} {problem}; it should hold {file.tensors} of the model's tensors.",
            f"Put it next to the ONNX file under this very name: cp -L SOURCE/{path.name} "
            f"{path.parent}/. `qwen3-triton model pull` fetches both.",
        )
    if is_lfs_pointer(path):
        return failure(
            name,
            f"{path} is a Git LFS pointer of {file.size_bytes:,} bytes, not the weights.",
            "Run `git lfs install && git lfs pull` in the clone, or `qwen3-triton model pull`.",
        )
    if not file.is_whole:
        return failure(
            name,
            f"{path} is truncated: {file.size_bytes:,} bytes of {file.needed_bytes:,}.",
            "Fetch it again; the download was interrupted.",
        )
    if file.is_symlink:
        return warning(
            name,
            f"{path} is a symbolic link, which ONNX Runtime 1.24 (Triton 26.02 to 26.06) refuses.",
            "Replace it with a real file (cp -L) or a hard link (cp -l); `model pool -o` and "
            "`model repository` write real files.",
        )
    return ok(name, f"{format_bytes(file.size_bytes)}, complete")


def is_readable_by_triton(path: Path) -> bool:
    """Return whether the account of Triton's image may read a file, by the permission bits."""
    return _allows(path, stat.S_IRUSR) and _allows(path.parent, stat.S_IXUSR)


def transfer_file(
    source: Path, target: Path, *, transfer: Transfer = "auto", force: bool = False
) -> None:
    """Create `target` as a real file with the content of `source`, following links.

    `auto` creates a hard link, and copies where the file system cannot.

    Raises:
        ModelError: Another file exists there and `force` is not set, or it cannot be written.
    """
    real = source.resolve()
    if target.parent.resolve() / target.name == real:
        return  # The very same file: making room for it would remove it.
    if target.exists():
        if real.samefile(target) and not target.is_symlink() and transfer != "copy":
            return
        if not force:
            raise ModelError(f"{target} already exists. Pass `--force` to replace it.")
    if transfer != "copy" and _link(real, target):
        return
    if transfer == "link":
        msg = f"{real} cannot be hard-linked to {target}. Omit `--link` to have it copied."
        raise ModelError(msg)
    with replacing_file(target, real.stat().st_mode & 0o777) as unfinished:
        shutil.copyfile(real, unfinished)


def transfer_weights(
    model: OnnxModel, folder: Path, *, transfer: Transfer = "auto", force: bool = False
) -> int:
    """Transfer every file of external weights to `folder`, and return their number.

    Raises:
        ModelError: A file is missing, or its name leads out of the folder.
    """
    for location in model.external_locations:
        if not is_inside(location):
            msg = (
                f"{model.path} has weights outside of its folder, at {location!r}. Save the model "
                "again with its weights next to it."
            )
            raise ModelError(msg)
        source, target = model.path.parent / location, folder / location
        transfer_file(source, target, transfer=transfer, force=force)
    return len(model.external_locations)


def copy_tokenizer(model_path: Path, folder: Path, *, force: bool = False) -> None:
    """Copy the tokenizer's files and config.json to `folder`.

    They are never linked: they are small, and people edit them.
    """
    for name in TOKENIZER_FILES:
        source = find_sibling(model_path, name)
        if source:
            transfer_file(source, folder / name, transfer="copy", force=force)


def format_bytes(count: int) -> str:
    """Format a number of bytes in powers of 1000, as disks are sold."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < _KILO:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= _KILO
    return f"{size:.2f} GB"


def _allows(path: Path, user_bit: int) -> bool:
    """Evaluate a permission bit as the kernel does for Triton's user and group."""
    status = path.stat()
    if status.st_uid == TRITON_USER:
        return bool(status.st_mode & user_bit)
    if status.st_gid == TRITON_USER:
        return bool(status.st_mode & user_bit >> 3)
    return bool(status.st_mode & user_bit >> 6)


def _link(source: Path, target: Path) -> bool:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        os.link(source, target)
    except OSError:  # another file system, or one without links; or the copy fails too, and says so
        return False
    return True
