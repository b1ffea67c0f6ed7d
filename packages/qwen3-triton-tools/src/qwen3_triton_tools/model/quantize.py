"""Store an export's weights as int8, with a scale for each output of a matrix or row of a table.

    weight = Cast(int8 values) * scales

Plain operators, as in the nano model: ONNX Runtime widens the weights when it loads them, and
computes in float as before; OpenVINO keeps them, and multiplies in int8 if `EMBED_PRECISION` says
so. With DequantizeLinear, ONNX Runtime would multiply in int8 by itself, whatever that loses.

nncf writes the same weights: as fast in OpenVINO (2.92 against 2.92 times ONNX Runtime in float32,
with layers of the 0.6B model), as exact (cosine 0.9994), but slower than float32 in ONNX Runtime,
and it depends on scikit-learn and sends usage data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import ModelError
from ..onnx_model import OnnxModel, integer_attributes, load_weights
from ..writing import replacing_folder
from .files import check_place, copy_tokenizer
from .inspection import check_servable, inspect_model

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

# Smaller tensors are norms and tables of positions, which save nothing.
_MIN_VALUES = 4096
# Of a narrower one, such as a column of scales, the new scales would take what the values save.
_MIN_SIDE = 16
_MATRIX_RANK = 2
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LEVELS = 127.0
_INT8 = ("int8", "uint8")
# Triton's OpenVINO backend rounds activations if weights are one of these.
NARROW = (*_INT8, "int4", "uint4")
# Weights within the ONNX file itself are read as a whole.
_INLINE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """The file that was written, its matrices, and the bytes of their weights before and after."""

    path: Path
    matrices: int
    bytes_before: int
    bytes_after: int


def default_folder(model_path: Path) -> Path:
    """Return where the quantized model is written by default: NAME-int8 next to the model's."""
    folder = model_path.absolute().parent
    if folder.name == "onnx":  # as on the hub, below the folder with the model's name
        folder = folder.parent
    return folder.with_name(f"{folder.name}-int8")


def is_quantized(model: OnnxModel, *, types: tuple[str, ...] = _INT8) -> bool:
    """Return whether most weights of matrices are in 8 bits; a table of tokens is not one.

    Args:
        model: The model.
        types: What counts as quantized.
    """
    tables = {node.input[0] for node in model.nodes if node.op_type == "Gather"}
    sizes: Counter[bool] = Counter()
    for weight in model.weights:
        if weight.name not in tables:
            sizes[weight.dtype.name in types] += prod(weight.shape)
    return sizes[True] > sizes[False]


def quantize_model(
    model_path: Path, folder: Path, *, force: bool = False, rerank: bool = False
) -> QuantizedModel:
    """Write a model folder with the same graph and weights in int8.

    All weights are in memory while it runs.

    Args:
        model_path: The ONNX file, in float32 or float16.
        folder: Gets `model.onnx` and the tokenizer.
        force: Replace an existing folder.
        rerank: Take a causal language model for a reranker, whatever its name says.

    Raises:
        ModelError: The model cannot be served or has no matrices in float, or `folder` may not be
            written.
    """
    check_place(folder, model_path, force=force)
    inspection = inspect_model(model_path, rerank=rerank)
    check_servable(inspection)
    load_weights(inspection.model)
    model = inspection.model.proto
    quantizer = _Quantizer(model.graph)
    quantizer.run()
    if not quantizer.matrices:
        msg = f"{model_path} has no matrices in float: its weights are quantized already."
        raise ModelError(msg)
    with replacing_folder(folder) as unfinished:
        is_external = quantizer.bytes_after > _INLINE_BYTES
        options: dict[str, Any] = {"location": "model.onnx_data"} if is_external else {}
        onnx.save_model(  # pyright: ignore[reportUnknownMemberType]
            model, unfinished / "model.onnx", save_as_external_data=is_external, **options
        )
        copy_tokenizer(model_path, unfinished)
    path = folder / "model.onnx"
    return QuantizedModel(path, quantizer.matrices, quantizer.bytes_before, quantizer.bytes_after)


class _Quantizer:
    """The matrices of a graph, replaced one by one."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self.matrices = self.bytes_before = self.bytes_after = 0

    def run(self) -> None:
        uses: defaultdict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for node in self._graph.node:
            for place, name in enumerate(node.input):
                uses[name].append((node, place))
        widening: list[onnx.NodeProto] = []
        lookups: dict[str, list[onnx.NodeProto]] = {}
        kept: list[onnx.TensorProto] = []
        for tensor in self._graph.initializer:
            axes = {_output_axis(node, place) for node, place in uses[tensor.name]}
            axis = axes.pop() if len(axes) == 1 else None
            if axis is None or not _is_matrix(tensor):
                kept.append(tensor)
                continue
            kept += self._quantize(tensor, axis)
            nodes = [node for node, _ in uses[tensor.name]]
            gathers = [node for node in nodes if node.op_type == "Gather"]
            lookups |= {node.output[0]: [*_look_up(tensor, node)] for node in gathers}
            # A vocabulary head may share its matrix with the token table.
            if len(gathers) < len(nodes):
                widening += _widen(tensor, tensor.name, _values(tensor), _scales(tensor))
        # Widening depends on stored tensors only, so it may come first.
        nodes = [*widening, *self._graph.node]
        nodes = [new for node in nodes for new in lookups.get(node.output[0], [node])]
        for field, content in ((self._graph.node, nodes), (self._graph.initializer, kept)):
            copies = list(content)
            del field[:]
            field.extend(copies)  # pyright: ignore[reportArgumentType]

    def _quantize(self, tensor: onnx.TensorProto, axis: int) -> list[onnx.TensorProto]:
        """Return the values and scales that replace a tensor."""
        matrix = numpy_helper.to_array(tensor).astype(np.float32)
        largest = np.abs(matrix).max(axis=1 - axis, keepdims=True)
        scales = (np.where(largest > 0, largest, 1.0) / _LEVELS).astype(np.float32)
        values = np.rint(matrix / scales).astype(np.int8)
        self.matrices += 1
        self.bytes_before += (
            matrix.size * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        )
        self.bytes_after += values.nbytes + scales.nbytes
        parts: tuple[tuple[Array, str], ...] = (
            (values, _values(tensor)),
            (scales, _scales(tensor)),
        )
        return [numpy_helper.from_array(part, name) for part, name in parts]


def _output_axis(node: onnx.NodeProto, place: int) -> int | None:
    """Return the axis of a stored matrix along which each entry gets a scale, None if unknown."""
    attributes = integer_attributes(node)
    match node.op_type, place:
        case "MatMul", 1:
            return 1
        case "Gemm", 1:
            return 0 if attributes.get("transB") else 1
        case "Transpose", 0:
            return 0  # of a linear layer, stored as torch does
        case "Gather", 0:
            return 0 if attributes.get("axis", 0) == 0 else None
        case _:
            return None


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in _FLOATS or len(tensor.dims) != _MATRIX_RANK:
        return False
    return prod(tensor.dims) >= _MIN_VALUES and min(tensor.dims) >= _MIN_SIDE


def _look_up(tensor: onnx.TensorProto, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that look up values and scales in place of rows."""
    output, ids = node.output[0], node.input[1]
    names = f"{output}/values", f"{output}/scales"
    yield helper.make_node("Gather", [_values(tensor), ids], [names[0]])
    yield helper.make_node("Gather", [_scales(tensor), ids], [names[1]])
    yield from _widen(tensor, output, *names)


def _widen(
    tensor: onnx.TensorProto, output: str, values: str, scales: str
) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that multiply values by scales, in the dtype of the tensor."""
    is_float32 = tensor.data_type == TensorProto.FLOAT
    product = output if is_float32 else f"{output}/product"
    yield helper.make_node("Cast", [values], [f"{output}/wide"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [f"{output}/wide", scales], [product])
    if not is_float32:
        yield helper.make_node("Cast", [product], [output], to=tensor.data_type)


def _values(tensor: onnx.TensorProto) -> str:
    return f"{tensor.name}.int8"


def _scales(tensor: onnx.TensorProto) -> str:
    return f"{tensor.name}.scales"
