"""The ONNX graph of the nano model, built from its weights. Needs the `build` extra.

The architecture is that of transformers' `Qwen3Model`. The weights are stored as int8 with scales,
and the graph computes with exactly the float32 values that they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from qwen3_nano._builder import GraphBuilder
from qwen3_nano.weights import METADATA_FIELDS, NanoLayer, NanoWeights, load_weights

__all__ = ["NanoLayer", "NanoWeights", "Output", "build_graph", "load_weights"]

Output = Literal["last_hidden_state", "sentence_embedding"]

OPSET = 17  # the oldest with every operator used here, for old runtimes
IR_VERSION = 8  # introduced together with opset 17

# The score of a masked key. Finite, so that a row with all keys masked becomes an average, not NaN.
MASKED_SCORE = float(np.finfo(np.float32).min) / 2


@dataclass(frozen=True, slots=True)
class _Context:
    """The names of the tensors shared by all layers."""

    cos: str  # (batch, 1, sequence, head_dim)
    sin: str
    bias: str  # (batch, 1, sequence, past + sequence), 0 or MASKED_SCORE
    past_key_values: bool
    last: str | None = None  # the index of the only tokens to compute, (batch, 1)


def build_graph(
    weights: NanoWeights,
    *,
    output: Output = "last_hidden_state",
    float16_output: bool = False,
    past_key_values: bool = False,
    position_ids: bool = True,
) -> onnx.ModelProto:
    """Build the model as an ONNX graph, in one of the variants found among Qwen3-Embedding exports.

    The inputs are `input_ids`, `attention_mask` and `position_ids`: int64, (batch, sequence).

    Args:
        weights: The weights, for example from `load_weights`.
        output: `last_hidden_state`, (batch, sequence, hidden_size), or `sentence_embedding`,
            (batch, hidden_size): the hidden state of the last token whose mask is 1, not
            normalized.
        float16_output: Whether the output is float16 instead of float32.
        past_key_values: Whether each layer i also takes `past_key_values.{i}.key` and `.value`,
            float32, (batch, num_key_value_heads, past, head_dim), where `past` may be 0. Then
            `attention_mask` is (batch, past + sequence).
        position_ids: Whether `position_ids` is an input. Otherwise positions are counted from the
            mask.

    Returns:
        The model, complete with its weights.
    """
    g = GraphBuilder()
    context = _shared(g, weights, past_key_values=past_key_values, position_ids=position_ids)
    hidden = _embed(g, weights)
    pools = output == "sentence_embedding"
    for index in range(len(weights.layers)):
        if pools and index == len(weights.layers) - 1:
            context = replace(context, last=_last_index(g, context))
        hidden = _layer(g, weights, index, hidden, context)
    result = _rms_norm(g, hidden, g.tensor("norm", weights.norm), weights.rms_norm_eps)
    if pools:
        result = g.op("Squeeze", result, g.ints([1]))
    result = g.op("Cast", result, to=TensorProto.FLOAT16) if float16_output else result
    g.rename(result, output)
    return _model(
        g,
        weights,
        inputs=_inputs(weights, past_key_values=past_key_values, position_ids=position_ids),
        outputs=[_output(weights, output, float16=float16_output)],
    )


def _inputs(
    weights: NanoWeights, *, past_key_values: bool, position_ids: bool
) -> list[onnx.ValueInfoProto]:
    tokens = ["batch", "sequence"]
    mask = ["batch", "total"] if past_key_values else tokens
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, tokens),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, mask),
    ]
    if position_ids:
        inputs.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, tokens))
    if past_key_values:
        shape = ["batch", weights.kv_heads, "past", weights.head_dim]
        inputs += [
            helper.make_tensor_value_info(f"past_key_values.{i}.{kind}", TensorProto.FLOAT, shape)
            for i in range(len(weights.layers))
            for kind in ("key", "value")
        ]
    return inputs


def _output(weights: NanoWeights, name: Output, *, float16: bool) -> onnx.ValueInfoProto:
    tokens = ["batch"] if name == "sentence_embedding" else ["batch", "sequence"]
    dtype = TensorProto.FLOAT16 if float16 else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, dtype, [*tokens, weights.hidden_size])


def _model(
    g: GraphBuilder,
    weights: NanoWeights,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(g.nodes, "qwen3-nano", inputs, outputs, g.initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="qwen3-nano",
    )
    helper.set_model_props(model, {name: repr(getattr(weights, name)) for name in METADATA_FIELDS})
    onnx.checker.check_model(model)  # pyright: ignore[reportUnknownMemberType]
    return model


def _shared(
    g: GraphBuilder, weights: NanoWeights, *, past_key_values: bool, position_ids: bool
) -> _Context:
    """Compute the rotary tables and the attention bias, once for all layers."""
    positions = "position_ids" if position_ids else _positions(g, past_key_values=past_key_values)
    half = weights.head_dim // 2
    # As in transformers: float32, theta ** -(2i / head_dim).
    exponents = np.arange(0, weights.head_dim, 2, dtype=np.float32) / np.float32(weights.head_dim)
    frequencies = (1.0 / np.power(np.float32(weights.rope_theta), exponents)).astype(np.float32)
    column = g.op("Unsqueeze", g.op("Cast", positions, to=TensorProto.FLOAT), g.ints([1, 3]))
    angles = g.op("Mul", column, g.floats(frequencies.reshape(1, 1, 1, half)))
    angles = g.op("Concat", angles, angles, axis=-1)
    return _Context(
        cos=g.op("Cos", angles),
        sin=g.op("Sin", angles),
        bias=_attention_bias(g),
        past_key_values=past_key_values,
    )


def _positions(g: GraphBuilder, *, past_key_values: bool) -> str:
    """Count positions from the mask: its running sum minus one, at least 0."""
    counted = g.op("CumSum", "attention_mask", g.scalar(1))
    counted = g.op("Max", g.op("Sub", counted, g.scalar(1)), g.scalar(0))
    if not past_key_values:
        return counted
    return g.op("Slice", counted, _past_length(g), g.ints([np.iinfo(np.int64).max]), g.ints([1]))


def _past_length(g: GraphBuilder) -> str:
    total = g.op("Shape", "attention_mask", start=1, end=2)
    return g.op("Sub", total, g.op("Shape", "input_ids", start=1, end=2))


def _attention_bias(g: GraphBuilder) -> str:
    """Compute (batch, 1, sequence, total): 0 where a query may see a key, else MASKED_SCORE."""
    total = g.op("Squeeze", g.op("Shape", "attention_mask", start=1, end=2))
    keys = g.op("Range", g.scalar(0), total, g.scalar(1))
    queries = g.op("Range", g.op("Squeeze", _past_length(g)), total, g.scalar(1))
    causal = g.op("LessOrEqual", keys, g.op("Unsqueeze", queries, g.ints([1])))
    real = g.op("Cast", "attention_mask", to=TensorProto.BOOL)
    visible = g.op("And", g.op("Unsqueeze", real, g.ints([1, 2])), causal)
    return g.op("Where", visible, g.floats(0.0), g.floats(MASKED_SCORE))


def _embed(g: GraphBuilder, weights: NanoWeights) -> str:
    """Look up the tokens in the narrow int8 table, and project them to hidden_size."""
    table = weights.embedding
    narrow = g.op("Gather", g.tensor("embed_tokens.rows", table.values), "input_ids")
    if table.scales is not None:
        scales = g.op("Gather", g.tensor("embed_tokens.scales", table.scales), "input_ids")
        narrow = g.op("Mul", g.op("Cast", narrow, to=TensorProto.FLOAT), scales)
    return g.linear(narrow, "embed_tokens.projection", weights.projection)


def _layer(
    g: GraphBuilder, weights: NanoWeights, index: int, hidden: str, context: _Context
) -> str:
    """Run a layer for all tokens, or for the last of each text only, (batch, 1, hidden_size).

    Pooling discards all other rows of the last layer: of them, only keys and values are needed.
    """
    layer, name, eps = weights.layers[index], f"layers.{index}", weights.rms_norm_eps
    normed = _rms_norm(g, hidden, g.tensor(f"{name}.input_norm", layer.input_norm), eps)
    attended = _attention(g, weights, index, normed, context)
    attended = g.op("Add", _at(g, hidden, context.last) if context.last else hidden, attended)
    normed = _rms_norm(g, attended, g.tensor(f"{name}.post_norm", layer.post_norm), eps)
    gate = g.linear(normed, f"{name}.gate", layer.gate)
    gate = g.op("Mul", gate, g.op("Sigmoid", gate))
    up = g.linear(normed, f"{name}.up", layer.up)
    down = g.linear(g.op("Mul", gate, up), f"{name}.down", layer.down)
    return g.op("Add", attended, down)


def _attention(
    g: GraphBuilder, weights: NanoWeights, index: int, normed: str, context: _Context
) -> str:
    layer, name, eps = weights.layers[index], f"layers.{index}", weights.rms_norm_eps
    asking, cos, sin, bias = normed, context.cos, context.sin, context.bias
    if context.last:
        asking = _at(g, asking, context.last)
        cos, sin, bias = (_at(g, part, context.last, heads=True) for part in (cos, sin, bias))
    query = _heads(g, g.linear(asking, f"{name}.q", layer.q), weights.head_dim)
    key = _heads(g, g.linear(normed, f"{name}.k", layer.k), weights.head_dim)
    value = _heads(g, g.linear(normed, f"{name}.v", layer.v), weights.head_dim)
    query = _rms_norm(g, query, g.tensor(f"{name}.q_norm", layer.q_norm), eps)
    key = _rms_norm(g, key, g.tensor(f"{name}.k_norm", layer.k_norm), eps)
    query = _rotate(g, query, weights.head_dim, cos, sin)
    key = _rotate(g, key, weights.head_dim, context.cos, context.sin)
    if context.past_key_values:
        key = g.op("Concat", f"past_key_values.{index}.key", key, axis=2)
        value = g.op("Concat", f"past_key_values.{index}.value", value, axis=2)
    key, value = _repeat_heads(g, weights, key), _repeat_heads(g, weights, value)
    scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = g.op("Mul", scores, g.floats(weights.head_dim**-0.5))
    # The bias in effect replaces a masked score, which is lost in rounding.
    attention = g.op("Softmax", g.op("Add", scores, bias), axis=-1)
    mixed = g.op("Transpose", g.op("MatMul", attention, value), perm=[0, 2, 1, 3])
    mixed = g.op("Reshape", mixed, g.ints([0, 0, weights.query_heads * weights.head_dim]))
    return g.linear(mixed, f"{name}.o", layer.o)


def _heads(g: GraphBuilder, flat: str, head_dim: int) -> str:
    """Split (batch, sequence, heads * head_dim) into (batch, heads, sequence, head_dim)."""
    return g.op("Transpose", g.op("Reshape", flat, g.ints([0, 0, -1, head_dim])), perm=[0, 2, 1, 3])


def _repeat_heads(g: GraphBuilder, weights: NanoWeights, heads: str) -> str:
    """Repeat each key or value head for all query heads of its group."""
    groups = weights.query_heads // weights.kv_heads
    index = np.repeat(np.arange(weights.kv_heads, dtype=np.int64), groups)
    return g.op("Gather", heads, g.ints(index.tolist()), axis=1)


def _rotate(g: GraphBuilder, heads: str, head_dim: int, cos: str, sin: str) -> str:
    """Apply rotary position embeddings in the half-split form (`rotate_half`)."""
    half, axis = g.ints([head_dim // 2]), g.ints([3])
    first = g.op("Slice", heads, g.ints([0]), half, axis)
    second = g.op("Slice", heads, half, g.ints([head_dim]), axis)
    turned = g.op("Concat", g.op("Neg", second), first, axis=-1)
    return g.op("Add", g.op("Mul", heads, cos), g.op("Mul", turned, sin))


def _rms_norm(g: GraphBuilder, values: str, gain: str, eps: float) -> str:
    mean = g.op("ReduceMean", g.op("Mul", values, values), axes=[-1], keepdims=1)
    root = g.op("Sqrt", g.op("Add", mean, g.floats(eps)))
    return g.op("Mul", g.op("Div", values, root), gain)


def _last_index(g: GraphBuilder, context: _Context) -> str:
    """Compute the highest index where `attention_mask` is 1, (batch, 1)."""
    mask = "attention_mask"
    if context.past_key_values:
        mask = g.op("Slice", mask, _past_length(g), g.ints([np.iinfo(np.int64).max]), g.ints([1]))
    length = g.op("Squeeze", g.op("Shape", mask, start=1, end=2))
    indices = g.op("Mul", mask, g.op("Range", g.scalar(0), length, g.scalar(1)))
    return g.op("ReduceMax", indices, axes=[1], keepdims=1)


def _at(g: GraphBuilder, rows: str, index: str, *, heads: bool = False) -> str:
    """Select one row of each text: (batch, sequence, n) to (batch, 1, n), also behind `heads`."""
    rows = g.op("Squeeze", rows, g.ints([1])) if heads else rows
    return g.op(
        "Unsqueeze", g.op("GatherND", rows, index, batch_dims=1), g.ints([1, 2][: 1 + heads])
    )
