"""What pooling adds to a graph: vectors of the last token, or a reranker's two logits.

    sentence_embedding = Cast(GatherND(hidden, last token), float32)

The vectors are not normalized: the gateway cuts them to `dimensions` first, and a cut vector must
be normalized after the cut. A reranker's vocabulary head is cut down: see `vocabulary_head`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from qwen3_triton_gateway.backends.base import TensorSpec
from qwen3_triton_gateway.backends.behavior import check_width
from qwen3_triton_gateway.backends.interface import (
    HIDDEN_RANK,
    LOGITS_OUTPUT,
    POOLED_OUTPUT,
    TOKEN_RANK,
)
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.model_files import find_sibling
from qwen3_triton_gateway.rerank_prompt import ANSWERS
from qwen3_triton_gateway.settings import Pooling

from ..errors import ModelError
from ..onnx_model import OnnxModel, TensorInfo
from .graph import INTERFACE, choose_output, describe_interface, embedding_rows, read_config
from .inspection import Inspection, check_servable
from .last_token import MIN_OPSET, PREFIX, last_token_nodes, node
from .pairs import answer_ids
from .probing import check_pooling, sample_pooling
from .rerank_probing import check_logits, sample_logits
from .reranker import NAME_HINT, has_vocabulary_head
from .tokenizer_file import read_tokenizer_file
from .vocabulary_head import cut_head, find_head, select_last

_FLOATS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """How a graph gets its output.

    Attributes:
        append: Changes the graph.
        sample: Runs the model as it is, and returns the check for the result.
    """

    hidden_size: int
    output: str
    width: int
    append: Callable[[], None]
    sample: Callable[[], Callable[[Path], None]]


def output_to_pool(
    inspection: Inspection, pooling: Pooling, *, wanted: bool = True
) -> tuple[str | None, str]:
    """Return the output of which Triton needs the last token's only, or None and the reason.

    Args:
        inspection: The model.
        pooling: The pooling that it was trained with.
        wanted: Whether it is to be pooled on its way to Triton.
    """
    output = inspection.output
    if not wanted:
        return None, "`--no-pool` was passed."
    if output and inspection.is_pooled:
        return None, f"`{output.name}` is pooled in the graph already."
    if inspection.reranker:
        return inspection.reranker.output.name, ""
    if pooling != "last_token":
        return None, f"Only the last token is pooled there, and the pooling is {pooling!r}."
    try:
        return _find_hidden_state(inspection.model).name, ""
    except ModelError as error:
        return None, str(error)


def plan_pooling(
    inspection: Inspection, *, keep_hidden: bool = False, widen: bool = True
) -> PoolingPlan:
    """Plan what a model needs to return one row per text.

    Args:
        inspection: The model.
        keep_hidden: Keep the hidden states as an output too.
        widen: Make vectors float32. Otherwise they keep the type of the hidden states, unless that
            is bfloat16.

    Raises:
        ModelError: It has no hidden states or head to start from, or the gateway could not serve
            the result.
    """
    if inspection.reranker:
        return _plan_answers(inspection, keep_hidden=keep_hidden)
    return _plan_vectors(inspection, keep_hidden=keep_hidden, widen=widen)


def _plan_vectors(inspection: Inspection, *, keep_hidden: bool, widen: bool) -> PoolingPlan:
    """Plan to append pooling.

    Raises:
        ModelError: The model has no hidden states that the gateway could serve.
    """
    model = inspection.model
    hidden = _find_hidden_state(model)
    hidden_size = _hidden_size(model, hidden)
    _check_states(inspection, hidden_size)

    def sample() -> Callable[[Path], None]:
        return partial(check_pooling, sample=sample_pooling(inspection))

    append = partial(
        _append_pooling, model, hidden, hidden_size, keep_hidden=keep_hidden, widen=widen
    )
    return PoolingPlan(hidden_size, POOLED_OUTPUT, hidden_size, append, sample)


def _plan_answers(inspection: Inspection, *, keep_hidden: bool) -> PoolingPlan:
    """Plan to cut a reranker's head.

    Raises:
        ModelError: It is quantized or not found, or the tokenizer has no tokens for the answers.
    """
    model, reranker = inspection.model, inspection.reranker
    assert reranker is not None, "the caller knows that it is one"
    if keep_hidden:
        raise ModelError("A reranker returns logits: it has no hidden states to keep.")
    # An output in bfloat16, which numpy does not have, is replaced.
    check_servable(inspection, besides=INTERFACE)
    _check_graph(model)
    if reranker.selects_answers:
        append = partial(select_last, model, reranker)
    else:
        append = partial(cut_head, model, reranker, find_head(model, reranker), _ids(inspection))

    def sample() -> Callable[[Path], None]:
        return partial(check_logits, inspection=inspection, sample=sample_logits(inspection))

    size, width = inspection.hidden_size or 0, min(reranker.width, len(ANSWERS))
    return PoolingPlan(size, LOGITS_OUTPUT, width, append, sample)


def _ids(inspection: Inspection) -> list[int]:
    """Return the rows of the head that are a reranker's answers.

    Raises:
        ModelError: The tokenizer is missing, or has no tokens for the answers.
    """
    if inspection.tokenizer is None:
        msg = (
            f"{inspection.path} has no tokenizer.json next to it. Without it, the rows of the head "
            f"for {' and '.join(map(repr, ANSWERS))} are unknown. Add the model's."
        )
        raise ModelError(msg)
    return answer_ids(inspection.tokenizer.answer_ids)


def _find_hidden_state(model: OnnxModel) -> TensorInfo:
    """Find the output to pool.

    Raises:
        ModelError: The model has no mask or hidden state, or its opset is too old.
    """
    hidden = choose_output(model)
    if hidden is None or hidden.shape is None or len(hidden.shape) != HIDDEN_RANK:
        names = ", ".join(tensor.name for tensor in model.outputs) or "none"
        msg = (
            f"{model.path} has no output of shape (batch, length, hidden size) to pool; its "
            f"outputs are: {names}. Export it with the task feature-extraction."
        )
        raise ModelError(msg)
    if hidden.dtype.name not in _FLOATS:
        msg = f"{model.path}: `{hidden.name}` is {hidden.dtype.name}, not a hidden state."
        raise ModelError(msg)
    _check_graph(model)
    return hidden


def _check_graph(model: OnnxModel) -> None:
    """Check that the last token can be found in a graph.

    Raises:
        ModelError: It has no mask, its opset is too old, or it has been done already.
    """
    for name in ("input_ids", "attention_mask"):
        tensor = next((t for t in model.inputs if t.name == name), None)
        if tensor is None or tensor.dtype.name != "int64" or len(tensor.shape or ()) != TOKEN_RANK:
            msg = f"{model.path} has no input `{name}` of int64 and shape (batch, length)."
            raise ModelError(msg)
    if model.opset < MIN_OPSET:
        msg = (
            f"{model.path} has opset {model.opset}, and pooling needs {MIN_OPSET}. Export it "
            "again with a newer one."
        )
        raise ModelError(msg)
    names = (name for each in model.nodes for name in each.output)
    if any(name == POOLED_OUTPUT or name.startswith(PREFIX) for name in names):
        msg = (
            f"{model.path} already computes `{POOLED_OUTPUT}`, but not as an output. Pool the "
            "export that it was derived from."
        )
        raise ModelError(msg)


def _check_states(inspection: Inspection, hidden_size: int) -> None:
    """Check that the gateway could serve the pooled model.

    Raises:
        ModelError: It has inputs that the gateway cannot feed, or the states are scores.
    """
    model = inspection.model
    vectors = TensorSpec(POOLED_OUTPUT, np.dtype(np.float32), (-1, hidden_size))
    rows = embedding_rows(model)
    try:
        spec = describe_interface(model, [vectors])
        file = find_sibling(model.path, "tokenizer.json")
        rows = read_tokenizer_file(file).vocabulary_size if file else rows
        check_width(spec, rows or 0)
    except StartupError as error:
        hint = f" {NAME_HINT}" if has_vocabulary_head(inspection.output, rows) else ""
        msg = f"The gateway could not serve {model.path}: {error.message}{hint}"
        raise ModelError(msg) from error


def _append_pooling(
    model: OnnxModel, hidden: TensorInfo, hidden_size: int, *, keep_hidden: bool, widen: bool
) -> None:
    graph = model.proto.graph
    # numpy has no bfloat16, so the gateway could not read it.
    is_cast = hidden.dtype.name == "bfloat16" or (widen and hidden.dtype.name != "float32")
    element_type = TensorProto.FLOAT if is_cast else _FLOATS[hidden.dtype.name]
    gathered = PREFIX + "gathered" if is_cast else POOLED_OUTPUT
    graph.node.extend(
        last_token_nodes(
            hidden.name, gathered, opset=model.opset, with_past=bool(model.past_inputs)
        )
    )
    if is_cast:  # after gathering
        graph.node.append(node("Cast", [gathered], POOLED_OUTPUT, to=TensorProto.FLOAT))
    outputs = list(graph.output)
    del graph.output[:]
    for output in outputs:
        keep = keep_hidden and output.name == hidden.name
        (graph.output if keep else graph.value_info).append(output)
    batch = hidden.dimensions[0]
    shape = ["batch" if batch == "?" else batch, hidden_size]
    graph.output.append(helper.make_tensor_value_info(POOLED_OUTPUT, element_type, shape))


def _hidden_size(model: OnnxModel, hidden: TensorInfo) -> int:
    size = (hidden.shape or (-1,))[-1]
    if size <= 0:
        size = read_config(model.path).get("hidden_size", 0)
    if size <= 0:
        msg = (
            f"{model.path} leaves the hidden size open, and no config.json supplies it. Put the "
            "model's config.json next to it."
        )
        raise ModelError(msg)
    return size
