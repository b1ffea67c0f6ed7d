"""An inspection as aligned text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from qwen3_triton_gateway.tokenization import END_TOKEN

from ..onnx_file import TensorSignature, proto
from .inspection import Inspection

_LABEL_WIDTH = 12
_TEXT_WIDTH = 100
_MARKS = {"error": "ERROR", "warning": "warning", "note": "note"}
# More past inputs than this are shown by their number.
_SHOWN_TENSORS = 6


def render_inspection(inspection: Inspection) -> str:
    """Write what the file is, what the gateway does with it, and what is wrong."""
    lines = [str(inspection.path)]
    for label, values in _rows(inspection):
        for index, value in enumerate(values):
            lines.append(f"  {label if index == 0 else '':{_LABEL_WIDTH}} {value}")
    if inspection.findings:
        lines.append("")
    for finding in inspection.findings:
        body = " ".join(filter(None, [finding.message, finding.remedy]))
        lines += textwrap.wrap(
            body,
            width=_TEXT_WIDTH,
            initial_indent=f"  {_MARKS[finding.severity]:{_LABEL_WIDTH}} ",
            subsequent_indent=" " * (_LABEL_WIDTH + 3),
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join([*lines, "", _verdict(inspection)])


def format_bytes(count: int) -> str:
    """Write a number of bytes in the unit that suits it, by powers of 1000 as disks are sold."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _rows(inspection: Inspection) -> Iterator[tuple[str, list[str]]]:
    model = inspection.model
    opsets = ", ".join(f"{name or 'ai.onnx'} {v}" for name, v in model.opsets.items())
    yield (
        "file",
        [
            f"{format_bytes(model.size_bytes)}, IR version {model.ir_version}, opset {opsets}, "
            f"from {model.producer or 'an unnamed exporter'}"
        ],
    )
    yield "inputs", _tensors(model.signature.inputs)
    yield "outputs", _tensors(model.signature.outputs)
    yield "weights", _weights(inspection)
    yield "attention", [_attention(inspection)]
    yield "padding", [_padding(inspection)]
    yield "tokenizer", _tokenizer(inspection)
    yield "config.json", [_config(inspection)]
    if inspection.spec:
        yield "gateway", _plan(inspection)


def _tensors(tensors: tuple[TensorSignature, ...]) -> list[str]:
    if not tensors:
        return ["none"]
    shown = tensors if len(tensors) <= _SHOWN_TENSORS else tensors[: _SHOWN_TENSORS - 1]
    width = max(len(tensor.name) for tensor in shown)
    lines = [
        f"{tensor.name:{width}}  {proto.element_name(tensor.element_type):8}  "
        f"({', '.join(tensor.dimensions) if tensor.shape is not None else 'any shape'})"
        for tensor in shown
    ]
    if len(shown) < len(tensors):
        lines.append(f"and {len(tensors) - len(shown)} more, up to {tensors[-1].name}")
    return lines


def _weights(inspection: Inspection) -> list[str]:
    precision = inspection.precision
    types = ", ".join(f"{name} {format_bytes(n)}" for name, n in precision.bytes_by_type.items())
    lines = [f"{precision.parameters / 1e6:,.1f} million values: {types}"]
    if precision.quantization:
        lines.append(f"quantized: {precision.quantization}")
    if not inspection.external_files:
        lines.append("all inside the file")
    for file in inspection.external_files[:_SHOWN_TENSORS]:
        state = "missing" if file.size_bytes is None else format_bytes(file.size_bytes)
        whole = ", whole" if file.is_whole else ""
        link = ", a symbolic link" if file.is_symlink else ""
        lines.append(f"{file.location}: {state}{whole}{link}")
    if len(inspection.external_files) > _SHOWN_TENSORS:
        lines.append(f"and {len(inspection.external_files) - _SHOWN_TENSORS} more files")
    return lines


def _attention(inspection: Inspection) -> str:
    kind = "GroupQueryAttention" if inspection.grouped_attention else "plain operators"
    past = inspection.past_inputs
    return f"{kind}, {len(past)} past inputs" if past else f"{kind}, no past"


def _padding(inspection: Inspection) -> str:
    sources = {
        "input": "positions are an input",
        "mask": "positions are summed up from the mask",
        "counted": "positions are counted from 0",
    }
    return f"{inspection.padding} ({sources[inspection.positions]}); the gateway pads right"


def _tokenizer(inspection: Inspection) -> list[str]:
    tokenizer = inspection.tokenizer
    if tokenizer is None:
        return ["none"]
    end = f"appends {tokenizer.appends}" if tokenizer.appends else "appends nothing"
    number = "" if tokenizer.end_token_id is None else f" ({tokenizer.end_token_id})"
    rows = inspection.embedding_rows
    table = f"{rows:,} rows" if rows is not None else "a table that was not found"
    return [
        f"{end}; the gateway appends {END_TOKEN}{number}, once, whatever the file does",
        f"{tokenizer.vocabulary_size:,} tokens, for an embedding of {table}",
    ]


def _config(inspection: Inspection) -> str:
    config = inspection.config
    if not config:
        return "none"
    names = ("model_type", "hidden_size", "num_hidden_layers")
    return ", ".join(f"{name} {config[name]}" for name in names if name in config)


def _plan(inspection: Inspection) -> list[str]:
    spec = inspection.spec
    assert spec is not None
    feeds = ", ".join(spec.inputs)
    if spec.past_inputs:
        feeds += f", and {len(spec.past_inputs)} empty past tensors"
    pooling = "as pooled in the graph" if spec.pooling == "in_graph" else "pooled at the last token"
    return [
        f"feeds {feeds}",
        f"takes `{spec.output.name}` ({spec.output.dtype}), {pooling}, cut to `dimensions`, "
        "normalized",
        f"up to {spec.hidden_size} dimensions, any batch and length",
    ]


def _verdict(inspection: Inspection) -> str:
    if inspection.is_servable:
        return "The gateway can serve it."
    count = sum(finding.severity == "error" for finding in inspection.findings)
    return f"The gateway cannot serve it: {count} error{'s' if count > 1 else ''} above."
