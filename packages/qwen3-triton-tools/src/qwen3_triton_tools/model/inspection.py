"""What an ONNX export is, and what the gateway would do with it, without loading its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen3_triton_gateway.backends.base import POOLED_RANK, ModelSpec

from ..onnx_file import OnnxModel, TensorSignature, proto, read_model
from .errors import ModelToolError
from .external_data import ExternalFile, check_external_files, list_external_files
from .findings import Finding, has_errors
from .graph_facts import (
    Padding,
    Positions,
    embedding_rows,
    position_source,
    tolerated_padding,
    uses_grouped_attention,
)
from .interface import check_config, check_interface, choose_output, read_config
from .locate import find_beside
from .precision import Precision, check_precision, read_precision
from .tokenizer_file import TokenizerFile, check_tokenizer_file, read_tokenizer_file

# The default of EMBED_OUTPUT_DIM: a model with a smaller hidden size needs it set.
_DEFAULT_DIMENSIONS = 1024


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that `qwen3-triton model inspect` says; `spec` is None where it is refused."""

    path: Path
    model: OnnxModel
    spec: ModelSpec | None
    output: TensorSignature | None
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

    @property
    def is_servable(self) -> bool:
        return not has_errors(self.findings)

    @property
    def is_pooled(self) -> bool:
        shape = self.output.shape if self.output else None
        return shape is not None and len(shape) == POOLED_RANK

    @property
    def past_inputs(self) -> list[TensorSignature]:
        return [t for t in self.model.signature.inputs if t.name.startswith("past_key_values.")]


def inspect_model(path: Path) -> Inspection:
    """Read an ONNX file's structure, the sizes of its data files, its tokenizer and its config.

    Raises:
        OnnxFileError: the file is no ONNX model.
    """
    model = read_model(path)
    spec, findings = check_interface(model)
    output = choose_output(model)
    config = read_config(path)
    hidden_size = spec.hidden_size if spec else _hidden_size(output)
    rows = embedding_rows(model)
    files = list_external_files(model)
    precision = read_precision(model, proto.element_name(output.element_type) if output else "")
    tokenizer, about_tokenizer = _inspect_tokenizer(path, rows)
    findings += check_external_files(model, files)
    findings += about_tokenizer
    findings += check_config(model, config, hidden_size, rows)
    findings += check_precision(precision, hidden_size)
    findings += _check_outputs(model, output, hidden_size)
    order = ("error", "warning", "note")
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
        findings=sorted(findings, key=lambda finding: order.index(finding.severity)),
    )


def as_document(inspection: Inspection) -> dict[str, Any]:
    """Give the inspection as plain data for `--json`."""
    model = inspection.model
    return {
        "path": str(inspection.path),
        "servable": inspection.is_servable,
        "size_bytes": model.size_bytes,
        "ir_version": model.ir_version,
        "opset": model.opset,
        "opsets": model.opsets,
        "producer": model.producer,
        "inputs": [_tensor_document(tensor) for tensor in model.signature.inputs],
        "outputs": [_tensor_document(tensor) for tensor in model.signature.outputs],
        "output": inspection.output.name if inspection.output else None,
        "hidden_size": inspection.hidden_size,
        "pooled": inspection.is_pooled,
        "past_key_values": len(inspection.past_inputs),
        "grouped_query_attention": inspection.grouped_attention,
        "positions": inspection.positions,
        "padding": inspection.padding,
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
        "findings": [asdict(finding) for finding in inspection.findings],
    }


def _tensor_document(tensor: TensorSignature) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": proto.element_name(tensor.element_type),
        "shape": tensor.shape,
        "dimensions": tensor.dimensions,
    }


def _hidden_size(output: TensorSignature | None) -> int | None:
    return output.shape[-1] if output and output.shape and output.shape[-1] > 0 else None


def _inspect_tokenizer(
    model_path: Path, rows: int | None
) -> tuple[TokenizerFile | None, list[Finding]]:
    file = find_beside(model_path, "tokenizer.json")
    if file is None:
        message = "There is no tokenizer.json beside the model."
        remedy = "Fetch the model's own, or point TOKENIZER_PATH to it."
        return None, [Finding("warning", message, remedy)]
    try:
        tokenizer = read_tokenizer_file(file)
    except ModelToolError as error:
        return None, [Finding("error", str(error))]
    return tokenizer, check_tokenizer_file(tokenizer, rows)


def _check_outputs(
    model: OnnxModel, output: TensorSignature | None, hidden_size: int | None
) -> list[Finding]:
    findings: list[Finding] = []
    if output and output.shape and len(output.shape) > POOLED_RANK:
        findings.append(
            Finding(
                "note",
                f"Not pooled: every token's state of `{output.name}` crosses the wire, hundreds of "
                "times the bytes of the vectors.",
                "`qwen3-triton model pool` appends pooling; vectors stay the same.",
            )
        )
    unused = [tensor.name for tensor in model.signature.outputs if tensor != output]
    if unused:
        findings.append(
            Finding(
                "note",
                f"{len(unused)} more outputs that the gateway does not ask for, such as "
                f"`{unused[0]}`.",
                "Triton would copy those that its configuration lists; `model repository` lists "
                "one.",
            )
        )
    if hidden_size is not None and hidden_size < _DEFAULT_DIMENSIONS:
        findings.append(
            Finding(
                "warning",
                f"Vectors have {hidden_size} dimensions at most, fewer than the default of 1024.",
                f"Serve it with EMBED_OUTPUT_DIM={hidden_size} or less.",
            )
        )
    return findings
