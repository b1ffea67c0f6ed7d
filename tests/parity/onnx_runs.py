"""ONNX Runtime in the product's environment, for graphs that the product wrote."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PYTHON = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "python"

SCRIPT = """
import sys
import numpy as np, onnxruntime
path, feed, results, output = sys.argv[1:]
session = onnxruntime.InferenceSession(path)
types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
stored, rows = np.load(feed), {}
for name in {key.partition("/")[0] for key in stored}:
    ids, mask = stored[name + "/ids"], stored[name + "/mask"]
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    arrays = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for entry in session.get_inputs():
        if entry.name not in arrays:
            shape = (len(ids), entry.shape[1], 0, entry.shape[3])
            arrays[entry.name] = np.empty(shape, types[entry.type])
    used = {entry.name for entry in session.get_inputs()}
    arrays = {name: array for name, array in arrays.items() if name in used}
    [rows[name]] = session.run([output], arrays)
np.savez(results, **rows)
"""


def run_onnx(
    path: Path,
    batches: dict[str, tuple[NDArray[Any], NDArray[Any]]],
    folder: Path,
    *,
    output: str = "sentence_embedding",
) -> Any:
    """Run a graph on batches of token ids and masks, and return its output for each by name."""
    feed, results = folder / "feed.npz", folder / "rows.npz"
    arrays = {f"{name}/ids": ids for name, (ids, _) in batches.items()}
    np.savez(feed, **arrays | {f"{name}/mask": mask for name, (_, mask) in batches.items()})
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    command = [PYTHON, "-c", SCRIPT, path, feed, results, output]
    subprocess.run(command, check=True, timeout=600, env=environment)
    return np.load(results)
