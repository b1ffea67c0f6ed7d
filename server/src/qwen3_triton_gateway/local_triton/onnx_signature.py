"""Read the inputs and outputs of an ONNX file without loading its weights.

Only the few fields below of `onnx.proto` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto)
are decoded, through a memory map: a file with gigabytes of weights takes milliseconds, and neither
`onnx` nor ONNX Runtime has to be importable.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import ModelFolderError

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_TYPE_ELEMENT, _TENSOR_TYPE_SHAPE = 1, 2
_SHAPE_DIMENSION = 1
_DIMENSION_VALUE = 1

# Wire types of protocol buffers: https://protobuf.dev/programming-guides/encoding/
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_Span = tuple[int, int]
_Buffer = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """Name, ONNX element type number and shape of one graph input or output; -1 is any size."""

    name: str
    element_type: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class OnnxSignature:
    """The tensors that a graph takes and gives, in the graph's order."""

    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]


def read_signature(path: Path) -> OnnxSignature:
    """Read the signature of the ONNX file at `path`.

    Raises:
        ModelFolderError: the file is missing, empty or no ONNX model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _signature(data)
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ModelFolderError(
            f"{path} is not an ONNX model ({error}); is it a Git LFS pointer or a broken download?"
        ) from error


def _signature(data: _Buffer) -> OnnxSignature:
    graph = _first(data, (0, len(data)), _MODEL_GRAPH)
    if graph is None:
        raise ValueError("it holds no graph")
    initializers: set[str] = set()
    inputs: list[TensorSignature] = []
    outputs: list[TensorSignature] = []
    for field, value in _fields(data, graph):
        if isinstance(value, int):
            continue
        if field == _GRAPH_INITIALIZER:
            initializers.add(_text(data, _first(data, value, _TENSOR_NAME)))
        elif field == _GRAPH_INPUT:
            inputs.append(_tensor(data, value))
        elif field == _GRAPH_OUTPUT:
            outputs.append(_tensor(data, value))
    # Old exporters list the weights among the inputs as well.
    real = tuple(tensor for tensor in inputs if tensor.name not in initializers)
    return OnnxSignature(inputs=real, outputs=tuple(outputs))


def _tensor(data: _Buffer, span: _Span) -> TensorSignature:
    name = _text(data, _first(data, span, _VALUE_NAME))
    kind = _first(data, span, _VALUE_TYPE)
    tensor = _first(data, kind, _TYPE_TENSOR) if kind else None
    if tensor is None:
        raise ValueError(f"`{name}` is not a tensor")
    element_type = 0
    shape: tuple[int, ...] | None = None
    for field, value in _fields(data, tensor):
        if field == _TENSOR_TYPE_ELEMENT and isinstance(value, int):
            element_type = value
        elif field == _TENSOR_TYPE_SHAPE and not isinstance(value, int):
            shape = tuple(_dimensions(data, value))
    return TensorSignature(name, element_type, shape)


def _dimensions(data: _Buffer, span: _Span) -> Iterator[int]:
    for field, value in _fields(data, span):
        if field == _SHAPE_DIMENSION and not isinstance(value, int):
            known = [v for f, v in _fields(data, value) if f == _DIMENSION_VALUE]
            yield known[-1] if known and isinstance(known[-1], int) else -1


def _first(data: _Buffer, span: _Span, wanted: int) -> _Span | None:
    for field, value in _fields(data, span):
        if field == wanted and not isinstance(value, int):
            return value
    return None


def _text(data: _Buffer, span: _Span | None) -> str:
    return data[span[0] : span[1]].decode() if span else ""


def _fields(data: _Buffer, span: _Span) -> Iterator[tuple[int, int | _Span]]:
    """Yield (field number, integer or the span of its bytes) for one encoded message."""
    position, end = span
    while position < end:
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            number, position = _varint(data, position)
            yield field, number
        elif wire == _BYTES:
            size, position = _varint(data, position)
            if position + size > end:
                raise ValueError("it ends too early")
            yield field, (position, position + size)
            position += size
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("it is not a protocol buffer")


def _varint(data: _Buffer, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            # Protocol buffers keep negative int64 as ten bytes of two's complement.
            return (result - (1 << 64) if result >= 1 << 63 else result), position
        shift += 7
