"""In which numbers a model keeps its weights and computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

from ..onnx_file import OnnxModel, proto
from .findings import Finding

_DYNAMIC_INT8 = {
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulInteger",
    "DynamicQuantizeLSTM",
}
_INT8 = {"int8", "uint8"}
_FLOATS = ("float32", "float16", "bfloat16", "float64")
# hidden_size of Qwen3-Embedding-8B, the member of the family known to overflow float16.
_OVERFLOWING_HIDDEN_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Precision:
    """How the weights are stored and multiplied.

    `quantization` says how in words, or is empty; `compute` is the floating-point type of most
    weights or, where none is, of the output; `bytes_by_type` counts stored bytes.
    """

    weight_bytes: int
    parameters: int
    bytes_by_type: dict[str, int]
    quantization: str
    compute: str
    is_batch_dependent: bool


def read_precision(model: OnnxModel, output_type: str) -> Precision:
    """Learn it from the stored tensors and the operators that use them."""
    by_type: Counter[str] = Counter()
    for weight in model.weights:
        by_type[proto.element_name(weight.element_type)] += weight.size_bytes
    floats = {name: by_type[name] for name in _FLOATS if by_type[name]}
    stored_float = max(floats, key=lambda name: floats[name]) if floats else output_type
    operators = model.operators
    return Precision(
        weight_bytes=by_type.total(),
        parameters=_count_parameters(model),
        bytes_by_type=dict(by_type.most_common()),
        quantization=_quantization(model, operators),
        compute=stored_float,
        is_batch_dependent=bool(operators.keys() & _DYNAMIC_INT8),
    )


def check_precision(precision: Precision, hidden_size: int | None) -> list[Finding]:
    """Report what the family is known to lose by its precision."""
    findings: list[Finding] = []
    if precision.is_batch_dependent:
        findings.append(
            Finding(
                "warning",
                "Activations are quantized to int8 on the fly, with one scale for a whole batch: "
                "a text's vector depends on what shares its batch (microsoft/onnxruntime#8625).",
                "Take a float16 or float32 export, or one with MatMulNBits weights.",
            )
        )
    if precision.compute == "float16":
        if hidden_size == _OVERFLOWING_HIDDEN_SIZE:
            findings.append(
                Finding(
                    "warning",
                    "Qwen3-Embedding-8B overflows float16 for some texts, such as those that begin "
                    "with 'importance' (QwenLM/Qwen3-Embedding#164).",
                    "The gateway refuses such vectors; take a float32 or bfloat16 export, or 4B.",
                )
            )
        else:
            findings.append(
                Finding(
                    "note",
                    "Computes in float16: ONNX Runtime before 1.27 (Triton before 26.07) can zero "
                    "rows on a GPU without strict layer norms.",
                    "`model repository` switches them on; by hand it is "
                    "enable_skip_layer_norm_strict_mode.",
                )
            )
    return findings


def _count_parameters(model: OnnxModel) -> int:
    """Count the values of matrices and vectors, those packed several to a byte one by one."""
    bits: dict[str, int] = {}
    beside: set[str] = set()
    for node in model.nodes:
        if node.op_type == "MatMulNBits":
            bits[node.inputs[1]] = node.integers.get("bits", 4)
            beside.update(node.inputs[2:])  # scales and zero points
    return sum(
        weight.size_bytes * 8 // bits[weight.name] if weight.name in bits else prod(weight.shape)
        for weight in model.weights
        if weight.name not in beside
    )


def _quantization(model: OnnxModel, operators: Counter[str]) -> str:
    ways: list[str] = []
    packed = [node.integers for node in model.nodes if node.op_type == "MatMulNBits"]
    if packed:
        widths = sorted({integers.get("bits", 4) for integers in packed})
        blocks = sorted({integers.get("block_size", 0) for integers in packed})
        ways.append(
            f"weights of {_join(widths)} bits in blocks of {_join(blocks)} (MatMulNBits, "
            f"{len(packed)} matrices)"
        )
    if operators["GatherBlockQuantized"]:
        ways.append("embedding table in blocks (GatherBlockQuantized)")
    if operators.keys() & _DYNAMIC_INT8:
        ways.append("int8, activations too, with scales taken at run time (DynamicQuantizeLinear)")
    elif operators["QuantizeLinear"] and operators["DequantizeLinear"]:
        ways.append("int8, activations too, with scales in the file (QDQ)")
    elif operators["DequantizeLinear"]:
        ways.append("weights only (DequantizeLinear)")
    if not ways and any(proto.element_name(w.element_type) in _INT8 for w in model.weights):
        ways.append("weights kept as int8 and widened by plain operators")
    return "; ".join(ways)


def _join(values: list[int]) -> str:
    return " and ".join(map(str, values))
