"""Find the files of an export: the graph, and the tokenizer and configuration beside it."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import ModelToolError

# Where exports keep the graph: optimum in the folder itself, the hub's onnx-community in `onnx`.
_USUAL_PLACES = ("model.onnx", "onnx/model.onnx")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(path: Path) -> bool:
    """Say whether `path` is nothing on this machine and looks like `owner/repository`."""
    return not path.exists() and _HUB_NAME.fullmatch(str(path)) is not None


def find_model(path: Path) -> Path:
    """Find the ONNX file that `path` names, a file or a folder with one.

    Raises:
        ModelToolError: there is none, or there are several and none has the usual name.
    """
    if path.is_file():
        return path.absolute()
    if not path.is_dir():
        hint = ""
        if is_hub_name(path):
            hint = f" To fetch it from the hub: `qwen3-triton model pull {path}`."
        raise ModelToolError(f"There is no file or folder {path}.{hint}")
    for place in _USUAL_PLACES:
        if (path / place).is_file():
            # Not resolved: external data is looked up beside the name, not beside its target.
            return (path / place).absolute()
    found = sorted({*path.glob("*.onnx"), *path.glob("onnx/*.onnx")})
    if len(found) == 1:
        return found[0].absolute()
    if found:
        names = ", ".join(str(file.relative_to(path)) for file in found)
        raise ModelToolError(f"{path} holds several ONNX files; name one of them: {names}.")
    msg = (
        f"{path} holds no ONNX file. Export the model with `optimum-cli export onnx --task "
        "feature-extraction`, or fetch an export with `qwen3-triton model pull`."
    )
    raise ModelToolError(msg)


def find_beside(model_path: Path, name: str) -> Path | None:
    """Find a file of the export: beside its graph, or above it where the graph is in `onnx`."""
    folders = [model_path.parent]
    if model_path.parent.name == "onnx":
        folders.append(model_path.parent.parent)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
