"""Bring files of gigabytes to another folder: by hard links where possible, never by symlinks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal, TypeAlias

from ..onnx_file import OnnxModel
from .errors import ModelToolError
from .external_data import is_inside
from .locate import find_beside

Transfer: TypeAlias = Literal["auto", "copy", "link"]

# What the gateway, transformers and sentence-transformers read beside a model.
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


def bring_file(
    source: Path, target: Path, *, transfer: Transfer = "auto", force: bool = False
) -> None:
    """Make `target` a real file with the content of `source`, following links.

    `auto` makes a hard link, and copies where the file system cannot.

    Raises:
        ModelToolError: another file is there and `force` is not given, or it cannot be written.
    """
    real = source.resolve()
    if target.parent.resolve() / target.name == real:
        return  # the very same file: making room for it would remove it
    if target.exists():
        if real.samefile(target) and not target.is_symlink() and transfer != "copy":
            return
        if not force:
            raise ModelToolError(f"{target} is there already: give `--force` to replace it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if transfer == "copy" or (not _link(real, target) and transfer == "auto"):
            shutil.copyfile(real, target)
    except OSError as error:
        raise ModelToolError(f"Cannot write {target}: {error.strerror or error}.") from error
    if not target.exists():
        msg = f"Cannot hard-link {real} to {target}: leave `--link` out to have it copied."
        raise ModelToolError(msg)


def bring_external_data(
    model: OnnxModel, folder: Path, *, transfer: Transfer = "auto", force: bool = False
) -> int:
    """Bring every file of weights to `folder` under the name that the model gives it, and count.

    Raises:
        ModelToolError: one is missing, or its name leads out of the folder.
    """
    for location in model.external_locations:
        if not is_inside(location):
            msg = f"{model.path} keeps weights outside of its folder ({location!r}): save it again."
            raise ModelToolError(msg)
        bring_file(model.path.parent / location, folder / location, transfer=transfer, force=force)
    return len(model.external_locations)


def bring_tokenizer(model_path: Path, folder: Path, *, force: bool = False) -> list[str]:
    """Copy the tokenizer's files and config.json to `folder`; name those that there were.

    Never linked: they are small, and people edit them.
    """
    brought: list[str] = []
    for name in TOKENIZER_FILES:
        source = find_beside(model_path, name)
        if source:
            bring_file(source, folder / name, transfer="copy", force=force)
            brought.append(name)
    return brought


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        return False
    return True
