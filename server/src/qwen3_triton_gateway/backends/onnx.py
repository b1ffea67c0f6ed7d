"""The model in the gateway's own process, on ONNX Runtime: for laptops and tests."""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError, DeadlineExceededError, StartupError
from ..fingerprint import weights_digest
from ..model_files import ModelFileError, find_model
from ..tensors import HiddenStates, PooledStates, TokenBatch
from .base import (
    HIDDEN_RANK,
    POOLED_RANK,
    AnyArray,
    ModelSpec,
    TensorSpec,
    build_feed,
    check_inputs,
    describe_model,
    feed_inputs,
    is_past,
    wrap_output,
)

# A CPU gains nothing from larger batches: the matrices fill its cores long before.
MAX_BATCH_SIZE = 32
DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
}


class OnnxBackend:
    """The ONNX file of a folder on this machine's CPU."""

    def __init__(self, model_dir: Path, *, intra_op_threads: int = 0) -> None:
        """Prepare to load; an `intra_op_threads` of 0 lets ONNX Runtime use every core."""
        self._path = model_dir
        self._intra_op_threads = intra_op_threads
        # One thread: a run already uses every core, and the next batch waits here, prepared.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnx")
        self._session: Any = None  # an InferenceSession; its stubs leave its types unknown
        self._spec: ModelSpec | None = None

    @property
    def spec(self) -> ModelSpec:
        assert self._spec is not None, "connect() comes first"
        return self._spec

    @property
    def description(self) -> str:
        return f"ONNX Runtime in this process, {self._path}"

    @property
    def states(self) -> dict[str, bool]:
        return {"onnxruntime": self._session is not None}

    @property
    def generation(self) -> int:
        return 0  # nothing else can load another model into this process

    @property
    def doubts(self) -> int:
        return 0

    @property
    def problems(self) -> dict[str, str]:
        return {}

    async def adopt_canary(self, canary: TokenBatch) -> bool:
        del canary
        return False

    async def connect(self) -> ModelSpec:
        loop = asyncio.get_running_loop()
        spec = await loop.run_in_executor(self._executor, self._load)
        self._spec = spec
        return spec

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        del priority  # the scheduler's order is the order of the runs
        run = asyncio.get_running_loop().run_in_executor(self._executor, self._run, batch)
        try:
            async with asyncio.timeout(timeout_seconds):
                values, seconds = await run
        except TimeoutError:
            msg = f"The model did not answer within {timeout_seconds:.1f} s."
            raise DeadlineExceededError(msg) from None
        return wrap_output(self.spec, batch, values, seconds=seconds)

    async def is_ready(self) -> bool:
        return self._session is not None

    async def close(self) -> None:
        self._session = None
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _run(self, batch: TokenBatch) -> tuple[AnyArray, float]:
        """Run a batch, and measure it here, where the event loop's load does not count."""
        if self._session is None:
            msg = "The model is closed."
            raise BackendError(msg)
        feed: dict[str, Any] = dict(build_feed(self.spec, batch))
        began = time.perf_counter()
        try:
            values: Any = self._session.run([self.spec.output.name], feed)[0]
        except Exception as error:  # ONNX Runtime's errors share no public base class
            msg = f"ONNX Runtime refused the batch: {error}"
            raise BackendError(msg) from error
        return values, time.perf_counter() - began

    def _load(self) -> ModelSpec:
        try:
            self._path = find_model(self._path)
            digest = weights_digest(self._path)
        except ModelFileError as error:
            raise StartupError(f"EMBED_MODEL_DIR cannot be served. {error}") from error
        self._session = _open_session(self._path, self._intra_op_threads)
        # The hub keeps the graph in a subfolder, which is not what the model is called.
        folder = self._path.parent
        name = (folder.parent if folder.name == "onnx" else folder).name
        inputs = [_tensor_spec(node) for node in self._session.get_inputs()]
        check_inputs(name, inputs)
        outputs = [_tensor_spec(node) for node in self._session.get_outputs()]
        return describe_model(
            name=name,
            inputs=inputs,
            outputs=_with_shapes(self._session, inputs, outputs),
            max_batch_size=MAX_BATCH_SIZE,
            instance_count=1,
            weights_digest=digest,
        )


def _with_shapes(
    session: Any, inputs: Sequence[TensorSpec], outputs: list[TensorSpec]
) -> list[TensorSpec]:
    """Fill in shapes that the file leaves open, by running the model on two tokens."""
    if not any(_is_open(output) for output in outputs):
        return outputs
    batch = TokenBatch(np.zeros((1, 2), dtype=np.int64), np.ones((1, 2), dtype=np.int64))
    names = [spec.name for spec in inputs]
    feed: dict[str, Any] = dict(feed_inputs(names, [s for s in inputs if is_past(s)], batch))
    try:
        values: list[Any] = session.run([output.name for output in outputs], feed)
    except Exception:  # whatever is wrong with the model is reported by what uses its outputs
        return outputs
    shapes: list[tuple[int, ...]] = [np.shape(value) for value in values]
    return [
        replace(output, shape=(*[-1] * len(shape[1:]), *shape[-1:]))
        for output, shape in zip(outputs, shapes, strict=True)
    ]


def _is_open(output: TensorSpec) -> bool:
    """Return whether an output may be vectors or states, but its size is not stated."""
    may_be_used = not output.shape or len(output.shape) in (POOLED_RANK, HIDDEN_RANK)
    return may_be_used and (not output.shape or output.shape[-1] <= 0)


def _open_session(path: Path, intra_op_threads: int) -> Any:
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
    options.intra_op_num_threads = intra_op_threads
    # A pattern makes a second run of a shape allocate all of its memory again, in one block, and
    # saves no time: 80 MiB for a text of 1,024 tokens, twice what the run itself needs.
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        msg = f"ONNX Runtime cannot load {path}: {error}"
        raise StartupError(msg) from error


def _tensor_spec(node: Any) -> TensorSpec:
    dtype = DTYPES.get(node.type, np.object_)
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape)
    return TensorSpec(node.name, np.dtype(dtype), shape)
