"""OpenVINO in the gateway's own process: the same ONNX file, in a precision that is set."""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import StartupError
from ..memory import trim_heap
from ..settings import Precision
from .base import AnyArray, Feed, TensorSpec, find_output
from .engines import Machine
from .in_process import InProcessBackend, is_open

DTYPES = {
    "i64": np.int64,
    "i32": np.int32,
    "f32": np.float32,
    "f16": np.float16,
    "f64": np.float64,
    "boolean": np.bool_,
}
# Of the CPU plugin (https://docs.openvino.ai, "CPU device"). A group of 0 keeps activations as they
# are where weights are stored as int8; the plugin's default would round them.
OPTIONS: dict[Precision, dict[str, Any]] = {
    "float32": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    # Each token has scales of its own, one for 128 values: vectors do not depend on the batch.
    "int8": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128},
}
# The plugin keeps what it compiles for each shape, by default 5,000 parts: 80 MiB more after all
# shapes of up to 512 tokens. Compiling again costs a tenth of a small model's time, if at all.
# Not a documented property; checked with 2026.4.1, and a version that lacks it refuses it by name.
KEPT_SHAPES = {"CPU_RUNTIME_CACHE_CAPACITY": "200"}
INT8_TYPES = ("i8", "u8")
# Larger than tables of shapes and axes, smaller than any matrix.
MIN_MATRIX_VALUES = 4096


class OpenVinoBackend(InProcessBackend):
    """A model run by OpenVINO."""

    name = "openvino"
    title = "OpenVINO"
    _request: Any = None  # an InferRequest

    def __init__(
        self,
        model_dir: Path,
        *,
        precision: Precision = "float32",
        threads: int = 0,
        cache_dir: Path | None = None,
    ) -> None:
        """Prepare to load.

        Args:
            model_dir: A folder with the ONNX file, or the file.
            precision: What it computes in; `int8` needs weights in int8.
            threads: 0 for every core.
            cache_dir: Where the compiled model is kept for the next start.
        """
        super().__init__(model_dir, threads=threads)
        self.precision = precision
        self._cache_dir = cache_dir
        self._has_run = False
        self._vocabulary_size: int | None = None

    @property
    def _is_open(self) -> bool:
        return self._request is not None

    def _open(self, path: Path, digest: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
        openvino = import_openvino()
        try:
            core = openvino.Core()
            model = core.read_model(path)
        except Exception as error:
            raise StartupError(f"OpenVINO cannot load {path}: {error}") from error
        inputs = [_tensor_spec(port) for port in model.inputs]
        outputs = [_tensor_spec(port) for port in model.outputs]
        self._vocabulary_size = _vocabulary_size(model)
        if self.precision == "int8" and not _has_int8_weights(model):
            msg = (
                f"EMBED_PRECISION is 'int8', but the weights of {path} are not int8. Serve the "
                "folder that `qwen3-triton model quantize` writes, or set EMBED_PRECISION to auto."
            )
            raise StartupError(msg)
        wanted = find_output(outputs)
        if wanted is not None and not is_open(wanted):
            # Without the other outputs, such as the keys and values of each layer.
            result = model.output(wanted.name).get_node()
            model = openvino.Model([result], model.get_parameters(), "model")
        options = OPTIONS[self.precision] | KEPT_SHAPES | self._placement()
        if self.precision == "int8" and not Machine.this().why_not("bfloat16"):
            options["INFERENCE_PRECISION_HINT"] = "bf16"  # what is not a product of int8
        if self._cache_dir is not None:
            # By digest: OpenVINO would take a file of the same name and time for the same model.
            options["CACHE_DIR"] = str(self._cache_dir / digest[:16])
        try:
            compiled = core.compile_model(model, "CPU", options)
            if self._cache_dir is not None and not compiled.get_property("LOADED_FROM_CACHE"):
                # From now on its weights are pages of the file, which can be forgotten.
                compiled = core.compile_model(model, "CPU", options)
            self._request = compiled.create_infer_request()
        except Exception as error:
            raise StartupError(f"OpenVINO cannot compile {path}: {error}") from error
        return inputs, outputs

    def _evaluate(self, names: Sequence[str], feed: Feed) -> list[AnyArray]:
        self._check_ids(feed["input_ids"])
        self._request.infer(feed, share_inputs=True, share_outputs=True)
        if not self._has_run:
            self._has_run = True
            self._return_memory()
        # The next run writes to the same memory.
        return [np.array(self._request.get_tensor(name).data) for name in names]

    def _return_memory(self) -> None:
        """Return what loading took, once the first run has copied the weights for its products."""
        if self._cache_dir is not None:
            forget_mapped_files(self._cache_dir)
        trim_heap()

    def _release(self) -> None:
        self._request = None

    def _placement(self) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._threads or _core_count(),
            # Pinned threads of two processes would share one core and leave another idle.
            "ENABLE_CPU_PINNING": False,
        }

    def _check_ids(self, input_ids: AnyArray) -> None:
        """Refuse what ONNX Runtime refuses: OpenVINO reads zeros for a token that it lacks."""
        limit = self._vocabulary_size
        if limit is None:
            return
        for token in (input_ids.min(), input_ids.max()):
            if not -limit <= token < limit:
                raise ValueError(f"token ID {token} is outside of its {limit} tokens")


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    Raises:
        StartupError: It is not installed.
    """
    if "openvino" not in sys.modules:
        # `import openvino` sends an event, unless this package is missing.
        cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        msg = (
            "EMBED_ENGINE is 'openvino', which is not installed or does not run here "
            f'({error}). Install it with `pip install "qwen3-triton-gateway[openvino]"`.'
        )
        raise StartupError(msg) from error


def forget_mapped_files(folder: Path) -> None:
    """Drop this process's pages of the files that it has mapped from a folder, on Linux.

    Pages that are needed again are read again.
    """
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    prefix = f"{folder.resolve()}{os.sep}"
    for line in maps.read_text().splitlines():
        addresses, permissions, *_, path = line.split(maxsplit=5)
        # In shared mappings nothing can be lost.
        if path.startswith(prefix) and permissions.endswith("s"):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            madvise(start, stop - start, mmap.MADV_DONTNEED)


def _core_count() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _tensor_spec(port: Any) -> TensorSpec:
    dtype = DTYPES.get(port.element_type.get_type_name(), np.object_)
    shape = port.partial_shape
    sizes = () if shape.rank.is_dynamic else [d.get_length() if d.is_static else -1 for d in shape]
    return TensorSpec(port.get_any_name(), np.dtype(dtype), tuple(sizes))


def _has_int8_weights(model: Any) -> bool:
    return any(
        operator.get_element_type().get_type_name() in INT8_TYPES
        and prod(operator.get_output_shape(0)) >= MIN_MATRIX_VALUES
        for operator in model.get_ops()
        if operator.get_type_name() == "Constant"
    )


def _vocabulary_size(model: Any) -> int | None:
    """Find the rows of the table in which the model looks up tokens."""
    found = [port for port in model.inputs if port.get_any_name() == "input_ids"]
    while found:
        for target in found.pop().get_target_inputs():
            operator = target.get_node()
            if operator.get_type_name() == "Gather" and target.get_index() == 1:
                table = operator.input(0).get_source_output().partial_shape
                return table[0].get_length() if table[0].is_static else None
            if operator.get_type_name() in ("Convert", "Reshape", "Unsqueeze", "Squeeze"):
                found.append(operator.output(0))
    return None
