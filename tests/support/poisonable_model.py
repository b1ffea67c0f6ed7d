"""Models that cannot compute texts with one of two words in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

# Each is one token of the nano model, after a space.
NAN_WORD = "poison"  # its row is NaN, as where float16 overflows
FAILING_WORD = "bomb"  # its batch fails


def make_poisonable(folder: Path) -> Path:
    """Add both to the model in a folder, and return the folder."""
    model = onnx.load(folder / "model.onnx")
    graph, output = model.graph, model.graph.output[0]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    constants = {
        "nan_token": np.array(_token(tokenizer, NAN_WORD)),
        "failing_token": np.array(_token(tokenizer, FAILING_WORD)),
        "nan": np.array(np.nan, dtype=np.float32),
        "zeros": np.zeros(1, dtype=np.float32),
        "last": np.array([1]),
        "inner_axes": np.arange(1, len(output.type.tensor_type.shape.dim)),
    }
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    for node in graph.node:
        node.output[:] = ["sound" if name == output.name else name for name in node.output]
    node = helper.make_node
    graph.node.extend(
        [
            node("Equal", ["input_ids", "nan_token"], ["is_nan_token"]),
            node("Cast", ["is_nan_token"], ["nan_tokens"], to=TensorProto.INT64),
            node("ReduceSum", ["nan_tokens", "last"], ["nan_counts"], keepdims=0),
            node("Cast", ["nan_counts"], ["is_nan"], to=TensorProto.BOOL),
            node("Unsqueeze", ["is_nan", "inner_axes"], ["is_nan_row"]),
            node("Where", ["is_nan_row", "nan", "sound"], ["with_nan"]),
            node("Equal", ["input_ids", "failing_token"], ["is_failing_token"]),
            node("Cast", ["is_failing_token"], ["failing_tokens"], to=TensorProto.INT64),
            # `zeros` has one element, so index 1 is out of range and the batch fails.
            node("Gather", ["zeros", "failing_tokens"], ["no_change"]),
            node("ReduceSum", ["no_change"], ["zero"], keepdims=0),
            node("Add", ["with_nan", "zero"], [output.name]),
        ]
    )
    onnx.save(model, folder / "model.onnx")
    return folder


def copy_poisonable(source: Path, folder: Path) -> Path:
    """Copy a model with its tokenizer to a new folder, where it is poisonable."""
    folder.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        shutil.copyfile(source / name, folder / name)
    return make_poisonable(folder)


def _token(tokenizer: Tokenizer, word: str) -> int:
    [token] = tokenizer.encode(f" {word}", add_special_tokens=False).ids
    return token
