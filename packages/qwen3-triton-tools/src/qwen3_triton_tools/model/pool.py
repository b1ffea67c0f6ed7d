"""Write a copy of an ONNX export that returns one row per text; see `pooling_plan` for how.

External weights are linked or copied, and read only to compare the result with the original.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Literal

import onnx

from qwen3_triton_gateway.backends.interface import LOGITS_OUTPUT

from ..errors import ModelError
from ..onnx_model import MAX_FILE_BYTES, OnnxModel, read_model
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
from .graph import INTERFACE
from .inspection import Inspection, check_servable, inspect_model
from .pooling_plan import PoolingPlan, plan_pooling
from .probing import probe_model

_SUFFIX = "_pooled"
# onnx's checker reads the whole file again, which without external weights is a few megabytes.
_MAX_CHECKED_BYTES = 64 * 1024 * 1024
# More than the nodes and the output that are added.
_ADDED_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class PooledModel:
    """The result of pooling.

    Attributes:
        path: The file that was written, or the model itself if `already_pooled`.
        hidden_size: Of its vectors, or of a reranker's states; 0 where that is not known.
        output: What it returns now.
        width: The last size of that.
        external_files: Number of files of weights that were brought to another folder.
        checked_by: `onnx` if its checker accepted the file, else `reader`.
        not_compared: Why its vectors were not compared with those of pooling outside of the graph;
            empty if they were, and are the same.
    """

    path: Path
    hidden_size: int
    output: str
    width: int
    already_pooled: bool = False
    external_files: int = 0
    checked_by: Literal["onnx", "reader"] = "reader"
    not_compared: str = ""

    @property
    def is_reranker(self) -> bool:
        return self.output == LOGITS_OUTPUT


def pool_model(
    model_path: Path,
    out: Path | None = None,
    *,
    keep_hidden: bool = False,
    force: bool = False,
    transfer: Transfer = "auto",
    probe: bool = True,
    rerank: bool = False,
) -> PooledModel:
    """Write a copy of the model that returns a row per text.

    The output is `sentence_embedding`, float32 (batch, hidden size): the vectors of
    `last_token_pool`, not normalized. For a reranker, it is `logits`, float32 (batch, 2): those of
    "no" and "yes" at the last token.

    Args:
        model_path: The ONNX file.
        out: An ONNX file, or a folder that gets `model.onnx` with its tokenizer; by default
            `model_pooled.onnx` next to the model.
        keep_hidden: Keep the hidden state as an output too.
        force: Replace existing files.
        transfer: How external weights are brought to another folder.
        probe: Run the model and the result on a few texts, if that is possible here.
        rerank: Take a causal language model for a reranker, whatever its name says.

    Raises:
        ModelError: The model cannot be read or pooled, does not behave like one of the family, or
            `out` exists and `force` is not set.
    """
    check_size(model_path)
    inspection = inspect_model(model_path, rerank=rerank)
    if rerank:
        check_servable(inspection, besides=INTERFACE)
    model = inspection.model
    pooled = _already_pooled(inspection)
    if pooled is not None:
        if probe:
            _check_behavior(inspection)
        return pooled
    plan = plan_pooling(inspection, keep_hidden=keep_hidden)
    _check_weights(model)
    target = _target(model_path, out)
    if target.exists() and not force:
        raise ModelError(f"{target} already exists. Pass `--force` to replace it.")
    check, not_compared = _sample(inspection, plan) if probe else (None, "It was not asked for.")
    with all_or_none([target, *_transferred(model, target, out)]):
        external_files = 0
        if not _is_same_folder(target.parent, model_path.parent):
            external_files = transfer_weights(model, target.parent, transfer=transfer, force=force)
            if out is not None and not _is_file_name(out):
                copy_tokenizer(model_path, target.parent, force=force)
        plan.append()
        with replacing_file(target, model.path.stat().st_mode & 0o777) as unfinished:
            unfinished.write_bytes(model.proto.SerializeToString())
            if check:
                check(unfinished)
        checked_by = _check_result(target)
    return PooledModel(
        target,
        plan.hidden_size,
        plan.output,
        plan.width,
        external_files=external_files,
        checked_by=checked_by,
        not_compared=not_compared,
    )


def place_to_link(inspection: Inspection) -> Path:
    """Return where a temporary folder may have hard links to the weights.

    That is the usual place, or the model's own folder if they are on another disk.
    """
    usual, own = Path(gettempdir()), inspection.path.parent
    locations = [own / name for name in inspection.model.external_locations]
    devices = {path.stat().st_dev for path in locations if path.exists()}
    if devices <= {usual.stat().st_dev} or devices != {own.stat().st_dev}:
        return usual
    return own if os.access(own, os.W_OK) else usual


def pool_for_local_triton(
    inspection: Inspection, folder: Path, *, probe: bool, transfer: Transfer = "auto"
) -> tuple[Path, str]:
    """Cut a reranker's head down in a copy for the local Triton.

    Triton's Python backend pools hidden states itself, but a vocabulary's logits would have to be
    computed before it could select two of them.

    Args:
        inspection: The reranker.
        folder: Where the copy is written, if there is anything to cut.
        probe: Compare the scores with those of the whole head.
        transfer: How external weights get there.

    Returns:
        The ONNX file to serve, and why it is the export itself; empty if it is the copy.
    """
    if inspection.is_pooled:
        name = inspection.output.name if inspection.output else LOGITS_OUTPUT
        return inspection.path, f"`{name}` is pooled in the graph already."
    try:
        pooled = pool_model(
            inspection.path, folder, force=True, transfer=transfer, probe=probe, rerank=True
        )
    except ModelError as error:
        reason = str(error)
        if transfer == "link":
            reason += " Or run `qwen3-triton model pool` once, and serve what it writes."
        return inspection.path, reason
    return pooled.path, ""


def _already_pooled(inspection: Inspection) -> PooledModel | None:
    """Return the model as the result, if the gateway would choose a pooled output of it.

    Raises:
        ModelError: The gateway could not serve that output.
    """
    output = inspection.output
    if output is None or not inspection.is_pooled:
        return None
    check_servable(inspection)
    width = (output.shape or (0,))[-1]
    hidden_size = (inspection.hidden_size or 0) if inspection.reranker else width
    return PooledModel(inspection.path, hidden_size, output.name, width, already_pooled=True)


def _check_behavior(inspection: Inspection) -> None:
    _, findings = probe_model(inspection)
    for finding in findings:
        if finding.severity == "error":
            raise ModelError(f"{finding.message} {finding.remedy}".strip())


def _sample(inspection: Inspection, plan: PoolingPlan) -> tuple[Callable[[Path], None] | None, str]:
    """Return the check of the result, or the reason why it cannot be checked.

    Raises:
        ModelError: The model does not behave like one of the family.
    """
    _check_behavior(inspection)
    try:
        return plan.sample(), ""
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


def check_size(model_path: Path) -> None:
    """Check that an ONNX file has room for pooling.

    Raises:
        ModelError: It would exceed 2 GiB.
    """
    if model_path.is_file() and model_path.stat().st_size > MAX_FILE_BYTES - _ADDED_BYTES:
        msg = (
            f"{model_path} would be larger than 2 GiB, which no ONNX reader accepts. Save it with "
            "its weights as external data first: "
            "onnx.save_model(..., save_as_external_data=True)."
        )
        raise ModelError(msg)


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
