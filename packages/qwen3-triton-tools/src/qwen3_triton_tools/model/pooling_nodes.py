"""The nodes that pool a hidden state at the last token, as bytes to append to a graph.

    index = ReduceMax(attention_mask * Range(0, length))
    sentence_embedding = Cast(GatherND(hidden, index), float32)

The highest index whose mask is 1 is right for padding on the right, on the left, or mixed. Only
operators with CUDA kernels for int64 are used (ArgMax and LpNormalization have none), so that
nothing is copied to the CPU in between. The vectors are not normalized: the gateway cuts them to
`dimensions` first, and a cut vector must be normalized after the cut.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..onnx_file import OnnxModel, TensorSignature, proto
from ..onnx_file.encode import encode_constant, encode_node, encode_output

OUTPUT = "sentence_embedding"
# GatherND takes `batch_dims` since this opset.
MIN_OPSET = 12
# ReduceMax takes its axes as an input, and no longer as an attribute, since this opset.
_AXES_INPUT_OPSET = 18
_PREFIX = "last_token_pool/"


def pooling_fields(
    model: OnnxModel, hidden: TensorSignature, hidden_size: int, *, with_past: bool
) -> bytes:
    """Encode the nodes and the output; `with_past` where the mask covers the past as well."""
    parts = [*_index(model.opset, with_past=with_past), *_gather(hidden)]
    batch = hidden.dimensions[0] if hidden.dimensions else "?"
    sizes: list[int | str] = ["batch" if batch == "?" else batch, hidden_size]
    return b"".join([*parts, encode_output(OUTPUT, proto.FLOAT, sizes)])


def uses_our_names(model: OnnxModel) -> bool:
    """Say whether a tensor of the graph has a name that pooling would give."""
    names = (name for node in model.nodes for name in node.outputs)
    return any(name == OUTPUT or name.startswith(_PREFIX) for name in names)


def _index(opset: int, *, with_past: bool) -> Iterator[bytes]:
    """Give (batch, 1): the index within the sequence of each row's last real token.

    Where the mask covers past and sequence, the past's positions count from below zero, so that
    the maximum is relative to the sequence by itself.
    """
    yield encode_constant(_PREFIX + "one", [1], scalar=True)
    yield encode_node("Shape", ["attention_mask"], _PREFIX + "mask_shape")
    yield encode_node(
        "Gather", [_PREFIX + "mask_shape", _PREFIX + "one"], _PREFIX + "total", axis=0
    )
    limit = _PREFIX + "total"
    start = _PREFIX + "start"
    if with_past:
        yield encode_node("Shape", ["input_ids"], _PREFIX + "ids_shape")
        limit = _PREFIX + "length"
        yield encode_node("Gather", [_PREFIX + "ids_shape", _PREFIX + "one"], limit, axis=0)
        yield encode_node("Sub", [limit, _PREFIX + "total"], start)
    else:
        yield encode_constant(start, [0], scalar=True)
    yield encode_node("Range", [start, limit, _PREFIX + "one"], _PREFIX + "positions")
    yield encode_node("Mul", ["attention_mask", _PREFIX + "positions"], _PREFIX + "real")
    reduced, index = [_PREFIX + "real"], _PREFIX + "index"
    if opset >= _AXES_INPUT_OPSET:
        yield encode_constant(_PREFIX + "axes", [1])
        yield encode_node("ReduceMax", [*reduced, _PREFIX + "axes"], index, keepdims=1)
    else:
        yield encode_node("ReduceMax", reduced, index, axes=[1], keepdims=1)


def _gather(hidden: TensorSignature) -> Iterator[bytes]:
    """Give (batch, hidden size) in float32; widened after gathering, when it is little."""
    is_float = hidden.element_type == proto.FLOAT
    gathered = OUTPUT if is_float else _PREFIX + "gathered"
    yield encode_node("GatherND", [hidden.name, _PREFIX + "index"], gathered, batch_dims=1)
    if not is_float:
        yield encode_node("Cast", [gathered], OUTPUT, to=proto.FLOAT)
