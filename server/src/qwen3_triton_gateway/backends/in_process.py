"""The model in the gateway's own process: what its engines have in common."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..container import thread_count
from ..errors import (
    BackendError,
    DeadlineExceededError,
    InsufficientMemoryError,
    StartupError,
)
from ..fingerprint import weights_digest
from ..memory import ModelRuns
from ..model_files import ModelFileError, export_name, find_model, model_config
from ..onnx_file import operators
from ..run_memory import RETURNED_BYTES, RunMemory, estimate_run_memory
from ..settings import LENGTH_SETTINGS, Precision, Task
from ..tensors import HiddenStates, PooledStates, TokenBatch
from .base import AnyArray, Backend, ModelSpec, TensorSpec
from .interface import (
    HIDDEN_RANK,
    POOLED_RANK,
    Feed,
    build_feed,
    check_inputs,
    describe_model,
    feed_inputs,
    is_past,
    wrap_output,
)

# A CPU gains nothing from larger batches: the matrices fill its cores long before.
MAX_BATCH_SIZE = 32
MODEL_DIR_SETTINGS: dict[Task, str] = {"embed": "EMBED_MODEL_DIR", "rerank": "RERANK_MODEL_DIR"}

_RUNS = ModelRuns()


class InProcessBackend(Backend, ABC):
    """The ONNX file of a folder on this machine's CPU, run by the engine of a subclass."""

    name: str  # as the setting EMBED_ENGINE and the metrics have it
    title: str  # as its authors write it
    precision: Precision

    def __init__(self, model_dir: Path, *, threads: int = 0, task: Task = "embed") -> None:
        """Prepare to load; with 0 `threads` the engine uses every core that it may."""
        self._path = model_dir
        self._task: Task = task
        self._threads = thread_count(threads)
        # One thread: a run already uses every core, and the next batch waits here, prepared.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self.name)
        self._spec: ModelSpec | None = None
        self._run_memory: RunMemory | None = None

    @property
    def spec(self) -> ModelSpec:
        assert self._spec is not None, "connect() comes first"
        return self._spec

    @property
    def description(self) -> str:
        computing = "" if self.precision == "graph" else f" in {self.precision}"
        return f"{self.title}{computing} in this process, {self._path}"

    @property
    def states(self) -> dict[str, bool]:
        return {self.name: self._is_open}

    @property
    def run_memory(self) -> RunMemory | None:
        return self._run_memory

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
        return self._is_open

    async def close(self) -> None:
        self._release()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    @abstractmethod
    def _is_open(self) -> bool:
        """Whether the model is loaded."""

    @abstractmethod
    def _open(self, path: Path, digest: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Load an ONNX file with this digest, and return its inputs and outputs.

        Raises:
            StartupError: The engine is not installed, or cannot load the file.
        """

    @abstractmethod
    def _evaluate(self, names: Sequence[str], feed: Feed) -> list[AnyArray]:
        """Compute the outputs with these names; whatever is raised, the engine refused the feed."""

    @abstractmethod
    def _fuses_softmax(self) -> bool:
        """Return whether the engine computes a softmax of the graph within a larger operator."""

    @abstractmethod
    def _release(self) -> None:
        """Forget the model."""

    def _returns_memory(self, feed: Feed) -> bool:
        """Return whether the run is so large that its memory is returned when it ends."""
        memory = self._run_memory
        return memory is not None and memory.bytes_of(*feed["input_ids"].shape) >= RETURNED_BYTES

    def _run(self, batch: TokenBatch) -> tuple[AnyArray, float]:
        """Run a batch, and measure it here, where the event loop's load does not count."""
        if not self._is_open:
            msg = "The model is closed."
            raise BackendError(msg)
        feed = build_feed(self.spec, batch)
        with self._room_for(batch):
            began = time.perf_counter()
            try:
                [values] = self._evaluate([self.spec.output.name], feed)
            except Exception as error:  # the engines' errors share no public base class
                msg = f"{self.title} refused the batch: {error}"
                raise BackendError(msg) from error
            return values, time.perf_counter() - began

    @contextmanager
    def _room_for(self, batch: TokenBatch) -> Generator[None]:
        """Wait for the memory of a batch.

        Raises:
            InsufficientMemoryError: There is not enough.
        """
        rows, length = batch.input_ids.shape
        assert self._run_memory is not None, "connect() comes first"
        size_bytes = self._run_memory.bytes_of(rows, length)
        try:
            with _RUNS.room_for(rows, length, size_bytes):
                yield
        except InsufficientMemoryError as error:
            error.message += (
                f" Send shorter texts, lower {LENGTH_SETTINGS[self._task]} so that they are "
                "truncated, or give the gateway more memory."
            )
            if self.name == "onnxruntime":
                error.message += " OpenVINO (EMBED_ENGINE) takes much less for long texts."
            raise

    def _load(self) -> ModelSpec:
        self._path = find_served(self._path, self._task)
        try:
            digest = weights_digest(self._path)
        except ModelFileError as error:
            raise _not_servable(error, self._task) from error
        inputs, outputs = self._open(self._path, digest)
        name = export_name(self._path)
        check_inputs(name, inputs)
        spec = describe_model(
            name=name,
            inputs=inputs,
            outputs=self._with_shapes(inputs, outputs),
            max_batch_size=MAX_BATCH_SIZE,
            instance_count=1,
            weights_digest=digest,
            engine=self.name,
            precision=self.precision,
            task=self._task,
        )
        self._run_memory = self._estimate_memory(spec)
        return spec

    def _estimate_memory(self, spec: ModelSpec) -> RunMemory:
        output = spec.output
        output_bytes = 0 if spec.pooling == "in_graph" else spec.hidden_size * output.dtype.itemsize
        return estimate_run_memory(
            model_config(self._path),
            output_bytes=output_bytes,
            hidden_size=spec.hidden_size,
            operators=operators(self._path),
            fuses_softmax=self._fuses_softmax(),
            is_float16=output.dtype == np.float16,
        )

    def _with_shapes(
        self, inputs: Sequence[TensorSpec], outputs: list[TensorSpec]
    ) -> list[TensorSpec]:
        """Fill in shapes that the file leaves open, by running the model on two tokens."""
        if not any(is_open(output) for output in outputs):
            return outputs
        batch = TokenBatch(np.zeros((1, 2), dtype=np.int64), np.ones((1, 2), dtype=np.int64))
        names = [spec.name for spec in inputs]
        feed = feed_inputs(names, [spec for spec in inputs if is_past(spec)], batch)
        try:
            values = self._evaluate([output.name for output in outputs], feed)
        except Exception:  # whatever is wrong with the model is reported by what uses its outputs
            return outputs
        shapes: list[tuple[int, ...]] = [np.shape(value) for value in values]
        return [
            replace(output, shape=(*[-1] * len(shape[1:]), *shape[-1:]))
            for output, shape in zip(outputs, shapes, strict=True)
        ]


def find_served(path: Path, task: Task) -> Path:
    """Find the ONNX file of a model folder.

    Raises:
        StartupError: The folder has none, or several; the message names the setting.
    """
    try:
        return find_model(path)
    except ModelFileError as error:
        raise _not_servable(error, task) from error


def _not_servable(error: ModelFileError, task: Task) -> StartupError:
    return StartupError(f"{MODEL_DIR_SETTINGS[task]} cannot be served. {error}")


def is_open(output: TensorSpec) -> bool:
    """Return whether an output may be vectors or states, but its size is not stated."""
    may_be_used = not output.shape or len(output.shape) in (POOLED_RANK, HIDDEN_RANK)
    return may_be_used and (not output.shape or output.shape[-1] <= 0)
