"""Append last-token pooling to an ONNX export without loading its weights."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen3_triton_gateway.backends.base import HIDDEN_RANK, POOLED_RANK, TOKEN_RANK

from ..onnx_file import OnnxModel, TensorSignature, proto, read_model, rewrite_graph
from .errors import ModelToolError
from .external_data import check_external_files, list_external_files
from .findings import has_errors
from .interface import choose_output, read_config
from .pooling_nodes import MIN_OPSET, OUTPUT, pooling_fields, uses_our_names
from .real_files import Transfer, bring_external_data, bring_tokenizer

_SUFFIX = "_pooled"
# onnx's checker reads the whole file, which without its external data is a few megabytes.
_MAX_CHECKED_BYTES = 64 * 1024 * 1024
_FLOATS = {proto.FLOAT, proto.FLOAT16, proto.BFLOAT16}


@dataclass(frozen=True, slots=True)
class PooledModel:
    """What was written, or, where `already` is true, what needed no pooling."""

    path: Path
    hidden_size: int
    already: bool = False
    external_files: int = 0
    checked: Literal["onnx", "reader"] = "reader"


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """The state to pool, its size, and whether the mask covers a past too."""

    hidden: TensorSignature
    hidden_size: int
    with_past: bool


def pool_model(
    model_path: Path,
    out: Path | None = None,
    *,
    keep_hidden: bool = False,
    force: bool = False,
    transfer: Transfer = "auto",
) -> PooledModel:
    """Write a copy of the model that gives `sentence_embedding`: float32, (batch, hidden size).

    `out` is an ONNX file, or a folder that gets `model.onnx` with its tokenizer; by default it is
    `model_pooled.onnx` beside the model. Files of weights are linked or copied where they are in
    another folder. `keep_hidden` keeps the hidden state as an output too. The vectors are those of
    `last_token_pool`, not normalized.

    Raises:
        OnnxFileError: the model cannot be read or written.
        ModelToolError: it cannot be pooled, or `out` is there and `force` is not given.
    """
    model = read_model(model_path)
    pooled = _pooled_size(model)
    if pooled is not None:
        return PooledModel(model_path, pooled, already=True)
    plan = plan_pooling(model)
    _check_weights(model)
    target = _target(model_path, out)
    if target.exists() and not force:
        raise ModelToolError(f"{target} is there already: give `--force` to replace it.")
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    external = 0
    if not folder.samefile(model_path.parent):
        external = bring_external_data(model, folder, transfer=transfer, force=force)
        if out is not None and not _is_file_name(out):
            bring_tokenizer(model_path, folder, force=force)
    rewrite_graph(
        model_path,
        target,
        kept_outputs={plan.hidden.name} if keep_hidden else set(),
        added=pooling_fields(model, plan.hidden, plan.hidden_size, with_past=plan.with_past),
    )
    return PooledModel(
        target, plan.hidden_size, external_files=external, checked=_check(model, target)
    )


def plan_pooling(model: OnnxModel) -> PoolingPlan:
    """Find what to pool.

    Raises:
        ModelToolError: no mask, no hidden state, or operators older than those of pooling.
    """
    hidden = choose_output(model)
    if hidden is None or hidden.shape is None or len(hidden.shape) != HIDDEN_RANK:
        names = ", ".join(tensor.name for tensor in model.signature.outputs) or "none"
        msg = (
            f"{model.path} has no output of shape (batch, length, hidden size) to pool; it has: "
            f"{names}. Export it with the task feature-extraction."
        )
        raise ModelToolError(msg)
    if hidden.element_type not in _FLOATS:
        kind = proto.element_name(hidden.element_type)
        raise ModelToolError(f"{model.path}: `{hidden.name}` is {kind}, which is no hidden state.")
    for name in ("input_ids", "attention_mask"):
        tensor = next((t for t in model.signature.inputs if t.name == name), None)
        if tensor is None or tensor.element_type != proto.INT64 or _rank(tensor) != TOKEN_RANK:
            msg = f"{model.path} has no input `{name}` of int64 and shape (batch, length)."
            raise ModelToolError(msg)
    if model.opset < MIN_OPSET:
        msg = f"{model.path} has opset {model.opset}; pooling needs {MIN_OPSET}: export it anew."
        raise ModelToolError(msg)
    if uses_our_names(model):
        msg = (
            f"{model.path} computes `{OUTPUT}` inside already, and does not give it as an output. "
            "Pool the export that it was made from."
        )
        raise ModelToolError(msg)
    with_past = any(t.name.startswith("past_key_values.") for t in model.signature.inputs)
    return PoolingPlan(hidden, _hidden_size(model, hidden), with_past)


def _rank(tensor: TensorSignature) -> int:
    return len(tensor.shape or ())


def _pooled_size(model: OnnxModel) -> int | None:
    """Give the size of a pooled output that the gateway would choose, if there is one."""
    output = choose_output(model)
    if output and output.shape and len(output.shape) == POOLED_RANK:
        return output.shape[-1]
    return None


def _hidden_size(model: OnnxModel, hidden: TensorSignature) -> int:
    size = (hidden.shape or (-1,))[-1]
    if size <= 0:
        size = read_config(model.path).get("hidden_size", 0)
    if size <= 0:
        msg = (
            f"{model.path} leaves the hidden size open and has no config.json that tells it: put "
            "the model's config.json beside it."
        )
        raise ModelToolError(msg)
    return size


def _check_weights(model: OnnxModel) -> None:
    findings = check_external_files(model, list_external_files(model))
    if has_errors(findings):
        worst = next(finding for finding in findings if finding.severity == "error")
        raise ModelToolError(f"{worst.message} {worst.remedy}")


def _target(model_path: Path, out: Path | None) -> Path:
    if out is None:
        return model_path.with_name(f"{model_path.stem}{_SUFFIX}.onnx")
    return out if _is_file_name(out) else out / "model.onnx"


def _is_file_name(path: Path) -> bool:
    return path.suffix == ".onnx" and not path.is_dir()


def _check(model: OnnxModel, target: Path) -> Literal["onnx", "reader"]:
    """Read the result again; by `onnx` as well where it is installed and would not load gigabytes.

    Raises:
        ModelToolError: it is not what was meant, which is a fault of this program; it is removed.
    """
    written = read_model(target)
    output = choose_output(written)
    same = len(written.nodes) > len(model.nodes) and written.opsets == model.opsets
    try:
        if not same or output is None or output.name != OUTPUT:
            raise ModelToolError(f"{target} is not what was meant to be written; report this.")
        return _check_by_onnx(written)
    except ModelToolError:
        target.unlink()
        raise


def _check_by_onnx(written: OnnxModel) -> Literal["onnx", "reader"]:
    # Since 1.21 it refuses weights that have another name too, which no runtime minds.
    linked = any(file.is_symlink or file.names > 1 for file in list_external_files(written))
    if linked or written.size_bytes > _MAX_CHECKED_BYTES:
        return "reader"
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError:
        return "reader"
    try:
        onnx.checker.check_model(str(written.path))
    except Exception as error:  # onnx's own errors share no public base class
        raise ModelToolError(f"{written.path} did not pass onnx's checker: {error}") from error
    return "onnx"
