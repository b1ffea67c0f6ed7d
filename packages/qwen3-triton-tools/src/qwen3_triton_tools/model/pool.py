"""Append last-token pooling to an ONNX export; external weights are read only to compare.

    index = ReduceMax(attention_mask * Range(0, length))
    sentence_embedding = Cast(GatherND(hidden, index), float32)

The highest index whose mask is 1 is correct for padding on the right, on the left, or mixed. Only
operators with CUDA kernels for int64 are used (ArgMax and LpNormalization have none), so that
nothing is copied to the CPU in between. The vectors are not normalized: the gateway cuts them to
`dimensions` first, and a cut vector must be normalized after the cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from qwen3_triton_gateway.backends.base import (
    HIDDEN_RANK,
    POOLED_OUTPUT,
    POOLED_RANK,
    TOKEN_RANK,
    TensorSpec,
)
from qwen3_triton_gateway.backends.behavior import check_width
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.model_files import find_sibling

from ..errors import ModelError
from ..onnx_model import MAX_FILE_BYTES, OnnxModel, TensorInfo, read_model
from ..writing import all_or_none, replacing_file
from .files import (
    TOKENIZER_FILES,
    Transfer,
    check_external_file,
    copy_tokenizer,
    is_inside,
    list_external_files,
    transfer_weights,
)
from .graph import choose_output, describe_interface, embedding_rows, read_config
from .inspection import Inspection, inspect_model
from .probing import PoolingSample, check_pooling, probe_model, sample_pooling
from .tokenizer_file import read_tokenizer_file

_SUFFIX = "_pooled"
# onnx's checker reads the whole file again, which without external weights is a few megabytes.
_MAX_CHECKED_BYTES = 64 * 1024 * 1024
# More than the nodes and the output that are added.
_ADDED_BYTES = 16 * 1024
_FLOATS = {"float32", "float16", "bfloat16"}
# GatherND takes `batch_dims` since this opset.
_MIN_OPSET = 12
# ReduceMax takes its axes as an input, no longer as an attribute, since this opset.
_AXES_INPUT_OPSET = 18
_PREFIX = "last_token_pool/"


@dataclass(frozen=True, slots=True)
class PooledModel:
    """The result of pooling.

    Attributes:
        path: The file that was written, or the model itself if `already_pooled`.
        external_files: Number of files of weights that were brought to another folder.
        checked_by: `onnx` if its checker accepted the file, else `reader`.
        not_compared: Why its vectors were not compared with those of pooling outside of the graph;
            empty if they were, and are the same.
    """

    path: Path
    hidden_size: int
    already_pooled: bool = False
    external_files: int = 0
    checked_by: Literal["onnx", "reader"] = "reader"
    not_compared: str = ""


def pool_model(
    model_path: Path,
    out: Path | None = None,
    *,
    keep_hidden: bool = False,
    force: bool = False,
    transfer: Transfer = "auto",
    probe: bool = True,
) -> PooledModel:
    """Write a copy of the model with the output `sentence_embedding`, float32 (batch, hidden size).

    The vectors are those of `last_token_pool`, not normalized.

    Args:
        model_path: The ONNX file.
        out: An ONNX file, or a folder that gets `model.onnx` with its tokenizer; by default
            `model_pooled.onnx` next to the model.
        keep_hidden: Keep the hidden state as an output too.
        force: Replace existing files.
        transfer: How external weights are brought to another folder.
        probe: Run the model and the result on a few texts, if that is possible here.

    Raises:
        ModelError: The model cannot be read or pooled, does not behave like one of the family, or
            `out` exists and `force` is not set.
    """
    _check_size(model_path)
    inspection = inspect_model(model_path)
    model = inspection.model
    pooled_size = _pooled_size(model)
    if pooled_size is not None:
        if probe:
            _check_behavior(inspection)
        return PooledModel(model_path, pooled_size, already_pooled=True)
    hidden = _find_hidden_state(model)
    hidden_size = _hidden_size(model, hidden)
    _check_states(model, hidden_size)
    _check_weights(model)
    target = _target(model_path, out)
    if target.exists() and not force:
        raise ModelError(f"{target} already exists. Pass `--force` to replace it.")
    sample, not_compared = _sample(inspection) if probe else (None, "It was not asked for.")
    with all_or_none([target, *_transferred(model, target, out)]):
        external_files = 0
        if not _is_same_folder(target.parent, model_path.parent):
            external_files = transfer_weights(model, target.parent, transfer=transfer, force=force)
            if out is not None and not _is_file_name(out):
                copy_tokenizer(model_path, target.parent, force=force)
        _append_pooling(model, hidden, hidden_size, keep_hidden=keep_hidden)
        with replacing_file(target, model.path.stat().st_mode & 0o777) as unfinished:
            unfinished.write_bytes(model.proto.SerializeToString())
            if sample:
                check_pooling(unfinished, sample)
        checked_by = _check_result(target)
    return PooledModel(
        target,
        hidden_size,
        external_files=external_files,
        checked_by=checked_by,
        not_compared=not_compared,
    )


def _check_behavior(inspection: Inspection) -> None:
    _, findings = probe_model(inspection)
    for finding in findings:
        if finding.severity == "error":
            raise ModelError(f"{finding.message} {finding.remedy}".strip())


def _sample(inspection: Inspection) -> tuple[PoolingSample | None, str]:
    """Return what the result is compared with, or why there is nothing.

    Raises:
        ModelError: The model does not behave like one of the family.
    """
    _check_behavior(inspection)
    try:
        return sample_pooling(inspection), ""
    except ModelError as error:
        return None, str(error)


def _transferred(model: OnnxModel, target: Path, out: Path | None) -> list[Path]:
    """List what another folder gets next to the graph."""
    if _is_same_folder(target.parent, model.path.parent):
        return []
    names = [location for location in model.external_locations if is_inside(location)]
    if out is not None and not _is_file_name(out):
        names += TOKENIZER_FILES
    return [target.parent / name for name in names]


def _is_same_folder(left: Path, right: Path) -> bool:
    return left.exists() and left.samefile(right)


def _check_size(model_path: Path) -> None:
    if model_path.is_file() and model_path.stat().st_size > MAX_FILE_BYTES - _ADDED_BYTES:
        msg = (
            f"{model_path} would be larger than 2 GiB, which no ONNX reader accepts. Save it with "
            "its weights as external data first: "
            "onnx.save_model(..., save_as_external_data=True)."
        )
        raise ModelError(msg)


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
    for name in ("input_ids", "attention_mask"):
        tensor = next((t for t in model.inputs if t.name == name), None)
        if tensor is None or tensor.dtype.name != "int64" or len(tensor.shape or ()) != TOKEN_RANK:
            msg = f"{model.path} has no input `{name}` of int64 and shape (batch, length)."
            raise ModelError(msg)
    if model.opset < _MIN_OPSET:
        msg = (
            f"{model.path} has opset {model.opset}, and pooling needs {_MIN_OPSET}. Export it "
            "again with a newer one."
        )
        raise ModelError(msg)
    names = (name for node in model.nodes for name in node.output)
    if any(name == POOLED_OUTPUT or name.startswith(_PREFIX) for name in names):
        msg = (
            f"{model.path} already computes `{POOLED_OUTPUT}`, but not as an output. Pool the "
            "export that it was derived from."
        )
        raise ModelError(msg)
    return hidden


def _check_states(model: OnnxModel, hidden_size: int) -> None:
    """Check that the gateway could serve the pooled model.

    Raises:
        ModelError: It has inputs that the gateway cannot feed, or the states are scores.
    """
    vectors = TensorSpec(POOLED_OUTPUT, np.dtype(np.float32), (-1, hidden_size))
    try:
        spec = describe_interface(model, [vectors])
        file = find_sibling(model.path, "tokenizer.json")
        rows = read_tokenizer_file(file).vocabulary_size if file else embedding_rows(model)
        check_width(spec, rows or 0)
    except StartupError as error:
        raise ModelError(f"The gateway could not serve {model.path}: {error.message}") from error


def _append_pooling(
    model: OnnxModel, hidden: TensorInfo, hidden_size: int, *, keep_hidden: bool
) -> None:
    graph = model.proto.graph
    graph.node.extend(_index_nodes(model.opset, with_past=bool(model.past_inputs)))
    graph.node.extend(_gather_nodes(hidden))
    outputs = list(graph.output)
    del graph.output[:]
    for output in outputs:
        keep = keep_hidden and output.name == hidden.name
        (graph.output if keep else graph.value_info).append(output)
    batch = hidden.dimensions[0]
    shape = ["batch" if batch == "?" else batch, hidden_size]
    graph.output.append(helper.make_tensor_value_info(POOLED_OUTPUT, TensorProto.FLOAT, shape))


def _index_nodes(opset: int, *, with_past: bool) -> Iterator[onnx.NodeProto]:
    """Yield the nodes for (batch, 1): the index in the sequence of each row's last real token.

    If the mask covers a past too, the past's positions count up from below zero, so that the
    maximum is relative to the sequence.
    """
    yield _constant("one", 1)
    yield _node("Shape", ["attention_mask"], "mask_shape")
    yield _node("Gather", [_PREFIX + "mask_shape", _PREFIX + "one"], "total", axis=0)
    limit = _PREFIX + "total"
    if with_past:
        yield _node("Shape", ["input_ids"], "ids_shape")
        limit = _PREFIX + "length"
        yield _node("Gather", [_PREFIX + "ids_shape", _PREFIX + "one"], "length", axis=0)
        yield _node("Sub", [limit, _PREFIX + "total"], "start")
    else:
        yield _constant("start", 0)
    yield _node("Range", [_PREFIX + "start", limit, _PREFIX + "one"], "positions")
    yield _node("Mul", ["attention_mask", _PREFIX + "positions"], "real")
    if opset >= _AXES_INPUT_OPSET:
        yield _constant("axes", [1])
        yield _node("ReduceMax", [_PREFIX + "real", _PREFIX + "axes"], "index", keepdims=1)
    else:
        yield _node("ReduceMax", [_PREFIX + "real"], "index", axes=[1], keepdims=1)


def _gather_nodes(hidden: TensorInfo) -> Iterator[onnx.NodeProto]:
    """Yield the nodes for (batch, hidden size), widened to float32 after gathering."""
    is_float32 = hidden.dtype.name == "float32"
    gathered = POOLED_OUTPUT if is_float32 else _PREFIX + "gathered"
    inputs = [hidden.name, _PREFIX + "index"]
    yield helper.make_node("GatherND", inputs, [gathered], gathered, batch_dims=1)
    if not is_float32:
        yield helper.make_node(
            "Cast", [gathered], [POOLED_OUTPUT], POOLED_OUTPUT, to=TensorProto.FLOAT
        )


def _node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    name = _PREFIX + output
    return helper.make_node(op_type, inputs, [name], name, **attributes)


def _constant(output: str, value: int | list[int]) -> onnx.NodeProto:
    """Build a node and not an initializer, which below IR version 4 would have to be an input."""
    values, shape = (value, [len(value)]) if isinstance(value, list) else ([value], [])
    return _node(
        "Constant", [], output, value=helper.make_tensor("", TensorProto.INT64, shape, values)
    )


def _pooled_size(model: OnnxModel) -> int | None:
    """Return the size of a pooled output that the gateway would choose, None if there is none."""
    output = choose_output(model)
    if output and output.shape and len(output.shape) == POOLED_RANK:
        return output.shape[-1]
    return None


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


def _check_weights(model: OnnxModel) -> None:
    for file in list_external_files(model):
        finding = check_external_file(model.path.parent, file)
        if finding.severity == "error":
            raise ModelError(f"{finding.message} {finding.remedy}")


def _target(model_path: Path, out: Path | None) -> Path:
    if out is None:
        return model_path.with_name(f"{model_path.stem}{_SUFFIX}.onnx")
    return out if _is_file_name(out) else out / "model.onnx"


def _is_file_name(path: Path) -> bool:
    return path.suffix == ".onnx" and not path.is_dir()


def _check_result(target: Path) -> Literal["onnx", "reader"]:
    """Read the result again, and have `onnx` check it unless that would load gigabytes.

    Raises:
        ModelError: The file is invalid, which is a bug of this program; it is removed.
    """
    if target.stat().st_size > _MAX_CHECKED_BYTES:
        return "reader"
    # Since 1.21 the checker refuses weights that have another name too, which no runtime minds.
    files = list_external_files(read_model(target))
    if any(file.is_symlink or file.names > 1 for file in files):
        return "reader"
    try:
        onnx.checker.check_model(str(target))  # pyright: ignore[reportUnknownMemberType]
    except Exception as error:  # onnx's own errors share no public base class
        target.unlink()
        raise ModelError(f"{target} did not pass onnx's checker: {error}") from error
    return "onnx"
