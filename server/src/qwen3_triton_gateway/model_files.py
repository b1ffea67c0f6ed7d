"""Find the files of a model folder, as every command and the gateway do."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, cast

# Where exports keep the graph: optimum in the folder itself, the hub's onnx-community in `onnx`.
USUAL_PLACES = ("model.onnx", "onnx/model.onnx")
_REMEDIES = {
    (errno.EACCES, errno.EPERM, errno.EROFS): " Give this user access, or choose another folder.",
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): " Free some space, or choose another disk.",
}


class ModelFileError(Exception):
    """A file of a model is missing or cannot be used; the message says what to do."""


def find_model(path: Path) -> Path:
    """Find the ONNX file that `path` names: a file, or a folder with one.

    Raises:
        ModelFileError: The folder has no ONNX file, several of which none has the usual name, or
            cannot be read.
    """
    # `Path.is_file` raises where a folder may not be entered; `os.path.isfile` does not.
    if os.path.isfile(path):
        return path.absolute()
    if not os.path.isdir(path):
        raise ModelFileError(f"There is no file or folder {path}.")
    for place in USUAL_PLACES:
        if os.path.isfile(path / place):
            # Not resolved: external weights are next to the link, not next to its target.
            return (path / place).absolute()
    found = _list_models(path)
    if len(found) == 1:
        return found[0].absolute()
    if found:
        names = ", ".join(str(file.relative_to(path)) for file in found)
        raise ModelFileError(f"{path} has several ONNX files. Name one of them: {names}.")
    msg = (
        f"{path} has no ONNX file. Export the model with `optimum-cli export onnx --task "
        "feature-extraction`, or a reranker with `--task text-generation`; or fetch an export with "
        "`qwen3-triton model pull`."
    )
    raise ModelFileError(msg)


def find_sibling(model_path: Path, name: str) -> Path | None:
    """Find a file of the export: next to its graph, or above it if the graph is in `onnx`."""
    folders = [model_path.parent]
    if model_path.parent.name == "onnx":
        folders.append(model_path.parent.parent)
    return next((folder / name for folder in folders if os.path.isfile(folder / name)), None)


def find_tokenizer(tokenizer: Path | None, model_dir: Path | None) -> Path | None:
    """Return the tokenizer that settings name: by its own path, or else by the model's."""
    return tokenizer or (tokenizer_of(model_dir) if model_dir else None)


def export_name(model_path: Path) -> str:
    """Return the name of an export's folder, which is above `onnx` if the graph is in that."""
    folder = Path(os.path.abspath(model_path)).parent  # the name of `..`, too
    return (folder.parent if folder.name == "onnx" else folder).name


def reranker_name(name: str, embedding_name: str) -> str:
    """Return what a reranker is called by default, next to an embedding model."""
    return f"{name}-reranker" if name == embedding_name else name


def tokenizer_of(model_dir: Path) -> Path:
    """Return the folder with the tokenizer of a model folder, or of a model file."""
    try:
        file = find_sibling(find_model(model_dir), "tokenizer.json")
    except ModelFileError:  # reported where the model is loaded
        file = None
    return file.parent if file else model_dir


def stated_max_length(tokenizer: Path) -> int | None:
    """Return how many tokens a model was made for, by the `config.json` next to its tokenizer.

    None if there is no such file, or if it says how positions are scaled beyond that.

    Args:
        tokenizer: The folder of `tokenizer.json`, or the file itself.
    """
    folder = tokenizer if os.path.isdir(tokenizer) else tokenizer.parent
    config = _read_config(folder / "config.json")
    length = None if config.get("rope_scaling") else config.get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


def model_config(model_path: Path) -> dict[str, Any]:
    """Return the content of a model's config.json; empty if it has none that can be read."""
    file = find_sibling(model_path, "config.json")
    return _read_config(file) if file else {}


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}  # the gateway does not need the file
    return cast("dict[str, Any]", config) if isinstance(config, dict) else {}


def describe_os_error(error: OSError, path: Path | None = None) -> str:
    """Write an error of the operating system as sentences: the file, what is wrong, what to do.

    Args:
        error: The error.
        path: The file, where the error does not name it.
    """
    name = path if path is not None else error.filename
    reason = (error.strerror or str(error) or type(error).__name__).removesuffix(".")
    return f"{reason if name is None else f'{name}: {reason}'}.{remedy_of(error)}"


def remedy_of(error: OSError) -> str:
    """Return what to do about a file that cannot be read or written; empty for other errors."""
    return next((text for codes, text in _REMEDIES.items() if error.errno in codes), "")


def _list_models(folder: Path) -> list[Path]:
    """List the ONNX files of a folder and of its subfolder `onnx`."""
    try:
        names = [Path(name) for name in os.listdir(folder)]
        if os.path.isdir(folder / "onnx"):
            names += [Path("onnx", name) for name in os.listdir(folder / "onnx")]
    except OSError as error:
        raise ModelFileError(describe_os_error(error)) from error
    return sorted(
        folder / name for name in names if name.suffix == ".onnx" and os.path.isfile(folder / name)
    )
