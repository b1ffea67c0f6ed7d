"""The digest that names a model's weights in a fingerprint, by whatever way they are served."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from .onnx_file import OnnxFileError, read_model

_CHUNK_BYTES = 8 * 1024 * 1024


def weights_digest(model_path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """Digest an ONNX file and the files beside it that hold its weights.

    Reads every byte of them: seconds for gigabytes. `on_bytes` hears how many more were read.
    """
    digest = hashlib.sha256()
    for path in weight_files(model_path):
        digest.update(_digest_file(path, on_bytes))
    return digest.hexdigest()


def weight_files(model_path: Path) -> list[Path]:
    """List the ONNX file and, sorted, those beside it that hold its weights and are there."""
    try:
        locations = read_model(model_path).external_locations
    except OnnxFileError:  # whoever loads the model says what is wrong with it
        locations = ()
    external = [model_path.parent / name for name in locations]
    return [model_path, *(path for path in sorted(external) if path.is_file())]


def _digest_file(path: Path, on_bytes: Callable[[int], object] | None) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return digest.digest()
