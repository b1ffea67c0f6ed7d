"""The files of a model: real, complete, readable for Triton, and with a tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.tokenization import END_TOKEN, TextTokenizer

from ..local_triton import LocalTritonError, find_onnx_file
from ..model.external_data import list_external_files
from ..model.rights import TRITON_USER, is_readable_for_triton
from ..onnx_file import OnnxFileError, OnnxSignature, read_model
from .checks import Check, failed, ok, readable_size, skipped, warning

LFS_POINTER = b"version https://git-lfs"
LFS_REMEDY = "git lfs install && git lfs pull in the clone, or `qwen3-triton model pull`"
MAX_LENGTH = 32
MANY_NAMES = 4


def check_model_dir(model_dir: Path) -> list[Check]:
    """Look at a folder with `model.onnx`, as `--model-dir` names it."""
    if not model_dir.is_dir():
        return [failed("model folder", f"{model_dir} does not exist", "name the right folder")]
    try:
        onnx_file = find_onnx_file(model_dir)
    except LocalTritonError as error:
        held = ", ".join(sorted(path.name for path in model_dir.iterdir())[:8]) or "nothing"
        remedy = "fetch the export again (`qwen3-triton model pull`), or name its folder"
        return [failed("model.onnx", f"{error}; it holds {held}", remedy)]
    return check_onnx_file(onnx_file, served=False)[0]


def check_onnx_file(onnx_file: Path, *, served: bool) -> tuple[list[Check], OnnxSignature | None]:
    """Look at an ONNX file and its external data; `served` says that Triton has to load it.

    Gives the signature too, where the file could be read.
    """
    if is_lfs_pointer(onnx_file):
        seen = f"{onnx_file} is a Git LFS pointer of {onnx_file.stat().st_size} bytes, no model"
        return [failed("model.onnx", seen, LFS_REMEDY)], None
    try:
        model = read_model(onnx_file)
    except OnnxFileError as error:
        remedy = "fetch it again: `git lfs pull`, or `qwen3-triton model pull`"
        return [failed("model.onnx", str(error), remedy)], None
    signature, beside = model.signature, list_external_files(model)
    files = [onnx_file, *(onnx_file.parent / file.location for file in beside)]
    checks = [ok("model.onnx", f"{onnx_file}, {_interface(signature)}")]
    checks += [
        check_external_file(onnx_file.parent / file.location, file.needed_bytes, served=served)
        for file in beside
    ]
    there = [path for path in files if path.exists()]
    checks.append(check_readable(there, _user_id(), served=served))
    return checks, signature


def check_external_file(path: Path, needed_bytes: int, *, served: bool) -> Check:
    """Say whether a file with weights is there, whole and real."""
    name = f"weights {path.name}"
    copy = f"copy it beside model.onnx: cp -L SOURCE/{path.name} {path.parent}/"
    if path.is_symlink():
        if not path.exists():
            return failed(name, f"{path} is a symbolic link to nothing", copy)
        seen = f"{path} is a symbolic link, which ONNX Runtime 1.24 (Triton 26.02-26.06) refuses"
        remedy = f"put a real file or a hard link in its place: cp -L or cp -l ({path.name})"
        return failed(name, seen, remedy) if served else warning(name, seen, remedy)
    if not path.is_file():
        return failed(name, f"{path} is missing: model.onnx keeps its weights there", copy)
    if is_lfs_pointer(path):
        return failed(name, f"{path} is a Git LFS pointer, no weights", LFS_REMEDY)
    size = path.stat().st_size
    if size < needed_bytes:
        seen = f"{path} is incomplete: {size} bytes of at least {needed_bytes}"
        return failed(name, seen, "fetch it again; the download broke off")
    return ok(name, f"{readable_size(size)}, complete")


def check_readable(files: list[Path], user_id: int, *, served: bool) -> Check:
    """Say whether Triton's user can read the files, and whether `user_id` may change them."""
    name = "file rights"
    folder = files[0].parent
    closed = [path.name for path in files if not is_readable_for_triton(path)]
    remedy = f'sudo chown -R "$USER":"$USER" {folder} && chmod -R a+rX {folder}'
    if closed:
        seen = f"Triton's user (uid {TRITON_USER}) cannot read {', '.join(closed)} in {folder}"
        return failed(name, seen, remedy) if served else warning(name, seen, remedy)
    if user_id != 0 and any(path.stat().st_uid == 0 for path in files):
        seen = f"files in {folder} belong to root, so that you cannot change them"
        return warning(name, seen, remedy)
    return ok(name, f"readable for Triton's user (uid {TRITON_USER})")


def check_tokenizer(path: Path | None) -> Check:
    """Load a tokenizer as the gateway does, and look for the end token."""
    name = "tokenizer"
    if path is None:
        reason = "no --tokenizer-path, TOKENIZER_PATH or --model-dir"
        return skipped(name, reason)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file() and is_lfs_pointer(file):
        return failed(name, f"{file} is a Git LFS pointer, no tokenizer", LFS_REMEDY)
    try:
        tokenizer = TextTokenizer(path, max_length=MAX_LENGTH)
    except StartupError as error:
        remedy = "fetch tokenizer.json of the model's own repository and name its folder"
        return failed(name, error.message, remedy)
    own = "the file appends it" if tokenizer.appends_end_token else "the gateway appends it"
    return ok(name, f"{file}, end token {END_TOKEN} ({own})")


def is_lfs_pointer(path: Path) -> bool:
    """Say whether a file is the text that Git LFS leaves in place of the real one."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def model_size(onnx_file: Path) -> int:
    """Add up the bytes of an ONNX file and of what lies beside it; 0 where it cannot be read."""
    try:
        beside = list_external_files(read_model(onnx_file))
        return onnx_file.stat().st_size + sum(file.size_bytes or 0 for file in beside)
    except (OSError, OnnxFileError):
        return 0


def _user_id() -> int:
    """Give this user's id; where there is none, as on Windows, nothing belongs to another."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _interface(signature: OnnxSignature) -> str:
    inputs = [tensor.name for tensor in signature.inputs]
    shown = ", ".join(inputs[:MANY_NAMES])
    if len(inputs) > MANY_NAMES:
        shown += f" and {len(inputs) - MANY_NAMES} more"
    return f"{shown} -> {', '.join(tensor.name for tensor in signature.outputs)}"
