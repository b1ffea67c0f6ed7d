"""The digest that names a model's weights in a fingerprint, by whatever way they are served."""

from __future__ import annotations

import hashlib
from pathlib import Path


def weights_digest(model_path: Path) -> str:
    """Digest an ONNX file and the external data beside it (`model.onnx_data`, `*.onnx.data`)."""
    external = [*model_path.parent.glob("*.onnx_data*"), *model_path.parent.glob("*.onnx.data")]
    digest = hashlib.sha256()
    for path in [model_path, *sorted(external)]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
