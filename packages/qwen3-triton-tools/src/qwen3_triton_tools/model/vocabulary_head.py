"""Cut the vocabulary head of a reranker down to "no" and "yes", at the last token.

    logits = MatMul(Cast(GatherND(states, last token), float32), rows)

The two rows are read from the file and stored in the graph in float32; nothing else of the weights
is read. A head that shares its matrix with the token table (`tie_word_embeddings`) leaves the table
where it is; one of its own is no longer part of the graph. The product is in float32, so that
float16 models lose nothing by the rounding of their logits, which are tens.

A head of which rows cannot be taken, because it is quantized or has a bias or a scale, stays whole:

    logits = Cast(Gather(head(GatherND(states, last token)), "no" and "yes"), float32)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qwen3_triton_gateway.backends.interface import LOGITS_OUTPUT
from qwen3_triton_gateway.rerank_prompt import ANSWERS

from ..errors import ModelError
from ..findings import Finding, failure
from ..onnx_model import OnnxModel, as_text
from .last_token import PREFIX, last_token_nodes, node
from .reranker import Reranker

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_MATRIX_RANK = 2
_SAME_VALUES = ("Cast", "Identity")
_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "MatMulNBits", "MatMulBnb4")
# What may follow the product: a bias, scales, and the two of a soft cap.
_FOLLOWING = (*_SAME_VALUES, "Add", "Mul", "Div", "Tanh")
# They multiply states that are rounded to integers, in a scale that depends on the batch.
_INTEGER_PRODUCTS = (
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
)
_ROWS = PREFIX + "answers"


@dataclass(frozen=True, slots=True)
class VocabularyHead:
    """What computes logits of states.

    Attributes:
        states: What it takes, of all positions.
        logits: What it returns, in whatever shape.
        matrix: The stored matrix that the states are multiplied by, if there is nothing else to it.
        vocabulary_axis: The axis of that matrix that is the one of the logits.
    """

    states: str
    logits: str
    matrix: onnx.TensorProto | None
    vocabulary_axis: int = 0


def find_head(model: OnnxModel, reranker: Reranker) -> VocabularyHead:
    """Find the product that gives a causal reranker's logits.

    Raises:
        ModelError: The graph ends in another way, or rounds states together.
    """
    producers = _producers(model)
    logits = reranker.output.name
    end = _skip(producers, logits)
    if end is not None and end.op_type == "Reshape":  # Gemm takes matrices only
        logits = end.input[0]
        end = producers.get(logits)
    if end is None:
        raise ModelError(f"{model.path}: nothing computes `{logits}`.")
    product = _find_product(model, producers, end)
    options = _options(product)
    states = product.input[0]
    if product.op_type == "Gemm":
        flattened = producers.get(states)
        if flattened is None or flattened.op_type != "Reshape":
            raise _unknown_end(model, "Gemm without a reshape")
        states = flattened.input[0]
    is_plain = (
        product is end
        and product.op_type in ("MatMul", "FusedMatMul", "Gemm")
        and options.get("alpha", 1.0) == 1.0
        and not options.get("transA", 0)
        and not any(product.input[2:])
    )
    stored = _stored(model, product.input[1], producers) if is_plain else None
    if stored is None or stored[0].data_type not in _FLOATS:
        return VocabularyHead(states, logits, None)
    matrix, turns = stored
    axis = 0 if bool(options.get("transB", 0)) ^ turns else 1
    if len(matrix.dims) != _MATRIX_RANK or matrix.dims[axis] != reranker.width:
        msg = (
            f"{model.path}: the matrix of the head, `{as_text(matrix.name)}`, has shape "
            f"{tuple(matrix.dims)}, which is not that of {reranker.width:,} logits."
        )
        raise ModelError(msg)
    return VocabularyHead(states, logits, matrix, axis)


def check_activation(model: OnnxModel, reranker: Reranker) -> list[Finding]:
    """Report probabilities, of which the gateway would compute probabilities again."""
    end = _skip(_producers(model), reranker.output.name)
    if end is None or end.op_type not in ("Sigmoid", "Softmax"):
        return []
    message = (
        f"It returns probabilities: `{as_text(reranker.output.name)}` is computed by {end.op_type}."
    )
    return [failure("reranker", message, "Export it without the activation: scores need logits.")]


def cut_head(
    model: OnnxModel, reranker: Reranker, head: VocabularyHead, answer_ids: Iterable[int]
) -> None:
    """Replace the outputs by the logits of the two answers: float32, (batch, 2)."""
    graph = model.proto.graph
    if head.matrix is None:
        _keep_head(model, reranker, head, list(answer_ids))
        return
    rows = _read_rows(model.path.parent, head.matrix, head.vocabulary_axis, list(answer_ids))
    added = [
        *_last_states(model, head.states, PREFIX + "wide"),
        node("Constant", [], _ROWS, value=numpy_helper.from_array(rows)),
        node("MatMul", [PREFIX + "wide", _ROWS], LOGITS_OUTPUT),
    ]
    _replace_outputs(graph, added, reranker, len(ANSWERS))


def _keep_head(
    model: OnnxModel, reranker: Reranker, head: VocabularyHead, answer_ids: Sequence[int]
) -> None:
    """Give a head the last token's state only, and select two of its logits."""
    graph = model.proto.graph
    logits = PREFIX + "logits" if head.logits == reranker.output.name else head.logits
    _rename(graph, reranker.output.name, PREFIX + "logits")
    last = PREFIX + "gathered"
    place = 1 + next(i for i, each in enumerate(graph.node) if head.states in each.output)
    for user in graph.node[place:]:
        user.input[:] = [last if name == head.states else name for name in user.input]
    # The shapes that the file states behind it are those of all positions.
    _keep(graph.value_info, {name for each in graph.node[:place] for name in each.output})
    gathering = last_token_nodes(
        head.states, last, opset=model.opset, with_past=bool(model.past_inputs)
    )
    for index, new in enumerate(gathering, place):
        graph.node.insert(index, new)
    ids = numpy_helper.from_array(np.array(answer_ids, dtype=np.int64))
    added = [
        node("Constant", [], _ROWS, value=ids),
        node("Gather", [logits, _ROWS], PREFIX + "selected", axis=1),
        node("Cast", [PREFIX + "selected"], LOGITS_OUTPUT, to=TensorProto.FLOAT),
    ]
    _replace_outputs(graph, added, reranker, len(ANSWERS))


def select_last(model: OnnxModel, reranker: Reranker) -> None:
    """Replace the outputs by the logits of the last token, where a head is cut already: float32."""
    graph = model.proto.graph
    everywhere = PREFIX + "logits"
    _rename(graph, reranker.output.name, everywhere)
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


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for each in graph.node:
        for names in (each.input, each.output):
            names[:] = [new if name == old else name for name in names]


def _find_product(
    model: OnnxModel, producers: dict[str, onnx.NodeProto], end: onnx.NodeProto
) -> onnx.NodeProto:
    """Return the product of the head, behind which there may be a bias or a scale.

    Raises:
        ModelError: There is none, or it is one of integers.
    """
    found = [end]
    for each in found:  # which grows
        if each.op_type in _PRODUCTS:
            return each
        if each.op_type in _INTEGER_PRODUCTS:
            msg = (
                f"{model.path} has a vocabulary head that rounds states to integers "
                f"({each.op_type}), together with those of the batch. Pool the float32 or float16 "
                "export, then quantize the result with `qwen3-triton model quantize`."
            )
            raise ModelError(msg)
        if each.op_type in _FOLLOWING:
            found += [producers[name] for name in each.input if name in producers]
    raise _unknown_end(model, end.op_type)


def _unknown_end(model: OnnxModel, end: str) -> ModelError:
    msg = (
        f"{model.path} ends with {end}, not with the product of states and a vocabulary head. "
        "Export it with the task text-generation."
    )
    return ModelError(msg)


def _options(product: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in product.attribute}


def _stored(
    model: OnnxModel, name: str, producers: dict[str, onnx.NodeProto]
) -> tuple[onnx.TensorProto, bool] | None:
    """Follow a matrix back to where it is stored; return whether it is transposed on the way.

    None if it is computed, as one is that was quantized.

    Raises:
        ModelError: It is not in the file.
    """
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    turns = False
    while name not in stored:
        producer = producers.get(name)
        if producer is None:
            raise ModelError(f"{model.path}: the head's matrix `{name}` is not stored in the file.")
        if producer.op_type == "Constant":
            return helper.get_attribute_value(producer.attribute[0]), turns
        if producer.op_type == "Transpose":
            turns ^= list(_options(producer).get("perm", (1, 0))) == [1, 0]
        elif producer.op_type not in _SAME_VALUES:
            return None
        name = producer.input[0]
    return stored[name], turns


def _producers(model: OnnxModel) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.proto.graph.node for output in node.output if output}


def _skip(producers: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    """Return what computes a tensor, before operators that leave its values as they are."""
    producer = producers.get(name)
    while producer is not None and producer.op_type in _SAME_VALUES:
        producer = producers.get(producer.input[0])
    return producer


def _read_rows(
    folder: Path, matrix: onnx.TensorProto, axis: int, ids: list[int]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read (hidden size, 2) from a matrix that may be gigabytes; `axis` is the vocabulary's."""
    if matrix.data_location != TensorProto.EXTERNAL:
        rows = numpy_helper.to_array(matrix).take(ids, axis)
    else:
        # As a tensor of its own, since numpy has no bfloat16.
        shape = [len(ids) if index == axis else size for index, size in enumerate(matrix.dims)]
        part = TensorProto(data_type=matrix.data_type, dims=shape)
        part.raw_data = _read_external(folder, matrix, axis, ids)
        rows = numpy_helper.to_array(part)
    rows = rows.astype(np.float32)
    return np.ascontiguousarray(rows.T if axis == 0 else rows)


def _read_external(folder: Path, matrix: onnx.TensorProto, axis: int, ids: list[int]) -> bytes:
    """Read the values of rows or columns in a file, and none of the others.

    Not mapped into memory: reading ahead would make the whole file resident.
    """
    entries = {entry.key: entry.value for entry in matrix.external_data}
    offset, item = int(entries.get("offset", "0")), 4 if matrix.data_type == _FLOATS[0] else 2
    rows, columns = matrix.dims
    if axis == 0:
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
