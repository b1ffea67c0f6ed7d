"""ONNX Runtime in the gateway's own process."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StartupError
from ..settings import Precision
from .base import AnyArray, TensorSpec
from .engines import linked_weights
from .in_process import InProcessBackend
from .interface import Feed

DTYPES: dict[str, type[np.generic]] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
}


class OnnxBackend(InProcessBackend):
    """A model run by ONNX Runtime, in the precision of its graph."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    precision: Precision = "graph"
    _session: Any = None  # an InferenceSession; its stubs leave its types unknown

    @property
    def _is_open(self) -> bool:
        return self._session is not None

    def _open(self, path: Path, digest: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
        del digest
        self._session = _open_session(path, self._threads)
        inputs = [_tensor_spec(node) for node in self._session.get_inputs()]
        return inputs, [_tensor_spec(node) for node in self._session.get_outputs()]

    def _evaluate(self, names: Sequence[str], feed: Feed) -> list[AnyArray]:
        options = None
        if self._returns_memory(feed):
            options = importlib.import_module("onnxruntime").RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return self._session.run(names, feed, options)

    def _fuses_softmax(self) -> bool:
        return False

    def _release(self) -> None:
        self._session = None


def _open_session(path: Path, threads: int) -> Any:
    # Since 1.31, its Linux builds collect usage events by default; it reads the variable on import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        msg = (
            "Running the model in the gateway's process needs ONNX Runtime. Install it with "
            '`pip install "qwen3-triton-gateway[onnx]"`, or set TRITON_URL.'
        )
        raise StartupError(msg) from error
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin between runs take the cores that tokenize and answer: a run for one text
    # costs twice the CPU, for 0.1 ms of its time on an idle machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # By default, it rounds activations to int8 where weights are behind a DequantizeLinear. That is
    # inexact for Qwen3 (https://github.com/microsoft/onnxruntime/issues/29849).
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    # A pattern makes a second run of a shape allocate all of its memory again, in one block, and
    # saves no time: 80 MiB for a text of 1,024 tokens, twice what the run itself needs.
    options.enable_mem_pattern = False
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        msg = f"ONNX Runtime cannot load {path}: {error}"
        if linked_weights(path):
            msg += (
                "\nIt reads weights through a link out of the model's folder only if the model's "
                f"file is a link to the same place. Copy {path.parent} with `cp -rL`."
            )
        raise StartupError(msg) from error


@cache
def _share_arena() -> None:
    """Let all sessions of this process take memory in blocks of the sizes that they need.

    By default, each block is twice as large as the last, and a large run leaves half of it unused:
    it takes up to half as much memory again.
    """
    onnxruntime: Any = importlib.import_module("onnxruntime")
    arena = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", arena, 0, onnxruntime.OrtMemType.DEFAULT)
    as_requested = {"arena_extend_strategy": 1}
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(as_requested))


def _tensor_spec(node: Any) -> TensorSpec:
    dtype = DTYPES.get(node.type, np.object_)
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape)
    return TensorSpec(node.name, np.dtype(dtype), shape)
