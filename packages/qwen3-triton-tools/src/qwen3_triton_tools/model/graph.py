"""Facts derived from a graph: interface, positions, padding, embedding table and precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import onnx
import orjson

from qwen3_triton_gateway.backends.base import ModelSpec, TensorSpec
from qwen3_triton_gateway.backends.interface import (
    HIDDEN_RANK,
    POOLED_RANK,
    describe_model,
    find_output,
)
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.model_files import describe_os_error, find_sibling

from ..findings import Finding, failure, note, warning
from ..onnx_model import OnnxModel, TensorInfo, integer_attributes

Positions: TypeAlias = Literal["input", "mask", "counted"]
Padding: TypeAlias = Literal["either side", "right only"]

# The name of findings about inputs and outputs.
INTERFACE = "interface"
_GROUPED_ATTENTION = "GroupQueryAttention"
# If the graph leaves the batch open, the limit is that of whatever runs it.
MAX_BATCH_SIZE = 32
# Operators that pass on token ids, a mask or a table of weights unchanged.
_PASS_THROUGH = {"Cast", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze", "DequantizeLinear"}
_LOOKUPS = {"Gather", "GatherBlockQuantized", "GatherElements"}
_DYNAMIC_INT8 = {
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulInteger",
    "DynamicQuantizeLSTM",
}
_INT8 = {"int8", "uint8"}
_INT8_LEVEL = 4
_WEIGHTS_ONLY = "weights only (DequantizeLinear)"
_FLOATS = ("float32", "float16", "bfloat16", "float64")
# hidden_size of Qwen3-Embedding-8B, the member of the family known to overflow float16.
_OVERFLOWING_HIDDEN_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Precision:
    """How the weights are stored and multiplied.

    Attributes:
        bytes_by_type: Stored bytes per element type.
        quantization: How the weights are quantized, in words; empty if they are not.
        compute: The floating-point type of most weights, or of the output if there are none.
        is_batch_dependent: Whether activations are quantized with one scale per batch.
        accuracy_level: The highest one of MatMulNBits: 4 multiplies in int8; 0 if not set.
    """

    weight_bytes: int
    parameters: int
    bytes_by_type: dict[str, int]
    quantization: str
    compute: str
    is_batch_dependent: bool
    accuracy_level: int = 0


def describe_interface(model: OnnxModel, outputs: Sequence[TensorSpec] | None = None) -> ModelSpec:
    """Describe the model as the gateway does when it starts, or as it would with other outputs.

    Raises:
        StartupError: The gateway would refuse it.
    """
    return describe_model(
        name=model.path.name,
        inputs=[_tensor_spec(tensor) for tensor in model.inputs],
        outputs=_output_specs(model) if outputs is None else outputs,
        max_batch_size=MAX_BATCH_SIZE,
        instance_count=1,
        weights_digest="",
    )


def check_interface(
    model: OnnxModel, output: TensorInfo | None
) -> tuple[ModelSpec | None, list[Finding]]:
    """Describe the model, and report what the gateway would refuse or could not batch.

    Args:
        model: The graph.
        output: The one to use, if that is not for the gateway to choose.
    """
    try:
        spec = describe_interface(model, None if output is None else [_tensor_spec(output)])
    except StartupError as error:
        output = output or choose_output(model)
        remedy = ""
        if output and output.dtype.name == "bfloat16":
            remedy = "numpy has no bfloat16; `qwen3-triton model pool` adds a float32 output."
        return None, [failure(INTERFACE, error.message, remedy)]
    if spec.max_batch_size > 1:
        return spec, []
    message = "The batch is fixed to 1, so the gateway sends texts one by one, which is slower."
    remedy = "Export the model again with dynamic axes, as optimum does by default."
    return spec, [warning(INTERFACE, message, remedy)]


def choose_output(model: OnnxModel) -> TensorInfo | None:
    """Choose the output that the gateway would ask for, whatever its type and shape."""
    by_name = {tensor.name: tensor for tensor in model.outputs}
    chosen = find_output(_output_specs(model))
    return by_name[chosen.name] if chosen else None


def read_config(model_path: Path) -> dict[str, Any]:
    """Read the `config.json` of an export; empty if there is none or it cannot be parsed."""
    return load_config(model_path)[0]


def load_config(model_path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Read the `config.json` of an export, and report one that cannot be read.

    The gateway does not need it, so that is only a warning.
    """
    file = find_sibling(model_path, "config.json")
    if file is None:
        return {}, []
    try:
        document: object = orjson.loads(file.read_bytes())
    except OSError as error:
        return {}, [warning("config.json", describe_os_error(error, file))]
    except orjson.JSONDecodeError as error:
        return {}, [warning("config.json", f"{file} is not JSON ({error}). Fetch it again.")]
    return (cast("dict[str, Any]", document) if isinstance(document, dict) else {}), []


def check_config(
    model: OnnxModel, config: dict[str, Any], hidden_size: int | None, rows: int | None
) -> list[Finding]:
    """Report where `config.json` contradicts the graph."""
    compared = (
        ("hidden_size", hidden_size),
        ("vocab_size", rows),
        ("num_hidden_layers", len(model.past_inputs) // 2 or None),
    )
    return [
        warning(
            "config.json",
            f"config.json says {name} {config[name]}, the graph says {found}.",
            "They belong to different models, or the file was edited; the gateway goes by the "
            "graph.",
        )
        for name, found in compared
        if found is not None and isinstance(config.get(name), int) and config[name] != found
    ]


def uses_grouped_attention(model: OnnxModel) -> bool:
    """Return whether attention is one fused GroupQueryAttention, as GenAI's builder exports it."""
    return model.operators[_GROUPED_ATTENTION] > 0


def position_source(model: OnnxModel) -> Positions:
    """Return where positions come from: an input, the running sum of the mask, or counting."""
    if any(tensor.name == "position_ids" for tensor in model.inputs):
        return "input"
    masks = _aliases(model, "attention_mask")
    summed = any(
        node.op_type == "CumSum" and node.input and node.input[0] in masks for node in model.nodes
    )
    return "mask" if summed else "counted"


def tolerated_padding(model: OnnxModel) -> Padding:
    """Return which side may be padded; the right always may, in a causal model.

    Left padding needs positions that start at the first real token. GroupQueryAttention takes the
    mask's sum for the length of a text, and so treats pads on the left as text
    (https://github.com/microsoft/onnxruntime/issues/18283).
    """
    if uses_grouped_attention(model) or position_source(model) == "counted":
        return "right only"
    return "either side"


def embedding_rows(model: OnnxModel) -> int | None:
    """Return the number of rows of the table that `input_ids` index, None if it is not found."""
    shape = embedding_shape(model)
    return shape[0] if shape else None


def embedding_shape(model: OnnxModel) -> tuple[int, ...] | None:
    """Return the shape of the table that `input_ids` index, None if it is not found."""
    tokens = _aliases(model, "input_ids")
    shapes = {weight.name: weight.shape for weight in model.weights if weight.shape}
    producers = {output: node for node in model.nodes for output in node.output}
    for node in model.nodes:
        if node.op_type in _LOOKUPS and len(node.input) > 1 and node.input[1] in tokens:
            table = _origin(node.input[0], producers)
            if table in shapes:
                return shapes[table]
    return None


def read_precision(model: OnnxModel, output_type: str) -> Precision:
    """Derive the precision from the stored tensors and the operators that use them."""
    by_type: Counter[str] = Counter()
    for weight in model.weights:
        by_type[weight.dtype.name] += weight.size_bytes
    floats = {name: by_type[name] for name in _FLOATS if by_type[name]}
    return Precision(
        weight_bytes=by_type.total(),
        parameters=_count_parameters(model),
        bytes_by_type=dict(by_type.most_common()),
        quantization=_quantization(model, by_type),
        compute=max(floats, key=lambda name: floats[name]) if floats else output_type,
        is_batch_dependent=bool(model.operators.keys() & _DYNAMIC_INT8),
        accuracy_level=max(accuracy_levels(model), default=0),
    )


def check_precision(precision: Precision, hidden_size: int | None) -> list[Finding]:
    """Report what the family is known to lose by its precision."""
    name = "precision"
    findings: list[Finding] = []
    if precision.is_batch_dependent:
        findings.append(
            warning(
                name,
                "Activations are quantized to int8 at run time with one scale per batch, so a "
                "text's vector depends on what shares its batch (microsoft/onnxruntime#8625).",
                "Use a float16 or float32 export, or one with MatMulNBits weights.",
            )
        )
    if precision.accuracy_level == _INT8_LEVEL:
        findings.append(
            warning(
                name,
                "MatMulNBits with accuracy_level 4 quantizes activations to int8 on a CPU, which "
                "is inexact for Qwen3 (microsoft/onnxruntime#29849).",
                "Set accuracy_level 0 when quantizing; it is slower on a CPU.",
            )
        )
    if precision.quantization == _WEIGHTS_ONLY:
        findings.append(
            warning(
                name,
                "Triton's ONNX Runtime backend quantizes activations to int8 on a CPU wherever "
                "weights are behind a DequantizeLinear, which is inexact for Qwen3 "
                "(microsoft/onnxruntime#29849). The gateway's process and the local Triton do not.",
                "There, use an export with MatMulNBits weights and accuracy_level 0, or what "
                "`model quantize` writes.",
            )
        )
    if precision.compute == "float16" and hidden_size == _OVERFLOWING_HIDDEN_SIZE:
        findings.append(
            warning(
                name,
                "Qwen3-Embedding-8B overflows float16 on some texts, such as those that begin "
                "with 'importance' (QwenLM/Qwen3-Embedding#164).",
                "The gateway refuses such vectors. Use a float32 or bfloat16 export, or the 4B "
                "model.",
            )
        )
    elif precision.compute == "float16":
        findings.append(
            note(
                name,
                "The model computes in float16: on a GPU, ONNX Runtime before 1.27 (Triton before "
                "26.07) can zero rows without strict layer norms.",
                "`model repository` switches them on; by hand, set "
                "enable_skip_layer_norm_strict_mode.",
            )
        )
    return findings


def _output_specs(model: OnnxModel) -> list[TensorSpec]:
    """Describe the outputs; config.json supplies a hidden size that all of them leave open.

    Where a runtime serves the file, its shape inference supplies it.
    """
    specs = [_tensor_spec(tensor) for tensor in model.outputs]
    size = read_config(model.path).get("hidden_size")
    if any(len(spec.shape) == HIDDEN_RANK and spec.shape[-1] > 0 for spec in specs):
        return specs
    if not isinstance(size, int):
        return specs
    return [
        replace(spec, shape=(*spec.shape[:-1], size))
        if len(spec.shape) in (POOLED_RANK, HIDDEN_RANK) and spec.shape[-1] <= 0
        else spec
        for spec in specs
    ]


def _tensor_spec(tensor: TensorInfo) -> TensorSpec:
    try:
        dtype: np.dtype[Any] = np.dtype(tensor.dtype.name)
    except TypeError:  # bfloat16 and others that numpy does not have
        dtype = np.dtype(object)
    return TensorSpec(tensor.name, dtype, tensor.shape or ())


def _aliases(model: OnnxModel, name: str) -> set[str]:
    """Return the tensors with the same values as `name`; nodes are in topological order."""
    names = {name}
    for node in model.nodes:
        if node.op_type in _PASS_THROUGH and node.input and node.input[0] in names:
            names.update(node.output)
    return names


def _origin(name: str, producers: dict[str, onnx.NodeProto]) -> str:
    """Follow a table back through casts to the stored tensor."""
    while (node := producers.get(name)) and node.op_type in _PASS_THROUGH and node.input:
        name = node.input[0]
    return name


def _count_parameters(model: OnnxModel) -> int:
    """Count the values of all weights; where several share a byte, each of them counts."""
    bits: dict[str, int] = {}
    scales_and_zero_points: set[str] = set()
    for node in model.nodes:
        if node.op_type == "MatMulNBits":
            bits[node.input[1]] = integer_attributes(node).get("bits", 4)
            scales_and_zero_points.update(node.input[2:])
    return sum(
        weight.size_bytes * 8 // bits[weight.name] if weight.name in bits else prod(weight.shape)
        for weight in model.weights
        if weight.name not in scales_and_zero_points
    )


def accuracy_levels(model: OnnxModel) -> list[int]:
    """Return the `accuracy_level` of its MatMulNBits nodes, 0 where they leave it to the runtime.

    https://github.com/microsoft/onnxruntime/blob/v1.23.0/docs/ContribOperators.md
    """
    nodes = (integer_attributes(node) for node in model.nodes if node.op_type == "MatMulNBits")
    return sorted({integers.get("accuracy_level", 0) for integers in nodes})


def _quantization(model: OnnxModel, bytes_by_type: Counter[str]) -> str:
    kinds: list[str] = []
    packed = [integer_attributes(node) for node in model.nodes if node.op_type == "MatMulNBits"]
    if packed:
        widths = sorted({integers.get("bits", 4) for integers in packed})
        blocks = sorted({integers.get("block_size", 0) for integers in packed})
        kinds.append(
            f"weights of {_join(widths)} bits in blocks of {_join(blocks)} (MatMulNBits, "
            f"{len(packed)} matrices, accuracy_level {_join(accuracy_levels(model))})"
        )
    operators = model.operators
    if operators["GatherBlockQuantized"]:
        kinds.append("embedding table in blocks (GatherBlockQuantized)")
    if operators.keys() & _DYNAMIC_INT8:
        kinds.append(
            "int8 weights and activations, scales taken at run time (DynamicQuantizeLinear)"
        )
    elif operators["QuantizeLinear"] and operators["DequantizeLinear"]:
        kinds.append("int8 weights and activations, scales in the file (QDQ)")
    elif operators["DequantizeLinear"]:
        kinds.append(_WEIGHTS_ONLY)
    if not kinds and _INT8 & bytes_by_type.keys():
        kinds.append("int8 weights, widened by plain operators")
    return "; ".join(kinds)


def _join(values: list[int]) -> str:
    return " and ".join(map(str, values))
