"""Exports to test the model tools with: the nano model in the forms that the family comes in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import qwen3_nano
from qwen3_nano.graph import build_graph
from qwen3_nano.weights import NanoLayer, NanoWeights, Quantized, load_weights

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float16": {"float16_output": True},
    "past": {"past_key_values": True},
    "no_positions": {"position_ids": False},
    "past_no_positions": {"past_key_values": True, "position_ids": False},
}
HIDDEN_SIZE = 1152
TINY_VOCABULARY, TINY_SIZE = 50, 8


@cache
def nano_weights() -> NanoWeights:
    return load_weights(qwen3_nano.model_dir() / "model.onnx")


def write_export(
    folder: Path, *, external: bool = True, weights: NanoWeights | None = None, **options: Any
) -> Path:
    """Write the nano model as an export with its tokenizer; give the ONNX file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    save(build_graph(weights or nano_weights(), **options), path, external=external)
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(qwen3_nano.model_dir() / name, folder / name)
    return path


def float_weights(*, massive: float = 1.0) -> NanoWeights:
    """Return the nano model's weights in float32.

    Args:
        massive: Multiplies some channels of what the matrices get, as the massive activations of
            real models do (https://arxiv.org/abs/2402.17762), and divides the weights for them: the
            vectors stay the same.
    """
    nano = nano_weights()
    factors = np.ones(nano.hidden_size, dtype=np.float32)
    factors[5::128] = massive  # one for each group of 128 values

    def plain(matrix: Quantized, by: np.ndarray | float = 1.0) -> Quantized:
        return Quantized((matrix.dequantize() / by).astype(np.float32))

    def layer(old: NanoLayer) -> NanoLayer:
        inner = {name: plain(getattr(old, name), factors) for name in ("q", "k", "v", "gate", "up")}
        outer = {name: plain(getattr(old, name)) for name in ("o", "down")}
        norms = {name: getattr(old, name) * factors for name in ("input_norm", "post_norm")}
        return replace(old, **inner, **outer, **norms)

    return replace(
        nano,
        embedding=plain(nano.embedding),
        projection=plain(nano.projection),
        layers=tuple(map(layer, nano.layers)),
    )


def save(model: onnx.ModelProto, path: Path, *, external: bool = True) -> None:
    """Save with the weights in `<name>_data`, the small constants of shapes inside."""
    options: dict[str, Any] = {"location": f"{path.name}_data", "size_threshold": 256}
    onnx.save_model(model, path, save_as_external_data=external, **(options if external else {}))


def tiny_model(
    *,
    opset: int = 17,
    element_type: int = TensorProto.FLOAT,
    nodes: list[onnx.NodeProto] | None = None,
    batch: int | str = "batch",
    length: int | str = "sequence",
    outputs: list[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    """A table of hidden states and nothing else, to which tests add what they need."""
    rows = np.random.default_rng(5).normal(size=(TINY_VOCABULARY, TINY_SIZE))
    dtype = helper.tensor_dtype_to_np_dtype(element_type)
    table = numpy_helper.from_array(rows.astype(dtype), "table")
    shape = [batch, length]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"]),
            *(nodes or []),
        ],
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask")
        ],
        outputs
        or [helper.make_tensor_value_info("last_hidden_state", element_type, [*shape, TINY_SIZE])],
        [table],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def masks() -> dict[str, np.ndarray]:
    """Right, left and mixed padding, a hole, one token and none missing: (4, 12) each."""
    right, left = np.ones((4, 12), dtype=np.int64), np.ones((4, 12), dtype=np.int64)
    for row, pads in enumerate((0, 3, 7, 11)):
        right[row, 12 - pads :] = 0
        left[row, :pads] = 0
    mixed = np.where(np.arange(4)[:, None] % 2, right, left)
    mixed[0, 4:7] = 0
    return {"right": right, "left": left, "mixed": mixed}


def feed(session: onnxruntime.InferenceSession, mask: np.ndarray, past: int = 0) -> dict[str, Any]:
    """Random tokens under a mask, with a random past of a length."""
    random = np.random.default_rng(3)
    batch, length = mask.shape
    arrays: dict[str, Any] = {
        "input_ids": random.integers(0, TINY_VOCABULARY, mask.shape),
        "attention_mask": np.concatenate([np.ones((batch, past), dtype=np.int64), mask], axis=1),
        "position_ids": np.tile(np.arange(length), (batch, 1)),
    }
    for entry in session.get_inputs():
        if entry.name not in arrays:
            shape = (batch, entry.shape[1], past, entry.shape[3])
            arrays[entry.name] = random.normal(size=shape).astype(np.float32)
    return {entry.name: arrays[entry.name] for entry in session.get_inputs()}


def write_inline_giant(path: Path, weight_bytes: int) -> None:
    """Write a model with one tensor of that size inside the file itself."""
    model = tiny_model()
    tensor = model.graph.initializer.add(name="giant", data_type=TensorProto.FLOAT)
    tensor.dims.append(weight_bytes // 4)
    tensor.raw_data = bytes(weight_bytes)
    path.write_bytes(model.SerializeToString())


def write_external_giant(folder: Path, weight_bytes: int) -> Path:
    """Write a model whose weights are a sparse file next to it, in 40 tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model()
    part = weight_bytes // 40
    for index in range(40):
        tensor = onnx.TensorProto(
            name=f"w{index}", data_type=TensorProto.FLOAT16, dims=[part // 2 // 1024, 1024]
        )
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": "model.onnx_data", "offset": index * part, "length": part}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
    onnx.save(model, folder / "model.onnx")
    with (folder / "model.onnx_data").open("wb") as file:
        file.truncate(weight_bytes)
    return folder / "model.onnx"


def peak_memory(*arguments: str) -> tuple[int, int]:
    """Run `qwen3-triton model ...` in a process of its own; give its status and peak in bytes."""
    code = (
        "import re, sys\n"
        "from qwen3_triton_gateway.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    status = end.code\n"
        # Not `ru_maxrss`, which also counts what the parent had when it started this process.
        "text = open('/proc/self/status').read()\n"
        "print(status, int(re.search(r'VmHWM:\\s+(\\d+)', text)[1]) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "model", *arguments],
        capture_output=True,
        check=True,
        text=True,
        env=os.environ | {"QWEN3_TRITON_URL": ""},
    )
    status, peak = done.stdout.splitlines()[-1].split()
    return int(status), int(peak)


def write_tokenizer(folder: Path, edit: dict[str, Any]) -> None:
    """Rewrite a tokenizer.json with other fields at its top."""
    file = folder / "tokenizer.json"
    document = json.loads((qwen3_nano.model_dir() / "tokenizer.json").read_text())
    file.write_text(json.dumps(document | edit))
