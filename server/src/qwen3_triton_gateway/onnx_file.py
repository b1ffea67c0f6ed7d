"""Find the files of an ONNX file's external weights and its operators, without an ONNX library.

The file is walked in protobuf's wire format: a field's key, then its value. Weights are skipped by
their length, so a file of gigabytes takes milliseconds. What cannot be parsed is an error, since a
part that was not seen could refer to weights.

https://protobuf.dev/programming-guides/encoding and
https://github.com/onnx/onnx/blob/v1.18.0/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TypeAlias

from .model_files import ModelFileError, describe_os_error

_NUMBER, _BYTES = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_KIND_BITS, _MORE = 0x7, 0x80
_MAX_NUMBER_BYTES = 10

_MODEL_GRAPH, _MODEL_FUNCTIONS, _FUNCTION_NODES = 7, 25, 7
_GRAPH_NODES, _GRAPH_TENSORS, _GRAPH_SPARSE_TENSORS = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTES = 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE_TENSORS = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_SPARSE_TENSOR_PARTS = (1, 2)
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_EXTERNAL = 1  # of TensorProto.DataLocation

# The fields of a message by their number: numbers, or where bytes are in the file.
_Fields: TypeAlias = dict[int, list["int | range"]]


def external_locations(path: Path) -> set[str]:
    """List the files that hold an ONNX file's weights, relative to its folder.

    Raises:
        ModelFileError: The file cannot be read, or is not an ONNX model.
    """
    return _walk(path).locations


def operators(path: Path) -> set[str]:
    """List the kinds of operators in an ONNX file, such as "MatMul".

    Raises:
        ModelFileError: The file cannot be read, or is not an ONNX model.
    """
    return {name.decode(errors="replace") for name in _walk(path).operators}


def _walk(path: Path) -> _Walker:
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
                raise _not_a_model(path, "it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                walker = _Walker(content)
                walker.read_model(range(len(content)))
    except OSError as error:
        raise ModelFileError(describe_os_error(error, path)) from error
    except (ValueError, IndexError, RecursionError) as error:
        raise _not_a_model(path, "it cannot be parsed to its end") from error
    if not walker.has_graph:
        raise _not_a_model(path, "it holds no graph")
    return walker


def _not_a_model(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path} is not an ONNX model: {reason}. Fetch it again.")


class _Walker:
    """The messages of one file; each method reads one kind."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.locations: set[str] = set()
        self.operators: set[bytes] = set()
        self.has_graph = False

    def read_model(self, span: range) -> None:
        fields = self._fields(span)
        self.has_graph = _MODEL_GRAPH in fields
        for graph in _messages(fields, _MODEL_GRAPH):
            self._read_graph(graph)
        for function in _messages(fields, _MODEL_FUNCTIONS):
            for node in _messages(self._fields(function), _FUNCTION_NODES):
                self._read_node(node)

    def _read_graph(self, span: range) -> None:
        fields = self._fields(span)
        for tensor in _messages(fields, _GRAPH_TENSORS):
            self._read_tensor(tensor)
        for tensor in _messages(fields, _GRAPH_SPARSE_TENSORS):
            self._read_sparse_tensor(tensor)
        for node in _messages(fields, _GRAPH_NODES):
            self._read_node(node)

    def _read_node(self, span: range) -> None:
        fields = self._fields(span)
        self.operators.update(self._texts(fields, _NODE_OPERATOR))
        for attribute in map(self._fields, _messages(fields, _NODE_ATTRIBUTES)):
            for tensor in _messages(attribute, *_ATTRIBUTE_TENSORS):
                self._read_tensor(tensor)
            for tensor in _messages(attribute, *_ATTRIBUTE_SPARSE_TENSORS):
                self._read_sparse_tensor(tensor)
            for graph in _messages(attribute, *_ATTRIBUTE_GRAPHS):
                self._read_graph(graph)

    def _read_sparse_tensor(self, span: range) -> None:
        for tensor in _messages(self._fields(span), *_SPARSE_TENSOR_PARTS):
            self._read_tensor(tensor)

    def _read_tensor(self, span: range) -> None:
        fields = self._fields(span)
        if fields.get(_TENSOR_DATA_LOCATION, [0])[-1] != _EXTERNAL:
            return
        for entry in map(self._fields, _messages(fields, _TENSOR_EXTERNAL_DATA)):
            if self._texts(entry, _ENTRY_KEY) == [b"location"]:
                # The file system's own encoding: a name need not be UTF-8.
                names = map(os.fsdecode, self._texts(entry, _ENTRY_VALUE))
                self.locations.update(names)

    def _texts(self, fields: _Fields, number: int) -> list[bytes]:
        return [self._content[span.start : span.stop] for span in _messages(fields, number)]

    def _fields(self, span: range) -> _Fields:
        """Group the fields of a message by their number."""
        fields: _Fields = {}
        position = span.start
        while position < span.stop:
            key, position = self._number(position)
            kind = key & _KIND_BITS
            if kind in _FIXED_BYTES:
                value, position = 0, position + _FIXED_BYTES[kind]  # no field of interest
            elif kind == _NUMBER:
                value, position = self._number(position)
            elif kind == _BYTES:
                length, start = self._number(position)
                position = start + length
                value = range(start, position)
            else:  # groups are older than ONNX
                raise ValueError(f"wire type {kind}")
            fields.setdefault(key >> _KIND_BITS.bit_length(), []).append(value)
        if position != span.stop:
            raise ValueError("a field is longer than its message")
        return fields

    def _number(self, position: int) -> tuple[int, int]:
        """Read a number of 7 bits per byte, and return it with the position after it."""
        value = 0
        for place in range(_MAX_NUMBER_BYTES):
            byte = self._content[position + place]
            value |= (byte & ~_MORE) << (7 * place)
            if not byte & _MORE:
                return value, position + place + 1
        raise ValueError("a number has no end")


def _messages(fields: _Fields, *numbers: int) -> list[range]:
    """Return the values of fields that are messages or bytes."""
    values = [value for number in numbers for value in fields.get(number, ())]
    if any(isinstance(value, int) for value in values):
        raise ValueError("a number in place of a message")
    return [value for value in values if isinstance(value, range)]
