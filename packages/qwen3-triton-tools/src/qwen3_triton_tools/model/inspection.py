"""What an ONNX export is, and what the gateway would do with it, without its external weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen3_triton_gateway.backends.base import POOLED_RANK, ModelSpec
from qwen3_triton_gateway.backends.behavior import Behavior, check_width
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.model_files import find_sibling
from qwen3_triton_gateway.tokenization import END_TOKEN

from ..errors import ModelError
from ..findings import Finding, failure, has_errors, note, ok, warning
from ..onnx_model import OnnxModel, TensorInfo, as_text, read_model
from .files import (
    ExternalFile,
    check_external_file,
    format_bytes,
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
    embedding_rows,
    load_config,
    position_source,
    read_precision,
    tolerated_padding,
    uses_grouped_attention,
)
from .tokenizer_file import TokenizerFile, inspect_tokenizer

# Default of EMBED_OUTPUT_DIM; a model with a smaller hidden size needs it set.
_DEFAULT_DIMENSIONS = 1024
_LABEL_WIDTH = 12
# If there are more tensors than this, the others are only counted.
_MAX_LISTED = 6
_SEVERITIES = ("error", "warning", "note", "skipped", "ok")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `model inspect` reports.

    Attributes:
        spec: The interface; None if the gateway refuses the model.
        behavior: What the probe found; None if the model was not run.
    """

    path: Path
    model: OnnxModel
    spec: ModelSpec | None
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


def inspect_model(path: Path) -> Inspection:
    """Inspect an ONNX file, the sizes of its data files, its tokenizer and its configuration.

    Raises:
        ModelError: The file is not an ONNX model.
    """
    model = read_model(path)
    spec, findings = check_interface(model)
    output = choose_output(model)
    config, config_findings = load_config(path)
    findings += config_findings
    hidden_size = spec.hidden_size if spec else _hidden_size(output)
    rows = embedding_rows(model)
    files = list_external_files(model)
    precision = read_precision(model, output.dtype.name if output else "")
    tokenizer: TokenizerFile | None = None
    tokenizer_path = find_sibling(path, "tokenizer.json")
    if tokenizer_path is None:
        message = "There is no tokenizer.json next to the model."
        remedy = "Fetch the one of the model, or point TOKENIZER_PATH to it."
        findings.append(warning("tokenizer", message, remedy))
    else:
        tokenizer, about_tokenizer = inspect_tokenizer(tokenizer_path, rows)
        findings += about_tokenizer
    if spec:
        findings += _check_width(spec, tokenizer.vocabulary_size if tokenizer else rows)
    findings.append(ok(path.name, f"{path}, {_interface(model)}"))
    findings += [check_external_file(path.parent, file) for file in files]
    findings += check_config(model, config, hidden_size, rows)
    findings += check_precision(precision, hidden_size)
    findings += _check_outputs(model, output, hidden_size)
    return Inspection(
        path=path,
        model=model,
        spec=spec,
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


def check_servable(inspection: Inspection) -> None:
    """Check that the gateway could serve a model.

    Raises:
        ModelError: It could not; the message is that of the worst finding.
    """
    if not inspection.is_servable:
        worst = inspection.problems[0]
        msg = f"The gateway could not serve {inspection.path}: {worst.message} {worst.remedy}"
        raise ModelError(msg.strip())


def as_document(inspection: Inspection) -> dict[str, Any]:
    """Return the inspection as plain data for `--json`."""
    model = inspection.model
    return {
        "path": str(inspection.path),
        "servable": inspection.is_servable,
        "size_bytes": model.size_bytes,
        "ir_version": model.proto.ir_version,
        "opset": model.opset,
        "opsets": model.opsets,
        "producer": _producer(model),
        "inputs": [_tensor_document(tensor) for tensor in model.inputs],
        "outputs": [_tensor_document(tensor) for tensor in model.outputs],
        "output": inspection.output.name if inspection.output else None,
        "hidden_size": inspection.hidden_size,
        "pooled": inspection.is_pooled,
        "past_key_values": len(model.past_inputs),
        "grouped_query_attention": inspection.grouped_attention,
        "positions": inspection.positions,
        "padding": inspection.padding,
        "probe": asdict(inspection.behavior) if inspection.behavior else None,
        "external_files": [
            asdict(file) | {"is_whole": file.is_whole} for file in inspection.external_files
        ],
        "precision": asdict(inspection.precision),
        "embedding_rows": inspection.embedding_rows,
        "tokenizer": asdict(inspection.tokenizer) if inspection.tokenizer else None,
        "config": {
            name: inspection.config[name]
            for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
            if name in inspection.config
        },
        "operators": dict(model.operators.most_common()),
        "findings": [
            {name: getattr(finding, name) for name in ("name", "severity", "message", "remedy")}
            for finding in inspection.problems
        ],
    }


def describe(inspection: Inspection) -> list[str]:
    """Return aligned lines that say what the file is and what the gateway does with it."""
    lines = [str(inspection.path)]
    for label, values in _rows(inspection):
        for index, value in enumerate(values):
            lines.append(f"  {label if index == 0 else '':{_LABEL_WIDTH}} {value}")
    return lines


def _rows(inspection: Inspection) -> Iterator[tuple[str, list[str]]]:
    model = inspection.model
    opsets = ", ".join(f"{name or 'ai.onnx'} {v}" for name, v in model.opsets.items())
    yield (
        "file",
        [
            f"{format_bytes(model.size_bytes)}, IR version {model.proto.ir_version}, "
            f"opset {opsets}, from {_producer(model) or 'an unnamed exporter'}"
        ],
    )
    yield "inputs", _tensor_lines(model.inputs)
    yield "outputs", _tensor_lines(model.outputs)
    yield "weights", _weight_lines(inspection)
    kind = "GroupQueryAttention" if inspection.grouped_attention else "plain operators"
    past = f"{len(model.past_inputs)} past inputs" if model.past_inputs else "no past"
    yield "attention", [f"{kind}, {past}"]
    sources = {
        "input": "positions are an input",
        "mask": "positions are summed up from the mask",
        "counted": "positions are counted from 0",
    }
    source = sources[inspection.positions]
    yield "padding", [f"{inspection.padding} ({source}); the gateway pads right"]
    yield "tokenizer", _tokenizer_lines(inspection)
    names = [
        n for n in ("model_type", "hidden_size", "num_hidden_layers") if n in inspection.config
    ]
    yield "config.json", [", ".join(f"{n} {inspection.config[n]}" for n in names) or "none"]
    if inspection.spec:
        yield "gateway", _gateway_lines(inspection.spec)
    if inspection.behavior:
        messages = [f.message for f in inspection.findings if f.name == "behavior"]
        yield "probe", messages


def _tensor_lines(tensors: tuple[TensorInfo, ...]) -> list[str]:
    if not tensors:
        return ["none"]
    listed = tensors if len(tensors) <= _MAX_LISTED else tensors[: _MAX_LISTED - 1]
    width = max(len(tensor.name) for tensor in listed)
    lines = [
        f"{tensor.name:{width}}  {tensor.dtype.name:8}  "
        f"({', '.join(tensor.dimensions) if tensor.shape is not None else 'any shape'})"
        for tensor in listed
    ]
    if len(listed) < len(tensors):
        lines.append(f"and {len(tensors) - len(listed)} more, up to {tensors[-1].name}")
    return lines


def _weight_lines(inspection: Inspection) -> list[str]:
    precision = inspection.precision
    types = ", ".join(f"{name} {format_bytes(n)}" for name, n in precision.bytes_by_type.items())
    lines = [f"{precision.parameters / 1e6:,.1f} million values: {types}"]
    if precision.quantization:
        lines.append(f"quantized: {precision.quantization}")
    if not inspection.external_files:
        lines.append("all inside the file")
    for file in inspection.external_files[:_MAX_LISTED]:
        state = "missing" if file.size_bytes is None else format_bytes(file.size_bytes)
        whole = ", complete" if file.is_whole else ""
        link = ", a symbolic link" if file.is_symlink else ""
        lines.append(f"{file.location}: {state}{whole}{link}")
    if len(inspection.external_files) > _MAX_LISTED:
        lines.append(f"and {len(inspection.external_files) - _MAX_LISTED} more files")
    return lines


def _tokenizer_lines(inspection: Inspection) -> list[str]:
    tokenizer = inspection.tokenizer
    if tokenizer is None:
        return ["none"]
    end = f"appends {tokenizer.appends}" if tokenizer.appends else "appends nothing"
    number = "" if tokenizer.end_token_id is None else f" ({tokenizer.end_token_id})"
    rows = inspection.embedding_rows
    table = f"{rows:,} rows" if rows is not None else "a table that was not found"
    return [
        f"{end}; the gateway makes sure that {END_TOKEN}{number} ends every text, once",
        f"{tokenizer.vocabulary_size:,} tokens, for an embedding of {table}",
    ]


def _gateway_lines(spec: ModelSpec) -> list[str]:
    inputs = ", ".join(spec.inputs)
    if spec.past_inputs:
        inputs += f", and {len(spec.past_inputs)} empty past tensors"
    batches = "any batch" if spec.max_batch_size > 1 else "texts one by one"
    pooling = "pooled in the graph" if spec.pooling == "in_graph" else "pooled at the last token"
    return [
        f"feeds {inputs}",
        f"reads `{spec.output.name}` ({spec.output.dtype}), {pooling}, cut to `dimensions`, "
        "normalized",
        f"up to {spec.hidden_size} dimensions, {batches}, any length",
    ]


def _producer(model: OnnxModel) -> str:
    producer, version = model.proto.producer_name, model.proto.producer_version
    return f"{as_text(producer)} {as_text(version)}".strip()


def _interface(model: OnnxModel) -> str:
    names = [tensor.name for tensor in model.inputs]
    if len(names) > _MAX_LISTED:
        names = [*names[: _MAX_LISTED - 1], f"{len(names) - _MAX_LISTED + 1} more"]
    return f"{', '.join(names)} -> {', '.join(tensor.name for tensor in model.outputs)}"


def _tensor_document(tensor: TensorInfo) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype.name,
        "shape": tensor.shape,
        "dimensions": tensor.dimensions,
    }


def _hidden_size(output: TensorInfo | None) -> int | None:
    return output.shape[-1] if output and output.shape and output.shape[-1] > 0 else None


def _check_width(spec: ModelSpec, vocabulary_size: int | None) -> list[Finding]:
    try:
        check_width(spec, vocabulary_size or 0)
    except StartupError as error:
        return [failure("output", error.message)]
    return []


def _check_outputs(
    model: OnnxModel, output: TensorInfo | None, hidden_size: int | None
) -> list[Finding]:
    findings: list[Finding] = []
    if output and output.shape and len(output.shape) > POOLED_RANK:
        findings.append(
            note(
                "pooling",
                f"Not pooled: the state of every token of `{output.name}` crosses the wire, "
                "hundreds of times the bytes of the vectors.",
                "`qwen3-triton model pool` adds pooling to the graph; the vectors stay the same.",
            )
        )
    unused = [tensor.name for tensor in model.outputs if tensor != output]
    if unused:
        findings.append(
            note(
                "outputs",
                f"The gateway does not use {len(unused)} more outputs, such as `{unused[0]}`.",
                "Triton would copy every output in its configuration; `model repository` lists "
                "only the one that is used.",
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
