"""ONNX files, read by the `onnx` library without their external weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
import onnx.shape_inference
from google.protobuf.message import DecodeError

from qwen3_triton_gateway.model_files import describe_os_error

from .errors import ModelError

# Lengths in protocol buffers are signed 32-bit integers in every implementation that reads ONNX.
MAX_FILE_BYTES = 2**31 - 1
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Dtype:
    """An element type: its name as numpy spells it, bits per element, and Triton's name or None."""

    name: str
    bits: int
    triton: str | None = None


# https://github.com/onnx/onnx/blob/v1.18.0/onnx/onnx.proto (TensorProto.DataType) and
# https://github.com/triton-inference-server/common/blob/r24.10/protobuf/model_config.proto
DTYPES: dict[int, Dtype] = {
    1: Dtype("float32", 32, "TYPE_FP32"),
    2: Dtype("uint8", 8, "TYPE_UINT8"),
    3: Dtype("int8", 8, "TYPE_INT8"),
    4: Dtype("uint16", 16, "TYPE_UINT16"),
    5: Dtype("int16", 16, "TYPE_INT16"),
    6: Dtype("int32", 32, "TYPE_INT32"),
    7: Dtype("int64", 64, "TYPE_INT64"),
    8: Dtype("string", 0, "TYPE_STRING"),
    9: Dtype("bool", 8, "TYPE_BOOL"),
    10: Dtype("float16", 16, "TYPE_FP16"),
    11: Dtype("float64", 64, "TYPE_FP64"),
    12: Dtype("uint32", 32, "TYPE_UINT32"),
    13: Dtype("uint64", 64, "TYPE_UINT64"),
    14: Dtype("complex64", 64),
    15: Dtype("complex128", 128),
    16: Dtype("bfloat16", 16, "TYPE_BF16"),
    17: Dtype("float8e4m3fn", 8),
    18: Dtype("float8e4m3fnuz", 8),
    19: Dtype("float8e5m2", 8),
    20: Dtype("float8e5m2fnuz", 8),
    21: Dtype("uint4", 4),
    22: Dtype("int4", 4),
    23: Dtype("float4e2m1", 4),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A graph input or output.

    Attributes:
        shape: Sizes with -1 where any size is allowed; None where the rank is open too.
        dimensions: The sizes as text, with the exporter's names for those that are open.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...] | None
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExternalRange:
    """The bytes of an external file that hold a tensor; the location is relative to the model."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A stored tensor; `external` is None where its values are in the ONNX file itself."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    external: ExternalRange | None = None

    @property
    def size_bytes(self) -> int:
        return (prod(self.shape) * self.dtype.bits + 7) // 8


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file without its external weights.

    Attributes:
        inputs: The graph's inputs, without weights that old exporters list among them.
        nodes: The nodes of the graph, of its subgraphs and of the model's functions.
        weights: The stored tensors of the same.
    """

    path: Path
    size_bytes: int
    proto: onnx.ModelProto
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: tuple[onnx.NodeProto, ...]
    weights: tuple[Weight, ...]

    @property
    def opsets(self) -> dict[str, int]:
        return {entry.domain: entry.version for entry in self.proto.opset_import}

    @property
    def opset(self) -> int:
        """Version of the standard operators, 0 if the file names none."""
        return self.opsets.get("", self.opsets.get("ai.onnx", 0))

    @property
    def operators(self) -> Counter[str]:
        """Number of nodes per operator."""
        return Counter(node.op_type for node in self.nodes)

    @property
    def external_locations(self) -> tuple[str, ...]:
        """The files with weights, sorted, relative to the model's folder."""
        return tuple(sorted({w.external.location for w in self.weights if w.external}))

    @property
    def past_inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs for cached keys and values."""
        return tuple(t for t in self.inputs if t.name.startswith("past_key_values."))


def read_model(path: Path) -> OnnxModel:
    """Read an ONNX file; external weights stay where they are.

    A model with its weights in the file costs about twice its size in memory.

    Raises:
        ModelError: The file is missing, empty, truncated, larger than 2 GiB or not an ONNX model.
    """
    return describe_graph(path, _load(path))


def describe_graph(path: Path, proto: onnx.ModelProto) -> OnnxModel:
    """Describe a model in memory, as the one at this path.

    Raises:
        ModelError: An offset or length of external weights is not a number.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[Weight] = []
    try:
        _collect(proto.graph.node, proto.graph.initializer, nodes, weights)
        for function in proto.functions:
            _collect(function.node, (), nodes, weights)
    except ValueError as error:
        msg = f"{path} has an invalid offset or length of external weights ({error})."
        raise ModelError(f"{msg} Export it again.") from error
    initializers = {tensor.name for tensor in proto.graph.initializer}
    return OnnxModel(
        path=path,
        size_bytes=path.stat().st_size,
        proto=proto,
        inputs=tuple(_tensor_info(i) for i in proto.graph.input if i.name not in initializers),
        outputs=_outputs(proto),
        nodes=tuple(nodes),
        weights=tuple(weights),
    )


def load_weights(model: OnnxModel) -> None:
    """Read the external weights into the model.

    As `onnx.load` does, but that refuses weights with another name too since 1.21, and hard links
    are what the tools write.

    Raises:
        ModelError: A file cannot be read.
    """
    for tensor in _tensors(model.proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        external = _weight(tensor).external
        assert external is not None, "it is external"
        path = model.path.parent / external.location
        try:
            with path.open("rb") as file:
                file.seek(external.offset)
                tensor.raw_data = file.read(external.length)
        except OSError as error:
            raise ModelError(describe_os_error(error, path)) from error
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT


def takes_single_texts(model: OnnxModel) -> bool:
    """Return whether the batch of `input_ids` is fixed to 1."""
    shapes = [tensor.shape for tensor in model.inputs if tensor.name == "input_ids"]
    return any(shape and shape[0] == 1 for shape in shapes)


def as_text(value: str | bytes) -> str:
    """Return a text of the file; protobuf returns bytes where an exporter wrote no valid UTF-8."""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


def integer_attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is the text that Git LFS leaves in place of the real one."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def _load(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if is_lfs_pointer(path):
            msg = (
                f"{path} is not an ONNX model but a Git LFS pointer. Run `git lfs pull`, or fetch "
                "the file again."
            )
            raise ModelError(msg)
        if size > MAX_FILE_BYTES:
            msg = (
                f"{path} has {size / 1e9:.1f} GB; ONNX files above 2 GiB cannot be read by any "
                "runtime. Save the model with its weights as external data: "
                "onnx.save_model(..., save_as_external_data=True)."
            )
            raise ModelError(msg)
        # onnx's own hints leave the parameter of PathLike open.
        model = onnx.load_model(path, format="protobuf", load_external_data=False)  # pyright: ignore[reportUnknownMemberType]
    except OSError as error:
        raise ModelError(describe_os_error(error, path)) from error
    except DecodeError as error:
        msg = f"{path} is not an ONNX model, or is truncated ({error}). Fetch it again."
        raise ModelError(msg) from error
    if not model.HasField("graph"):
        reason = "it holds no graph" if size else "it is empty"
        raise ModelError(f"{path} is not an ONNX model: {reason}. Fetch it again.")
    return model


def _collect(
    graph_nodes: Iterable[onnx.NodeProto],
    initializers: Iterable[onnx.TensorProto],
    nodes: list[onnx.NodeProto],
    weights: list[Weight],
) -> None:
    """Append the nodes and weights of a graph, of its constants and of its branches."""
    weights += [_weight(tensor) for tensor in initializers]
    for node in graph_nodes:
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                weights.append(_weight(attribute.t))
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _collect(attribute.g.node, attribute.g.initializer, nodes, weights)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the stored tensors of a graph, of its constants and of its branches."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)


def _weight(tensor: onnx.TensorProto) -> Weight:
    weight = Weight(as_text(tensor.name), _dtype(tensor.data_type), tuple(tensor.dims))
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return weight
    entries = {entry.key: entry.value for entry in tensor.external_data}
    external = ExternalRange(
        location=os.fsdecode(entries.get("location", "")),
        offset=int(entries.get("offset", "0")),
        length=int(entries.get("length", weight.size_bytes)),
    )
    return Weight(weight.name, weight.dtype, weight.shape, external)


def _outputs(proto: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """Describe the outputs; shapes that the file omits are inferred where that is possible."""
    outputs = tuple(map(_tensor_info, proto.graph.output))
    if all(output.shape is not None for output in outputs):
        return outputs
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception:  # onnx's own errors share no public base class
        return outputs
    return tuple(map(_tensor_info, inferred.graph.output))


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    if not value.type.HasField("tensor_type"):
        # A sequence or a map: callers that need a tensor refuse it by its dtype.
        return TensorInfo(as_text(value.name), _dtype(0), None)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorInfo(as_text(value.name), _dtype(tensor.elem_type), None)
    sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
    labels = [
        as_text(d.dim_param) or "?" if size < 0 else str(size)
        for d, size in zip(tensor.shape.dim, sizes, strict=True)
    ]
    name = as_text(value.name)
    return TensorInfo(name, _dtype(tensor.elem_type), tuple(sizes), tuple(labels))


def _dtype(element_type: int) -> Dtype:
    return DTYPES.get(element_type) or Dtype(f"ONNX type {element_type}", 0)
