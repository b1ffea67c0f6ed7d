"""The inputs and outputs of an ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import proto
from .protobuf import Buffer, Span, fields, first, mapped, text


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """Name, ONNX element type number and shape of one graph input or output; -1 is any size.

    `dimensions` are the same as text, with the names that the exporter gave to free sizes.
    """

    name: str
    element_type: int
    shape: tuple[int, ...] | None
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OnnxSignature:
    """The tensors that a graph takes and gives, in the graph's order."""

    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]


def read_signature(path: Path) -> OnnxSignature:
    """Read the signature of the ONNX file at `path`.

    Raises:
        OnnxFileError: the file is missing, empty or no ONNX model.
    """
    with mapped(path) as data:
        return signature_of(data, graph_span(data))


def graph_span(data: Buffer) -> Span:
    """Find the graph of a model; ValueError if it has none."""
    graph = first(data, (0, len(data)), proto.MODEL_GRAPH)
    if graph is None:
        raise ValueError("it holds no graph")
    return graph


def signature_of(data: Buffer, graph: Span) -> OnnxSignature:
    """Decode the inputs and outputs of a graph."""
    initializers: set[str] = set()
    inputs: list[TensorSignature] = []
    outputs: list[TensorSignature] = []
    for field, value in fields(data, graph):
        if isinstance(value, int):
            continue
        if field == proto.GRAPH_INITIALIZER:
            initializers.add(text(data, first(data, value, proto.TENSOR_NAME)))
        elif field == proto.GRAPH_INPUT:
            inputs.append(_tensor(data, value))
        elif field == proto.GRAPH_OUTPUT:
            outputs.append(_tensor(data, value))
    # Old exporters list the weights among the inputs as well.
    real = tuple(tensor for tensor in inputs if tensor.name not in initializers)
    return OnnxSignature(inputs=real, outputs=tuple(outputs))


def _tensor(data: Buffer, span: Span) -> TensorSignature:
    name = text(data, first(data, span, proto.VALUE_NAME))
    kind = first(data, span, proto.VALUE_TYPE)
    tensor = first(data, kind, proto.TYPE_TENSOR) if kind else None
    if tensor is None:  # a sequence or a map: whoever wants a tensor refuses it by its type
        return TensorSignature(name, 0, None)
    element_type = 0
    dimensions: list[tuple[int, str]] | None = None
    for field, value in fields(data, tensor):
        if field == proto.TENSOR_TYPE_ELEMENT and isinstance(value, int):
            element_type = value
        elif field == proto.TENSOR_TYPE_SHAPE and not isinstance(value, int):
            dimensions = list(_dimensions(data, value))
    if dimensions is None:
        return TensorSignature(name, element_type, None)
    shape = tuple(size for size, _ in dimensions)
    return TensorSignature(name, element_type, shape, tuple(label for _, label in dimensions))


def _dimensions(data: Buffer, span: Span) -> Iterator[tuple[int, str]]:
    for field, value in fields(data, span):
        if field != proto.SHAPE_DIMENSION or isinstance(value, int):
            continue
        size, label = -1, "?"
        for kind, content in fields(data, value):
            if kind == proto.DIMENSION_VALUE and isinstance(content, int):
                size, label = content, str(content)
            elif kind == proto.DIMENSION_NAME and not isinstance(content, int):
                label = text(data, content) or "?"
        yield size, label
