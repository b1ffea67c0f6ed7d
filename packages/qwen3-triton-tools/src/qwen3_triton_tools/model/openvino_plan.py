"""How Triton's OpenVINO backend runs a model on this machine's processor.

Its parameters are few: it asks for bfloat16 or leaves the precision to OpenVINO, which then takes
bfloat16 where the processor has it, and rounds activations wherever weights are int8
(https://github.com/triton-inference-server/openvino_backend, `ParseParameters`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwen3_triton_gateway.backends.engines import Machine, choose_engine
from qwen3_triton_gateway.container import usable_cores
from qwen3_triton_gateway.settings import Precision, WantedPrecision

from ..errors import ModelError


@dataclass(frozen=True, slots=True)
class OpenVinoPlan:
    """The settings of the backend.

    Attributes:
        precision: What the model is computed in, as the gateway is told.
        is_bfloat16: Whether to ask for bfloat16, which int8 uses for the rest of the graph.
        threads: Threads of all streams.
        streams: Batches that run at the same time.
        reason: Why this precision.
    """

    precision: Precision
    is_bfloat16: bool
    threads: int
    streams: int
    reason: str


def plan_openvino(
    wanted: WantedPrecision,
    *,
    is_quantized: bool,
    threads: int = 0,
    instances: int = 1,
    machine: Machine | None = None,
) -> OpenVinoPlan:
    """Choose the settings for a model on this machine.

    Args:
        wanted: The precision that was asked for.
        is_quantized: Whether its weights are: then activations are rounded, too.
        threads: 0 for every core.
        instances: Batches that run at the same time, on one copy of the weights.
        machine: Another machine than this one.

    Raises:
        ModelError: The backend cannot be made to compute in this precision.
        StartupError: The processor does not compute in it.
    """
    # The engine is in Triton's image; it does not have to be installed here.
    machine = replace(machine or Machine.this(), has_openvino=True)
    choice = choose_engine("openvino", wanted, machine)
    if is_quantized != (choice.precision == "int8"):
        raise ModelError(_QUANTIZED if is_quantized else _NOT_QUANTIZED)
    has_bfloat16 = not machine.why_not("bfloat16")
    if choice.precision == "float32" and has_bfloat16:
        raise ModelError(_ALWAYS_BFLOAT16)
    return OpenVinoPlan(
        precision=choice.precision,
        is_bfloat16=has_bfloat16,
        threads=threads or usable_cores(),
        streams=instances,
        reason=choice.reason,
    )


_QUANTIZED = (
    "The weights are quantized. Triton's OpenVINO backend then rounds activations to int8 too, and "
    "has no parameter against it. Pass `--precision int8` if `qwen3-triton model quantize` calls "
    "that safe, or `--gpu cpu` for the ONNX Runtime backend."
)
_NOT_QUANTIZED = (
    "`--precision int8` needs weights in int8. Pass the folder that `qwen3-triton model quantize` "
    "writes, or `--precision auto`."
)
_ALWAYS_BFLOAT16 = (
    "On this processor, Triton's OpenVINO backend computes in bfloat16, and has no parameter "
    "against it. Pass `--precision auto`, or `--gpu cpu` for float32 on the ONNX Runtime backend."
)
