"""Which engine runs a model on this machine's CPU, and the precision in which it computes.

bfloat16 is the precision in which the family was trained, and twice as fast where the processor
multiplies in it; elsewhere it would be emulated. int8 activations lose more, on some models much
more, so they are never chosen here, only allowed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..errors import StartupError
from ..model_files import ModelFileError
from ..onnx_file import external_locations
from ..settings import Engine, Precision, WantedPrecision

CPU_INFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "AMD64")
# What the matrix kernels of oneDNN need, by the names of /proc/cpuinfo.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "bfloat16": ("avx512_bf16", "amx_bf16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8"),
}
# The values of ONEDNN_MAX_CPU_ISA that forbid them
# (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html).
_OLD = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}
MASKS = {
    "bfloat16": _OLD | {"AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE_VNNI"},
    "int8": _OLD,
}

# Options of the CPU plugin (https://docs.openvino.ai, "CPU device"). A group of 0 keeps activations
# as they are where weights are stored as int8; the plugin's default would round them.
OPENVINO_OPTIONS: dict[Precision, dict[str, Any]] = {
    "float32": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    # Each token has scales of its own, one for 128 values: vectors do not depend on the batch.
    "int8": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128},
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides here.

    Attributes:
        architecture: As `platform.machine` tells it.
        instructions: The processor's, by the names of /proc/cpuinfo.
        max_isa: The value of ONEDNN_MAX_CPU_ISA.
        has_openvino: Whether the package is installed.
    """

    architecture: str
    instructions: frozenset[str]
    max_isa: str
    has_openvino: bool

    @classmethod
    def this(cls) -> Machine:
        """Detect what this machine has."""
        return cls(
            architecture=platform.machine(),
            instructions=_read_instructions(),
            max_isa=os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(),
            has_openvino=find_spec("openvino") is not None,
        )

    def why_not(self, precision: Literal["bfloat16", "int8"]) -> str:
        """Return why this processor does not compute in a precision; empty if it does."""
        wanted = INSTRUCTIONS[precision]
        if not self.instructions.intersection(wanted):
            return f"this processor has none of {', '.join(wanted)}"
        if self.max_isa in MASKS[precision]:
            return f"ONEDNN_MAX_CPU_ISA is {self.max_isa}"
        return ""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine, its precision (`graph`: whatever the graph states), and why."""

    engine: Literal["onnxruntime", "openvino"]
    precision: Precision
    reason: str

    def describe(self, model: str) -> str:
        """Describe in a sentence what runs a model, for the log."""
        if self.engine == "onnxruntime":
            return f"ONNX Runtime runs {model}: {self.reason}."
        return f"OpenVINO runs {model} in {self.precision}: {self.reason}."


def choose_engine(
    engine: Engine,
    precision: WantedPrecision,
    machine: Machine | None = None,
    *,
    model_paths: Sequence[Path] = (),
) -> EngineChoice:
    """Decide what `auto` means here, and check what was asked for.

    Args:
        engine: EMBED_ENGINE.
        precision: EMBED_PRECISION.
        machine: What decides here, by default this machine.
        model_paths: The ONNX files: `auto` depends on where their weights are.

    Raises:
        StartupError: This machine or that engine cannot do it.
    """
    machine = machine or Machine.this()
    is_native = precision in ("auto", "float32")
    if engine == "onnxruntime":
        if is_native:
            return EngineChoice("onnxruntime", "graph", "EMBED_ENGINE says so")
        msg = (
            f"EMBED_PRECISION is {precision!r}, but ONNX Runtime computes in what the graph "
            "states. Set EMBED_ENGINE to openvino, or EMBED_PRECISION to auto."
        )
        raise StartupError(msg)
    if engine == "auto" and is_native:
        if not machine.has_openvino:
            return EngineChoice("onnxruntime", "graph", "OpenVINO is not installed")
        if machine.architecture not in X86:
            reason = f"OpenVINO gains little on {machine.architecture or 'this architecture'}"
            return EngineChoice("onnxruntime", "graph", reason)
        for path in filter(is_linked_as_in_a_cache, model_paths):
            reason = (
                "OpenVINO is faster, but does not read weights through a link out of the model's "
                f"folder, as in the cache of a model hub: copy {path.parent} with `cp -rL`"
            )
            return EngineChoice("onnxruntime", "graph", reason)
    if not machine.has_openvino:
        asked = "EMBED_ENGINE" if engine == "openvino" else "EMBED_PRECISION"
        value = engine if engine == "openvino" else precision
        msg = (
            f"{asked} is {value!r}, which needs OpenVINO. Install it with "
            '`pip install "qwen3-triton-gateway[openvino]"`, or set both to auto.'
        )
        raise StartupError(msg)
    return _with_precision(precision, machine)


def is_linked_as_in_a_cache(model_path: Path) -> bool:
    """Return whether the model's file and its weights are links to files in another folder.

    OpenVINO refuses weights outside the folder of the link (checked on 2026.4.1). ONNX Runtime
    reads them if they are where the model's file is, too (1.32).
    """
    linked, target = linked_weights(model_path), model_path.resolve().parent
    return bool(linked) and all(path.is_relative_to(target) for path in linked)


def linked_weights(model_path: Path) -> list[Path]:
    """List a model's files of weights that are links out of its folder, by where they lead."""
    try:
        locations = external_locations(model_path)
    except ModelFileError:  # reported where the model is loaded
        return []
    folder = model_path.parent.resolve()
    weights = [(model_path.parent / name).resolve() for name in locations]
    return [path for path in weights if not path.is_relative_to(folder)]


def openvino_options(precision: Precision) -> dict[str, Any]:
    """Return OpenVINO's options for what `choose_engine` chose."""
    options = OPENVINO_OPTIONS[precision]
    if precision == "int8" and not Machine.this().why_not("bfloat16"):
        options = options | {"INFERENCE_PRECISION_HINT": "bf16"}  # what is not a product of int8
    return options


def _with_precision(precision: WantedPrecision, machine: Machine) -> EngineChoice:
    if precision == "auto":
        obstacle = machine.why_not("bfloat16")
        if obstacle:
            return EngineChoice("openvino", "float32", f"not in bfloat16, because {obstacle}")
        names = machine.instructions.intersection(INSTRUCTIONS["bfloat16"])
        return EngineChoice("openvino", "bfloat16", f"this processor has {min(names)}")
    if precision != "float32" and (obstacle := machine.why_not(precision)):
        msg = (
            f"EMBED_PRECISION is {precision!r}, but {obstacle}, so it would not be computed in it. "
            "Set EMBED_PRECISION to auto or float32."
        )
        raise StartupError(msg)
    return EngineChoice("openvino", precision, f"EMBED_PRECISION is {precision}")


def _read_instructions() -> frozenset[str]:
    """Read the processor's instructions; none where the system does not list them."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
