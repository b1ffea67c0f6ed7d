"""Cut the vocabulary head of a reranker down to the rows of "no" and "yes", at the last token.

    logits = MatMul(Cast(GatherND(states, last token), float32), rows)

The two rows are read from the file and stored in the graph in float32; nothing else of the weights
is read. A head that shares its matrix with the token table (`tie_word_embeddings`) leaves the table
where it is; one of its own is no longer part of the graph. The product is in float32, so that
float16 models lose nothing by the rounding of their logits, which are tens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qwen3_triton_gateway.backends.base import LOGITS_OUTPUT
from qwen3_triton_gateway.rerank_prompt import ANSWERS

from ..errors import ModelError
from ..onnx_model import OnnxModel, as_text
from .last_token import PREFIX, last_token_nodes, node
from .reranker import Reranker

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_MATRIX_RANK = 2
_SAME_VALUES = ("Cast", "Identity")
# Operators that widen quantized weights, or multiply by them.
_QUANTIZED = {
    "MatMulNBits",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulBnb4",
    "QLinearMatMul",
    "DequantizeLinear",
}
_ROWS = PREFIX + "answers"


@dataclass(frozen=True, slots=True)
class VocabularyHead:
    """The product of `states` and a stored matrix; `vocabulary_axis` is that of its logits."""

    states: str
    matrix: onnx.TensorProto
    vocabulary_axis: int


def find_head(model: OnnxModel, reranker: Reranker) -> VocabularyHead:
    """Find the product that gives a causal reranker's logits.

    Raises:
        ModelError: It is quantized, or the graph ends in another way.
    """
    producers = _producers(model)
    end = _skip(producers, LOGITS_OUTPUT)
    if end is not None and end.op_type == "Reshape":  # Gemm takes matrices only
        end = producers.get(end.input[0])
    if end is None:
        raise ModelError(f"{model.path}: nothing computes `{LOGITS_OUTPUT}`.")
    states, weights, is_transposed = _operands(model, end, producers)
    matrix, turns = _stored(model, weights, producers)
    axis = 0 if is_transposed ^ turns else 1
    if matrix.data_type not in _FLOATS:
        raise _quantized(model, f"its values are {TensorProto.DataType.Name(matrix.data_type)}")
    if len(matrix.dims) != _MATRIX_RANK or matrix.dims[axis] != reranker.width:
        msg = (
            f"{model.path}: the matrix of the head, `{as_text(matrix.name)}`, has shape "
            f"{tuple(matrix.dims)}, which is not that of {reranker.width:,} logits."
        )
        raise ModelError(msg)
    return VocabularyHead(states, matrix, axis)


def cut_head(
    model: OnnxModel, reranker: Reranker, head: VocabularyHead, answer_ids: Iterable[int]
) -> None:
    """Replace the head by the two rows, and the outputs by their logits: float32, (batch, 2)."""
    graph = model.proto.graph
    rows = _read_rows(model.path.parent, head, list(answer_ids))
    added = [
        *_last_states(model, head.states, PREFIX + "wide"),
        node("Constant", [], _ROWS, value=numpy_helper.from_array(rows)),
        node("MatMul", [PREFIX + "wide", _ROWS], LOGITS_OUTPUT),
    ]
    _replace_outputs(graph, added, reranker, len(ANSWERS))


def select_last(model: OnnxModel, reranker: Reranker) -> None:
    """Replace the outputs by the logits of the last token, where a head is cut already: float32."""
    graph = model.proto.graph
    everywhere = PREFIX + "logits"
    for each in graph.node:
        for names in (each.input, each.output):
            names[:] = [everywhere if name == LOGITS_OUTPUT else name for name in names]
    added = list(_last_states(model, everywhere, LOGITS_OUTPUT))
    _replace_outputs(graph, added, reranker, reranker.width)


def _last_states(model: OnnxModel, states: str, output: str) -> Iterator[onnx.NodeProto]:
    """Yield the nodes for the last token's states, in float32."""
    yield from last_token_nodes(
        states, PREFIX + "gathered", opset=model.opset, with_past=bool(model.past_inputs)
    )
    yield node("Cast", [PREFIX + "gathered"], output, to=TensorProto.FLOAT)


def _replace_outputs(
    graph: onnx.GraphProto, added: list[onnx.NodeProto], reranker: Reranker, width: int
) -> None:
    """Add the nodes that compute the logits, and remove what only other outputs need."""
    batch = reranker.output.dimensions[0]
    shape = ["batch" if batch == "?" else batch, width]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(LOGITS_OUTPUT, TensorProto.FLOAT, shape))
    _remove_unused(graph, {name for new in added for name in new.input})
    graph.node.extend(added)


def _operands(
    model: OnnxModel, end: onnx.NodeProto, producers: dict[str, onnx.NodeProto]
) -> tuple[str, str, bool]:
    """Return the states, the weights, and whether the product transposes the weights."""
    options = {a.name: helper.get_attribute_value(a) for a in end.attribute}
    if quantized := _quantized_operator(end, producers):
        raise _quantized(model, f"the operator is {quantized}")
    is_plain = options.get("alpha", 1.0) == 1.0 and not options.get("transA", 0)
    if end.op_type == "MatMul":
        return end.input[0], end.input[1], False
    if end.op_type == "FusedMatMul" and is_plain:
        return end.input[0], end.input[1], bool(options.get("transB", 0))
    if end.op_type == "Gemm" and is_plain and not any(end.input[2:]):
        flattened = producers.get(end.input[0])
        if flattened is not None and flattened.op_type == "Reshape":
            return flattened.input[0], end.input[1], bool(options.get("transB", 0))
    msg = (
        f"{model.path} ends with {end.op_type}{' and a bias' if any(end.input[2:]) else ''}, not "
        "with the product of states and a vocabulary head. Export it with the task "
        "text-generation."
    )
    raise ModelError(msg)


def _quantized_operator(end: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> str | None:
    """Return the operator of a quantized product, which a scaling may follow."""
    candidates = [end]
    if end.op_type == "Mul":
        candidates += [found for name in end.input if (found := _skip(producers, name))]
    return next((node.op_type for node in candidates if node.op_type in _QUANTIZED), None)


def _stored(
    model: OnnxModel, name: str, producers: dict[str, onnx.NodeProto]
) -> tuple[onnx.TensorProto, bool]:
    """Follow a matrix back to where it is stored; return whether it is transposed on the way."""
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    turns = False
    while name not in stored:
        producer = producers.get(name)
        if producer is None:
            raise ModelError(f"{model.path}: the head's matrix `{name}` is not stored in the file.")
        if producer.op_type == "Constant":
            return helper.get_attribute_value(producer.attribute[0]), turns
        if producer.op_type == "Transpose":
            options = {a.name: helper.get_attribute_value(a) for a in producer.attribute}
            turns ^= list(options.get("perm", (1, 0))) == [1, 0]
        elif producer.op_type not in _SAME_VALUES:
            raise _quantized(model, f"its matrix is computed by {producer.op_type}")
        name = producer.input[0]
    return stored[name], turns


def _quantized(model: OnnxModel, reason: str) -> ModelError:
    msg = (
        f"{model.path} has a quantized vocabulary head ({reason}), of which single rows cannot be "
        "taken exactly. Pool the float32 or float16 export, then quantize the result with "
        "`qwen3-triton model quantize`."
    )
    return ModelError(msg)


def _producers(model: OnnxModel) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.proto.graph.node for output in node.output if output}


def _skip(producers: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    """Return what computes a tensor, before operators that leave its values as they are."""
    producer = producers.get(name)
    while producer is not None and producer.op_type in _SAME_VALUES:
        producer = producers.get(producer.input[0])
    return producer


def _read_rows(
    folder: Path, head: VocabularyHead, ids: list[int]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read (hidden size, 2) from a matrix that may be gigabytes."""
    matrix, axis = head.matrix, head.vocabulary_axis
    if matrix.data_location != TensorProto.EXTERNAL:
        rows = numpy_helper.to_array(matrix).take(ids, axis)
    else:
        # As a tensor of its own, since numpy has no bfloat16.
        shape = [len(ids) if index == axis else size for index, size in enumerate(matrix.dims)]
        part = TensorProto(data_type=matrix.data_type, dims=shape)
        part.raw_data = _read_external(folder, head, ids)
        rows = numpy_helper.to_array(part)
    rows = rows.astype(np.float32)
    return np.ascontiguousarray(rows.T if axis == 0 else rows)


def _read_external(folder: Path, head: VocabularyHead, ids: list[int]) -> bytes:
    """Read the values of rows or columns in a file, and none of the others.

    Not mapped into memory: reading ahead would make the whole file resident.
    """
    matrix = head.matrix
    entries = {entry.key: entry.value for entry in matrix.external_data}
    offset, item = int(entries.get("offset", "0")), 4 if matrix.data_type == _FLOATS[0] else 2
    rows, columns = matrix.dims
    if head.vocabulary_axis == 0:
        parts = [(row * columns, columns) for row in ids]
    else:
        parts = [(row * columns + column, 1) for row in range(rows) for column in ids]
    with (folder / entries["location"]).open("rb", buffering=0) as file:
        values: list[bytes] = []
        for start, count in parts:
            file.seek(offset + start * item)
            values.append(file.read(count * item))
    return b"".join(values)


def _remove_unused(graph: onnx.GraphProto, used: set[str]) -> None:
    """Remove the nodes and stored tensors that nothing needs any longer.

    One by one: copies of what is kept would double the weights that are in the file itself.
    """
    for index in reversed(range(len(graph.node))):  # they are in topological order
        candidate = graph.node[index]
        if used.intersection(filter(None, candidate.output)):
            used |= _names_used(candidate)
        else:
            del graph.node[index]
    stored = {tensor.name for tensor in graph.initializer}
    computed = {name for candidate in graph.node for name in candidate.output}
    _keep(graph.initializer, used)
    # Old exporters list stored tensors among the inputs, where they would become required.
    _keep(graph.input, used | ({value.name for value in graph.input} - stored))
    _keep(graph.value_info, computed)


def _keep(entries: Any, names: set[str]) -> None:
    """Remove the entries of a repeated field whose name is not one of these."""
    for index in reversed(range(len(entries))):
        if entries[index].name not in names:
            del entries[index]


def _names_used(candidate: onnx.NodeProto) -> set[str]:
    """Return the names of a node's inputs, and of all that its branches refer to."""
    names = set(candidate.input)
    for attribute in candidate.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names.update(output.name for output in attribute.g.output)
            for inner in attribute.g.node:
                names |= _names_used(inner)
    return names
