"""What an ONNX export is, and what the gateway would do with it, without its external weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_triton_gateway.backends.base import ModelSpec
from qwen3_triton_gateway.backends.behavior import Behavior, check_width
from qwen3_triton_gateway.backends.interface import POOLED_RANK
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.model_files import find_sibling

from ..errors import ModelError
from ..findings import Finding, failure, has_errors, note, ok, warning
from ..onnx_model import OnnxModel, TensorInfo, read_model
from .files import (
    ExternalFile,
    check_external_file,
    list_external_files,
)
from .graph import (
    Padding,
    Positions,
    Precision,
    check_config,
    check_interface,
    check_precision,
    choose_output,
    embedding_shape,
    load_config,
    position_source,
    read_precision,
    tolerated_padding,
    uses_grouped_attention,
)
from .pulling import model_name
from .reranker import (
    NAME_HINT,
    Reranker,
    check_answers,
    check_form,
    check_positions,
    has_vocabulary_head,
    recognize_reranker,
    says_reranker,
)
from .tokenizer_file import NAME as TOKENIZER
from .tokenizer_file import TokenizerFile, check_tokenizer_file, read_tokenizer_file
from .vocabulary_head import check_activation, find_head

# A batch of eight pairs of 1,024 tokens.
_EXAMPLE_TOKENS = 8192
# Default of EMBED_OUTPUT_DIM; a model with a smaller hidden size needs it set.
_DEFAULT_DIMENSIONS = 1024
# If there are more tensors than this, the others are only counted.
MAX_LISTED = 6
# Loading takes about twice the weights in memory, and seconds per gigabyte. The smallest model of
# the family has 2.4 GB in float32.
MAX_WEIGHT_BYTES = 4 * 1024**3
NO_TOKENIZER = "The model has no tokenizer.json next to it."
_SEVERITIES = ("error", "warning", "note", "skipped", "ok")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `model inspect` reports.

    Attributes:
        spec: The interface; None if the gateway refuses the model.
        reranker: The form in which it scores pairs; None if it embeds texts.
        hidden_size: Of its vectors, or of a reranker's states.
        behavior: What the probe found; None if the model was not run, or is a reranker.
    """

    path: Path
    model: OnnxModel
    spec: ModelSpec | None
    reranker: Reranker | None
    output: TensorInfo | None
    hidden_size: int | None
    external_files: list[ExternalFile]
    precision: Precision
    positions: Positions
    padding: Padding
    grouped_attention: bool
    embedding_rows: int | None
    tokenizer: TokenizerFile | None
    config: dict[str, Any]
    findings: list[Finding]
    behavior: Behavior | None = None

    @property
    def problems(self) -> list[Finding]:
        """The findings that are not `ok`, the worst first."""
        return [finding for finding in self.findings if finding.severity != "ok"]

    @property
    def is_servable(self) -> bool:
        return not has_errors(self.findings)

    @property
    def is_pooled(self) -> bool:
        shape = self.output.shape if self.output else None
        return shape is not None and len(shape) == POOLED_RANK

    @property
    def size_bytes(self) -> int:
        """Size of the ONNX file and its external weights."""
        return self.model.size_bytes + sum(file.size_bytes or 0 for file in self.external_files)


def inspect_model(
    path: Path, *, rerank: bool = False, tokenizer_path: Path | None = None
) -> Inspection:
    """Inspect an ONNX file, the sizes of its data files, its tokenizer and its configuration.

    Args:
        path: The file.
        rerank: Take a causal language model for a reranker, whatever its name says.
        tokenizer_path: Its tokenizer, by default the one next to the file.

    Raises:
        ModelError: The file is not an ONNX model.
    """
    return inspect_graph(read_model(path), rerank=rerank, tokenizer_path=tokenizer_path)


def inspect_graph(
    model: OnnxModel, *, rerank: bool = False, tokenizer_path: Path | None = None
) -> Inspection:
    """Inspect a model in memory, and the data files, tokenizer and configuration at its path."""
    path = model.path
    config, findings = load_config(path)
    table = embedding_shape(model)
    rows = table[0] if table else None
    tokenizer, about_tokenizer = _read_tokenizer(
        tokenizer_path or find_sibling(path, "tokenizer.json")
    )
    findings += about_tokenizer
    vocabulary_size = tokenizer.vocabulary_size if tokenizer else rows
    is_named = rerank or says_reranker(path, config, model_name(path.parent))
    reranker = recognize_reranker(model, config, vocabulary_size, is_named=is_named)
    spec, about_interface = check_interface(model, reranker.output if reranker else None)
    findings += about_interface
    output = reranker.output if reranker else choose_output(model)
    files = list_external_files(model)
    precision = read_precision(model, output.dtype.name if output else "")
    if tokenizer:
        findings += check_tokenizer_file(tokenizer, rows, embeds=reranker is None)
    findings.append(ok(path.name, f"{path}, {_interface(model)}"))
    findings += [check_external_file(path.parent, file) for file in files]
    if reranker:
        hidden_size = _state_size(config, table)
        findings += check_answers(reranker, tokenizer) if tokenizer else []
        findings += check_precision(precision, None)
        findings += check_activation(model, reranker)
        findings += check_positions(reranker) or _check_logits(model, reranker)
    else:
        hidden_size = spec.hidden_size if spec else _hidden_size(output)
        form = check_form(model, is_asked=rerank) if is_named else []
        findings += form
        if spec and not has_errors(form):
            findings += _check_width(spec, output, vocabulary_size)
        findings += check_precision(precision, hidden_size)
        findings += _check_vectors(output, hidden_size)
    findings += check_config(model, config, hidden_size, rows)
    findings += _check_unused(model, output)
    return Inspection(
        path=path,
        model=model,
        spec=spec,
        reranker=reranker,
        output=output,
        hidden_size=hidden_size,
        external_files=files,
        precision=precision,
        positions=position_source(model),
        padding=tolerated_padding(model),
        grouped_attention=uses_grouped_attention(model),
        embedding_rows=rows,
        tokenizer=tokenizer,
        config=config,
        findings=sort_findings(findings),
    )


def sort_findings(findings: list[Finding]) -> list[Finding]:
    """Sort findings by severity, the worst first."""
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))


def check_servable(inspection: Inspection, *, besides: str = "") -> None:
    """Check that the gateway could serve a model.

    Args:
        inspection: The model.
        besides: The name of findings that are about to be settled.

    Raises:
        ModelError: It could not; the message is that of the worst finding.
    """
    errors = (each for each in inspection.problems if each.severity == "error")
    worst = next((each for each in errors if each.name != besides), None)
    if worst is not None:
        msg = f"The gateway could not serve {inspection.path}: {worst.message} {worst.remedy}"
        raise ModelError(msg.strip())


def check_runnable(inspection: Inspection) -> Path:
    """Check that a model can be run on this machine's CPU, and return its tokenizer's path.

    Raises:
        ModelError: It has no tokenizer, or is too large.
    """
    tokenizer = tokenizer_of(inspection)
    weight_bytes = inspection.precision.weight_bytes
    if weight_bytes > MAX_WEIGHT_BYTES:
        size, limit = weight_bytes / 1024**3, MAX_WEIGHT_BYTES / 1024**3
        msg = f"The weights have {size:.1f} GiB; only up to {limit:.0f} GiB are run here."
        raise ModelError(msg)
    return Path(tokenizer.path)


def tokenizer_of(inspection: Inspection) -> TokenizerFile:
    """Return the tokenizer of a model.

    Raises:
        ModelError: It has none.
    """
    if inspection.tokenizer is None:
        raise ModelError(NO_TOKENIZER)
    return inspection.tokenizer


def _interface(model: OnnxModel) -> str:
    names = [tensor.name for tensor in model.inputs]
    if len(names) > MAX_LISTED:
        names = [*names[: MAX_LISTED - 1], f"{len(names) - MAX_LISTED + 1} more"]
    return f"{', '.join(names)} -> {', '.join(tensor.name for tensor in model.outputs)}"


def _hidden_size(output: TensorInfo | None) -> int | None:
    return output.shape[-1] if output and output.shape and output.shape[-1] > 0 else None


def _read_tokenizer(file: Path | None) -> tuple[TokenizerFile | None, list[Finding]]:
    if file is None:
        message = NO_TOKENIZER
        remedy = "Fetch the one of the model, or point TOKENIZER_PATH to it."
        return None, [warning(TOKENIZER, message, remedy)]
    try:
        return read_tokenizer_file(file), []
    except ModelError as error:
        return None, [failure(TOKENIZER, str(error))]


def _state_size(config: dict[str, Any], table: tuple[int, ...] | None) -> int | None:
    """Return the size of a reranker's states, which its output does not have."""
    size = config.get("hidden_size")
    return size if isinstance(size, int) else table[-1] if table else None


def _check_width(
    spec: ModelSpec, output: TensorInfo | None, vocabulary_size: int | None
) -> list[Finding]:
    try:
        check_width(spec, vocabulary_size or 0)
    except StartupError as error:
        hint = NAME_HINT if has_vocabulary_head(output, vocabulary_size) else ""
        return [failure("output", error.message, hint)]
    return []


def _check_logits(model: OnnxModel, reranker: Reranker) -> list[Finding]:
    if reranker.is_pooled or reranker.selects_answers:
        return []
    remedy = (
        "`model repository`, `triton` and `up` keep only those two; `model pool` writes such a "
        "file. The scores stay the same."
    )
    try:
        find_head(model, reranker)
    except ModelError as error:
        remedy = f"It cannot be cut down to those two: {error}"
    gigabytes = _EXAMPLE_TOKENS * reranker.width * 4 / 1e9
    return [
        note(
            "pooling",
            f"Not pooled: {reranker.width:,} logits of every token cross the wire, "
            f"{gigabytes:.1f} GB in float32 for {_EXAMPLE_TOKENS:,} tokens, of which two numbers "
            "for each pair are used.",
            remedy,
        )
    ]


def _check_vectors(output: TensorInfo | None, hidden_size: int | None) -> list[Finding]:
    findings: list[Finding] = []
    if output and output.shape and len(output.shape) > POOLED_RANK:
        findings.append(
            note(
                "pooling",
                f"Not pooled: the state of every token of `{output.name}` crosses the wire, "
                "hundreds of times the bytes of the vectors.",
                "`model repository`, `triton` and `up` add pooling; the vectors stay the same.",
            )
        )
    if hidden_size is not None and hidden_size < _DEFAULT_DIMENSIONS:
        findings.append(
            warning(
                "dimensions",
                f"Vectors have at most {hidden_size} dimensions, fewer than the default of "
                f"{_DEFAULT_DIMENSIONS}.",
                f"Serve it with EMBED_OUTPUT_DIM={hidden_size} or less.",
            )
        )
    return findings


def _check_unused(model: OnnxModel, output: TensorInfo | None) -> list[Finding]:
    used = output.name if output else None
    unused = [tensor.name for tensor in model.outputs if tensor.name != used]
    if not unused:
        return []
    return [
        note(
            "outputs",
            f"The gateway does not use {len(unused)} more outputs, such as `{unused[0]}`.",
            "Triton would copy every output in its configuration; `model repository` lists only "
            "the one that is used.",
        )
    ]
