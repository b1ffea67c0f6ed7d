"""A model made of arithmetic, the only fake, at the seam of every backend; and services on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_triton_gateway.backends.base import AnyArray, Backend, ModelSpec, Probe, TensorSpec
from qwen3_triton_gateway.backends.interface import describe_model, wrap_output
from qwen3_triton_gateway.errors import DeadlineExceededError
from qwen3_triton_gateway.run_memory import RunMemory
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings, Task
from qwen3_triton_gateway.tensors import HiddenStates, PooledStates, TokenBatch

HIDDEN_SIZE = 1280
VOCABULARY_SIZE = 4096


@cache  # drawing them takes longer than most tests
def _states(rows: int, width: int) -> AnyArray:
    """Draw a state for each token."""
    states = np.random.default_rng(7).normal(size=(rows, width))
    states.flags.writeable = False
    return states


class FakeBackend:
    """A backend whose hidden states depend on a token and all before it, as in a causal model.

    Attributes:
        calls: The shape of every batch.
        priorities: The priority of every batch.
        timeouts: How long the caller of every batch would wait, in seconds.
        corrupt: Changes an answer, or raises.
        gate: If set, answers wait until it opens.
        generation: To be incremented as if a reload was noticed.
        doubts: To be incremented as if one might have happened.
        max_output_bytes: The largest output that is transferred, if there is a bound.
        run_memory: What a batch would take.
    """

    def __init__(
        self,
        *,
        max_batch_size: int = 8,
        pooled: bool = False,
        stated_canary: str = "",
        width: int = HIDDEN_SIZE,
        task: Task = "embed",
    ) -> None:
        rows = VOCABULARY_SIZE if width <= 2 * HIDDEN_SIZE else 1
        self._table = _states(rows, width)
        shape = (-1, width) if pooled else (-1, -1, width)
        name = "sentence_embedding" if pooled else "last_hidden_state"
        int64 = np.dtype(np.int64)
        self._spec = describe_model(
            name="fake",
            inputs=[
                TensorSpec("input_ids", int64, (-1, -1)),
                TensorSpec("attention_mask", int64, (-1, -1)),
            ],
            outputs=[TensorSpec(name, np.dtype(np.float32), shape)],
            max_batch_size=max_batch_size,
            instance_count=1,
            weights_digest="fake",
            stated_canary=stated_canary,
            task=task,
        )
        self.calls: list[tuple[int, int]] = []
        self.priorities: list[int] = []
        self.timeouts: list[float] = []
        self.corrupt: Callable[[TokenBatch, AnyArray], AnyArray] = lambda _, values: values
        self.gate: asyncio.Event | None = None
        self.ready = True
        self.generation = 0
        self.doubts = 0
        self.problems: dict[str, str] = {}
        self.max_output_bytes: int | None = None
        self.run_memory: RunMemory | None = None

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def description(self) -> str:
        return "a fake"

    @property
    def states(self) -> dict[str, bool]:
        return {"fake": self.ready}

    async def connect(self) -> ModelSpec:
        return self._spec

    async def adopt_canary(self, canary: Probe) -> bool:
        del canary
        return False

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        self.calls.append(batch.input_ids.shape)
        self.priorities.append(priority)
        self.timeouts.append(timeout_seconds)
        if self.gate is not None:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self.gate.wait()
            except TimeoutError:
                raise DeadlineExceededError("The gate did not open in time.") from None
        values = self.hidden_states(batch)
        if self._spec.pooling == "in_graph":
            last = batch.attention_mask.sum(axis=1) - 1
            values = values[np.arange(len(last)), last]
        return wrap_output(self._spec, batch, self.corrupt(batch, values))

    async def is_ready(self) -> bool:
        return self.ready

    async def close(self) -> None:
        self.ready = False

    def swap_weights(self) -> None:
        """Answer like a model with other weights."""
        self.corrupt = lambda _, values: values[..., ::-1]

    def hidden_states(self, batch: TokenBatch) -> AnyArray:
        rows = self._table[batch.input_ids % VOCABULARY_SIZE] * batch.attention_mask[..., None]
        weights = 1.0 + np.arange(batch.input_ids.shape[1])[None, :, None] % 7
        return np.cumsum(rows * weights, axis=1).astype(np.float32)


class FakeReranker(FakeBackend):
    """A backend that returns the logits of "no" and "yes", or as many as its width says."""

    def __init__(self, *, width: int = 2, max_batch_size: int = 8, stated_canary: str = "") -> None:
        super().__init__(
            pooled=True,
            width=width,
            max_batch_size=max_batch_size,
            stated_canary=stated_canary,
            task="rerank",
        )


def make_service(tokenizer_dir: Path, backend: Backend, **settings: Any) -> EmbeddingService:
    """Build a service that embeds with a fake model, not connected yet."""
    return EmbeddingService(Settings(**{"TOKENIZER_PATH": tokenizer_dir, **settings}), backend)


async def connected(tokenizer_dir: Path, backend: Backend, **settings: Any) -> EmbeddingService:
    """Build a service that embeds with a fake model, and connect it."""
    service = make_service(tokenizer_dir, backend, **settings)
    await service.embedder.connect()
    return service
