"""What `model inspect` prints: an inspection as plain data, or as aligned lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from qwen3_triton_gateway.backends.base import ModelSpec
from qwen3_triton_gateway.tokenization import END_TOKEN

from ..onnx_model import OnnxModel, TensorInfo, as_text
from .files import format_bytes
from .inspection import MAX_LISTED, Inspection
from .reranker import Reranker, describe_form

_LABEL_WIDTH = 12


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
        "reranker": _reranker_document(inspection.reranker) if inspection.reranker else None,
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
    if inspection.reranker:
        yield "reranker", describe_form(inspection.reranker, inspection.tokenizer)
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
        yield "gateway", _gateway_lines(inspection.spec, inspection.reranker)
    if inspection.behavior:
        messages = [f.message for f in inspection.findings if f.name == "behavior"]
        yield "probe", messages


def _tensor_lines(tensors: tuple[TensorInfo, ...]) -> list[str]:
    if not tensors:
        return ["none"]
    listed = tensors if len(tensors) <= MAX_LISTED else tensors[: MAX_LISTED - 1]
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
    for file in inspection.external_files[:MAX_LISTED]:
        state = "missing" if file.size_bytes is None else format_bytes(file.size_bytes)
        whole = ", complete" if file.is_whole else ""
        link = ", a symbolic link" if file.is_symlink else ""
        lines.append(f"{file.location}: {state}{whole}{link}")
    if len(inspection.external_files) > MAX_LISTED:
        lines.append(f"and {len(inspection.external_files) - MAX_LISTED} more files")
    return lines


def _tokenizer_lines(inspection: Inspection) -> list[str]:
    tokenizer = inspection.tokenizer
    if tokenizer is None:
        return ["none"]
    end = f"appends {tokenizer.appends}" if tokenizer.appends else "appends nothing"
    number = "" if tokenizer.end_token_id is None else f" ({tokenizer.end_token_id})"
    rows = inspection.embedding_rows
    table = f"{rows:,} rows" if rows is not None else "a table that was not found"
    size = f"{tokenizer.vocabulary_size:,} tokens, for an embedding of {table}"
    if inspection.reranker:
        return [size]
    return [f"{end}; the gateway makes sure that {END_TOKEN}{number} ends every text, once", size]


def _gateway_lines(spec: ModelSpec, reranker: Reranker | None) -> list[str]:
    inputs = ", ".join(spec.inputs)
    if spec.past_inputs:
        inputs += f", and {len(spec.past_inputs)} empty past tensors"
    batches = "any batch" if spec.max_batch_size > 1 else "texts one by one"
    if reranker:
        where = "pooled in the graph" if reranker.is_pooled else "at the last token"
        return [
            f"feeds {inputs}",
            f"reads `{spec.output.name}` ({spec.output.dtype}), {where}, as the score of a pair",
            f"{batches}, any length",
        ]
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


def _reranker_document(reranker: Reranker) -> dict[str, Any]:
    return {"form": reranker.form, "pooled": reranker.is_pooled, "width": reranker.width}


def _tensor_document(tensor: TensorInfo) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype.name,
        "shape": tensor.shape,
        "dimensions": tensor.dimensions,
    }
