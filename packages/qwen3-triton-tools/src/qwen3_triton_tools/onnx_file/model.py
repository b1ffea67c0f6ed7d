"""Everything about an ONNX file but the values of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from . import proto
from .protobuf import Buffer, Span, fields, mapped, text, varint
from .signature import OnnxSignature, graph_span, signature_of


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where a tensor's bytes lie: a path relative to the model's folder, and the bytes of it."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Weight:
    """One stored tensor; `external` is None where its bytes stand in the model file itself."""

    name: str
    element_type: int
    shape: tuple[int, ...]
    external: ExternalData | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the values, by shape and element type."""
        _, bits = proto.ELEMENT_TYPES.get(self.element_type, ("", 0))
        return (prod(self.shape) * bits + 7) // 8


@dataclass(frozen=True, slots=True)
class Node:
    """One operation; `integers` are its integer attributes, kept for foreign domains only."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """What an ONNX file says about itself. Nodes of subgraphs and functions are among `nodes`."""

    path: Path
    size_bytes: int
    ir_version: int
    producer: str
    opsets: dict[str, int]
    signature: OnnxSignature
    nodes: tuple[Node, ...]
    weights: tuple[Weight, ...]

    @property
    def opset(self) -> int:
        """Version of the standard operators, 0 if the file names none."""
        return self.opsets.get("", self.opsets.get("ai.onnx", 0))

    @property
    def operators(self) -> Counter[str]:
        """How often each operator stands in the file."""
        return Counter(node.op_type for node in self.nodes)

    @property
    def external_locations(self) -> tuple[str, ...]:
        """The files that hold weights, sorted, relative to the model's folder."""
        return tuple(sorted({w.external.location for w in self.weights if w.external}))


@dataclass(slots=True)
class _Contents:
    nodes: list[Node] = field(default_factory=list[Node])
    weights: list[Weight] = field(default_factory=list[Weight])


def read_model(path: Path) -> OnnxModel:
    """Read the ONNX file at `path`, its weights left where they are.

    Raises:
        OnnxFileError: the file is missing, empty or no ONNX model.
    """
    with mapped(path) as data:
        graph = graph_span(data)
        contents = _Contents()
        _read_graph(data, graph, contents)
        integers: dict[int, int] = {}
        texts: dict[int, str] = {}
        opsets: dict[str, int] = {}
        for number, value in fields(data, (0, len(data))):
            if isinstance(value, int):
                integers[number] = value
            elif number in (proto.MODEL_PRODUCER, proto.MODEL_PRODUCER_VERSION):
                texts[number] = text(data, value)
            elif number == proto.MODEL_OPSET:
                opsets.update([_read_opset(data, value)])
            elif number == proto.MODEL_FUNCTIONS:
                _read_nodes(data, value, proto.FUNCTION_NODE, contents)
        producer = [
            texts.get(proto.MODEL_PRODUCER, ""),
            texts.get(proto.MODEL_PRODUCER_VERSION, ""),
        ]
        return OnnxModel(
            path=path,
            size_bytes=len(data),
            ir_version=integers.get(proto.MODEL_IR_VERSION, 0),
            producer=" ".join(filter(None, producer)),
            opsets=opsets,
            signature=signature_of(data, graph),
            nodes=tuple(contents.nodes),
            weights=tuple(contents.weights),
        )


def _read_opset(data: Buffer, span: Span) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in fields(data, span):
        if number == proto.OPSET_DOMAIN and not isinstance(value, int):
            domain = text(data, value)
        elif number == proto.OPSET_VERSION and isinstance(value, int):
            version = value
    return domain, version


def _read_graph(data: Buffer, graph: Span, contents: _Contents) -> None:
    for number, value in fields(data, graph):
        if number == proto.GRAPH_INITIALIZER and not isinstance(value, int):
            contents.weights.append(_read_weight(data, value))
    _read_nodes(data, graph, proto.GRAPH_NODE, contents)


def _read_nodes(data: Buffer, span: Span, node_field: int, contents: _Contents) -> None:
    for number, value in fields(data, span):
        if number == node_field and not isinstance(value, int):
            contents.nodes.append(_read_node(data, value, contents))


def _read_node(data: Buffer, span: Span, contents: _Contents) -> Node:
    strings: dict[int, list[str]] = {}
    attributes: list[Span] = []
    for number, value in fields(data, span):
        if isinstance(value, int):
            continue
        if number == proto.NODE_ATTRIBUTE:
            attributes.append(value)
        else:
            strings.setdefault(number, []).append(text(data, value))
    [op_type] = strings.get(proto.NODE_OP_TYPE, [""])[-1:]
    [domain] = strings.get(proto.NODE_DOMAIN, [""])[-1:]
    integers: dict[str, int] = {}
    for attribute in attributes:
        _read_attribute(data, attribute, contents, integers if domain else {})
    return Node(
        op_type=op_type,
        domain=domain,
        inputs=tuple(strings.get(proto.NODE_INPUT, ())),
        outputs=tuple(strings.get(proto.NODE_OUTPUT, ())),
        integers=integers,
    )


def _read_attribute(
    data: Buffer, span: Span, contents: _Contents, integers: dict[str, int]
) -> None:
    """Collect what an attribute holds: an integer, a constant's tensor, or a branch's graph."""
    name = ""
    for number, value in fields(data, span):
        if isinstance(value, int):
            if number == proto.ATTRIBUTE_INT:
                integers[name] = value
        elif number == proto.ATTRIBUTE_NAME:
            name = text(data, value)
        elif number == proto.ATTRIBUTE_TENSOR:
            contents.weights.append(_read_weight(data, value))
        elif number == proto.ATTRIBUTE_GRAPH:
            _read_graph(data, value, contents)


def _read_weight(data: Buffer, span: Span) -> Weight:
    name, element_type, is_external = "", 0, False
    shape: list[int] = []
    entries: dict[str, str] = {}
    for number, value in fields(data, span):
        if number == proto.TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _packed(data, value)
        elif isinstance(value, int):
            if number == proto.TENSOR_ELEMENT_TYPE:
                element_type = value
            elif number == proto.TENSOR_DATA_LOCATION:
                is_external = value == proto.LOCATION_EXTERNAL
        elif number == proto.TENSOR_NAME:
            name = text(data, value)
        elif number == proto.TENSOR_EXTERNAL_DATA:
            entries.update([_read_entry(data, value)])
    weight = Weight(name, element_type, tuple(shape))
    if not is_external:
        return weight
    external = ExternalData(
        location=entries.get("location", ""),
        offset=int(entries.get("offset", "0")),
        length=int(entries.get("length", weight.size_bytes)),
    )
    return Weight(name, element_type, tuple(shape), external)


def _packed(data: Buffer, span: Span) -> Iterator[int]:
    position, end = span
    while position < end:
        value, position = varint(data, position)
        yield value


def _read_entry(data: Buffer, span: Span) -> tuple[str, str]:
    pair = {number: text(data, v) for number, v in fields(data, span) if not isinstance(v, int)}
    return pair.get(proto.ENTRY_KEY, ""), pair.get(proto.ENTRY_VALUE, "")
