"""Encode new parts of a graph: nodes, constants and outputs, as fields of GraphProto."""

from __future__ import annotations

from collections.abc import Sequence

from . import proto
from .protobuf import encode_field


def encode_node(
    op_type: str, inputs: Sequence[str], output: str, **attributes: int | list[int]
) -> bytes:
    """Encode one node of the standard domain with one output; it is named as its output."""
    body = b"".join(encode_field(proto.NODE_INPUT, name) for name in inputs)
    body += encode_field(proto.NODE_OUTPUT, output) + encode_field(proto.NODE_NAME, output)
    body += encode_field(proto.NODE_OP_TYPE, op_type)
    for name, value in attributes.items():
        body += encode_field(proto.NODE_ATTRIBUTE, _attribute(name, value))
    return encode_field(proto.GRAPH_NODE, body)


def encode_constant(output: str, values: list[int], *, scalar: bool = False) -> bytes:
    """Encode a node that gives int64 values: a vector, or one scalar.

    A node and not an initializer: files below IR version 4 would have to list it as an input.
    """
    tensor = b"" if scalar else encode_field(proto.TENSOR_DIMS, len(values))
    tensor += encode_field(proto.TENSOR_ELEMENT_TYPE, proto.INT64)
    raw = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
    tensor += encode_field(proto.TENSOR_RAW_DATA, raw)
    attribute = encode_field(proto.ATTRIBUTE_NAME, "value")
    attribute += encode_field(proto.ATTRIBUTE_TENSOR, tensor)
    attribute += encode_field(proto.ATTRIBUTE_TYPE, proto.ATTRIBUTE_TYPE_TENSOR)
    body = encode_field(proto.NODE_OUTPUT, output) + encode_field(proto.NODE_NAME, output)
    body += encode_field(proto.NODE_OP_TYPE, "Constant")
    body += encode_field(proto.NODE_ATTRIBUTE, attribute)
    return encode_field(proto.GRAPH_NODE, body)


def encode_output(name: str, element_type: int, shape: Sequence[int | str]) -> bytes:
    """Encode the description of an output; sizes that are free are given by name."""
    dimensions = b"".join(
        encode_field(
            proto.SHAPE_DIMENSION,
            encode_field(proto.DIMENSION_VALUE, size)
            if isinstance(size, int)
            else encode_field(proto.DIMENSION_NAME, size),
        )
        for size in shape
    )
    tensor = encode_field(proto.TENSOR_TYPE_ELEMENT, element_type)
    tensor += encode_field(proto.TENSOR_TYPE_SHAPE, dimensions)
    kind = encode_field(proto.TYPE_TENSOR, tensor)
    body = encode_field(proto.VALUE_NAME, name) + encode_field(proto.VALUE_TYPE, kind)
    return encode_field(proto.GRAPH_OUTPUT, body)


def _attribute(name: str, value: int | list[int]) -> bytes:
    body = encode_field(proto.ATTRIBUTE_NAME, name)
    if isinstance(value, int):
        body += encode_field(proto.ATTRIBUTE_INT, value)
        return body + encode_field(proto.ATTRIBUTE_TYPE, proto.ATTRIBUTE_TYPE_INT)
    body += b"".join(encode_field(proto.ATTRIBUTE_INTS, item) for item in value)
    return body + encode_field(proto.ATTRIBUTE_TYPE, proto.ATTRIBUTE_TYPE_INTS)
