"""Rerankers to test with: the nano architecture with random weights, in the forms that exist.

The tokenizer is the nano model's, so that prompts have the lengths of real ones.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qwen3_nano
from onnx_exports import save
from qwen3_nano.graph import build_graph
from qwen3_nano.weights import NanoLayer, NanoWeights, Quantized

Head = Literal["tied", "stored", "transposed", "gemm", "fused"]
HEADS: tuple[Head, ...] = ("tied", "stored", "transposed", "gemm", "fused")
VOCABULARY, HIDDEN = 24_000, 32
NO, YES = 3516, 16_950  # in the nano model's tokenizer
TABLE = "embed_tokens.rows"


@cache
def random_weights(seed: int = 8) -> NanoWeights:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Quantized:
        values = random.normal(size=(rows, columns)) / np.sqrt(columns)
        return Quantized(values.astype(np.float32))

    def gains(size: int) -> np.ndarray:
        return random.uniform(0.5, 1.5, size).astype(np.float32)

    layers = [
        NanoLayer(
            input_norm=gains(HIDDEN),
            q=matrix(HIDDEN, HIDDEN),
            k=matrix(HIDDEN // 2, HIDDEN),
            v=matrix(HIDDEN // 2, HIDDEN),
            q_norm=gains(8),
            k_norm=gains(8),
            o=matrix(HIDDEN, HIDDEN),
            post_norm=gains(HIDDEN),
            gate=matrix(64, HIDDEN),
            up=matrix(64, HIDDEN),
            down=matrix(HIDDEN, 64),
        )
        for _ in range(2)
    ]
    # The table as most exports have it: not factorized.
    table = Quantized(random.normal(size=(VOCABULARY, HIDDEN)).astype(np.float32))
    identity = Quantized(np.eye(HIDDEN, dtype=np.float32))
    return NanoWeights(table, identity, tuple(layers), gains(HIDDEN), 8, 1e6, 1e-6)


def trunk(seed: int = 8, **options: Any) -> onnx.ModelProto:
    """Build the model up to its states, which it does not return, with a table named `TABLE`."""
    model = build_graph(random_weights(seed), **options)
    graph = model.graph
    first = next(node for node in graph.node if node.op_type == "Gather")
    table = first.input[0]
    for tensor in graph.initializer:
        tensor.name = TABLE if tensor.name == table else tensor.name
    first.input[0] = TABLE
    for node in graph.node:
        node.output[:] = ["states" if o == "last_hidden_state" else o for o in node.output]
    del graph.output[:]
    return model


def causal_model(
    head: Head = "tied",
    *,
    dtype: int = TensorProto.FLOAT,
    cast_back: bool = False,
    **options: Any,
) -> onnx.ModelProto:
    """Build a causal language model with the logits of all tokens at all positions.

    Args:
        head: How its last matrix is stored and multiplied by.
        dtype: Of that product, which then casts the states, and for `tied` the table.
        cast_back: Whether the logits are float32 again.
        options: Those of `build_graph`.
    """
    model = trunk(**options)
    graph = model.graph
    [table] = [t for t in graph.initializer if t.name == TABLE]
    values = np.roll(numpy_helper.to_array(table), 1, axis=0)  # not the table's own rows
    states, nodes = "states", []
    if dtype != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["states"], ["narrow"], to=dtype))
        states = "narrow"
    narrow = helper.tensor_dtype_to_np_dtype(dtype)
    if head == "tied":
        weights = TABLE
        if dtype != TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [TABLE], ["table"], to=dtype))
            weights = "table"
        nodes.append(helper.make_node("Transpose", [weights], ["turned"], perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", [states, "turned"], ["product"]))
    elif head == "transposed":
        matrix = np.ascontiguousarray(values.T).astype(narrow)
        graph.initializer.append(numpy_helper.from_array(matrix, "head"))
        nodes.append(helper.make_node("MatMul", [states, "head"], ["product"]))
    else:
        graph.initializer.append(numpy_helper.from_array(values.astype(narrow), "head"))
        if head == "stored":
            nodes.append(helper.make_node("Transpose", ["head"], ["turned"], perm=[1, 0]))
            nodes.append(helper.make_node("MatMul", [states, "turned"], ["product"]))
        elif head == "fused":
            fused = {"domain": "com.microsoft", "transB": 1}
            nodes.append(helper.make_node("FusedMatMul", [states, "head"], ["product"], **fused))
        else:
            nodes += _gemm(graph, states)
    final = "product"
    if cast_back:
        nodes.append(helper.make_node("Cast", ["product"], ["wide"], to=TensorProto.FLOAT))
        final = "wide"
    nodes.append(helper.make_node("Identity", [final], ["logits"]))
    graph.node.extend(nodes)
    kind = TensorProto.FLOAT if cast_back else dtype
    shape = ["batch", "sequence", VOCABULARY]
    graph.output.append(helper.make_tensor_value_info("logits", kind, shape))
    if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def _gemm(graph: onnx.GraphProto, states: str) -> list[onnx.NodeProto]:
    """Multiply as torch's Linear of two dimensions does, between two reshapes."""
    shapes = {"flat": [-1, HIDDEN], "one": [VOCABULARY]}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(shape, dtype=np.int64), name)
        for name, shape in shapes.items()
    )
    return [
        helper.make_node("Reshape", [states, "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "head"], ["scores"], transB=1),
        helper.make_node("Shape", ["input_ids"], ["ids_shape"]),
        helper.make_node("Concat", ["ids_shape", "one"], ["full"], axis=0),
        helper.make_node("Reshape", ["scores", "full"], ["product"]),
    ]


def with_logits(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Add nodes that compute the logits of all tokens at all positions."""
    model.graph.node.extend(nodes)
    shape = ["batch", "sequence", VOCABULARY]
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def dynamic_head() -> onnx.ModelProto:
    """The head as `quantize_dynamic` writes it: a product of integers, then its scale."""
    model = trunk()
    head = np.ones((HIDDEN, VOCABULARY), dtype=np.int8)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(head, "head"),
            numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        ]
    )
    outputs = ["bytes", "scale", "zero"]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["states"], outputs),
        helper.make_node("MatMulInteger", ["bytes", "head", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "s"], ["logits"]),
    ]
    return with_logits(model, nodes)


def classifier_model(
    *, position: Literal["last", "end"] = "last", seed: int = 8, scale: float = 1.0
) -> onnx.ModelProto:
    """Build a seq-cls model, with one logit for each pair.

    Args:
        position: `last` finds the last token before the pads, as transformers does; `end` takes
            the last position, padded or not.
        seed: Of the weights.
        scale: Of the logit: with a small one, scores are not all near 0 or 1.
    """
    model = trunk(seed)
    graph = model.graph
    table = random_weights(seed).embedding.values
    row = (table[YES] - table[NO]) * scale
    constants = {
        "score": row.reshape(HIDDEN, 1).astype(np.float32),
        "pad": np.array(0),
        "axis": np.array([1]),
        "minus_one": np.array(-1),
        "from": np.array(0),
        "step": np.array(1),
    }
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    if position == "end":
        graph.node.append(helper.make_node("Gather", ["states", "minus_one"], ["last"], axis=1))
    else:
        graph.node.extend(
            [
                helper.make_node("Equal", ["input_ids", "pad"], ["is_pad"]),
                helper.make_node("Not", ["is_pad"], ["is_text"]),
                helper.make_node("Cast", ["is_text"], ["text"], to=TensorProto.INT64),
                helper.make_node("Shape", ["input_ids"], ["ids_shape"]),
                helper.make_node("Gather", ["ids_shape", "step"], ["length"]),
                helper.make_node("Range", ["from", "length", "step"], ["places"]),
                helper.make_node("Mul", ["text", "places"], ["reached"]),
                helper.make_node("ReduceMax", ["reached"], ["index"], axes=[1], keepdims=1),
                helper.make_node("GatherND", ["states", "index"], ["last"], batch_dims=1),
            ]
        )
    graph.node.append(helper.make_node("MatMul", ["last", "score"], ["logits"]))
    info = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])
    graph.output.append(info)
    used = {name for node in graph.node for name in node.input}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]
    return model


def write_reranker(folder: Path, model: onnx.ModelProto, *, external: bool = True) -> Path:
    """Write a model with its tokenizer and configuration; return the ONNX file."""
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / "model.onnx", external=external)
    shutil.copyfile(qwen3_nano.model_dir() / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((qwen3_nano.model_dir() / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForCausalLM"], "hidden_size": HIDDEN}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.onnx"
