"""The nodes that find each row's last real token in a graph, and gather its state.

    index = ReduceMax(attention_mask * Range(0, length))
    gathered = GatherND(states, index)

The highest index whose mask is 1 is correct for padding on the right, on the left, or mixed. Only
operators with CUDA kernels for int64 are used (ArgMax and LpNormalization have none), so that
nothing is copied to the CPU in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto, helper

# GatherND takes `batch_dims` since this opset.
MIN_OPSET = 12
# ReduceMax takes its axes as an input, no longer as an attribute, since this opset.
_AXES_INPUT_OPSET = 18
PREFIX = "last_token_pool/"


def last_token_nodes(
    states: str, output: str, *, opset: int, with_past: bool
) -> Iterator[onnx.NodeProto]:
    """Yield the nodes for (batch, size) from states of shape (batch, length, size).

    Args:
        states: The name of the states.
        output: The name of what is gathered.
        opset: The graph's own.
        with_past: Whether the mask covers a past too. Then its positions count up from below zero,
            so that the maximum is relative to the sequence.
    """
    yield _constant("one", 1)
    yield node("Shape", ["attention_mask"], PREFIX + "mask_shape")
    yield node("Gather", [PREFIX + "mask_shape", PREFIX + "one"], PREFIX + "total", axis=0)
    limit = PREFIX + "total"
    if with_past:
        yield node("Shape", ["input_ids"], PREFIX + "ids_shape")
        limit = PREFIX + "length"
        yield node("Gather", [PREFIX + "ids_shape", PREFIX + "one"], limit, axis=0)
        yield node("Sub", [limit, PREFIX + "total"], PREFIX + "start")
    else:
        yield _constant("start", 0)
    yield node("Range", [PREFIX + "start", limit, PREFIX + "one"], PREFIX + "positions")
    yield node("Mul", ["attention_mask", PREFIX + "positions"], PREFIX + "real")
    if opset >= _AXES_INPUT_OPSET:
        yield _constant("axes", [1])
        inputs = [PREFIX + "real", PREFIX + "axes"]
        yield node("ReduceMax", inputs, PREFIX + "index", keepdims=1)
    else:
        yield node("ReduceMax", [PREFIX + "real"], PREFIX + "index", axes=[1], keepdims=1)
    yield node("GatherND", [states, PREFIX + "index"], output, batch_dims=1)


def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """Build a node that is named after its output."""
    return helper.make_node(op_type, inputs, [output], output, **attributes)


def _constant(output: str, value: int | list[int]) -> onnx.NodeProto:
    """Build a node and not an initializer, which below IR version 4 would have to be an input."""
    values, shape = (value, [len(value)]) if isinstance(value, list) else ([value], [])
    tensor = helper.make_tensor("", TensorProto.INT64, shape, values)
    return node("Constant", [], PREFIX + output, value=tensor)
