"""The contract between the gateway and whatever runs the model.

A backend reads the model's interface when it connects, and refuses a model that the pipeline cannot
serve. From then on, it turns a `TokenBatch` into `HiddenStates` or `PooledStates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from ..fingerprint import SAME_PRECISIONS
from ..run_memory import RunMemory
from ..settings import Precision, Task
from ..tensors import HiddenStates, PooledStates, TokenBatch

# The parameter of config.pbtxt with the canary's vector.
CANARY_PARAMETER = "canary_vector"
# The one with the precision in which Triton computes, where that is not the graph's own.
PRECISION_PARAMETER = "precision"

AnyArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model; in its shape, the batch is first and -1 is a free size."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The interface of the served model.

    Attributes:
        task: What it is served for, which determines its output: the states from which a text's
            vector is computed (`embed`), or logits (`rerank`).
        inputs: The names of its token inputs.
        past_inputs: Past keys and values, which are fed with zero-length tensors.
        output: The output that is used.
        pooling: Whether the gateway pools that output, or the model has done so.
        max_batch_size: Maximum texts per batch.
        instance_count: Batches that can run at the same time.
        weights_digest: What identifies the weights, as far as the backend can see them.
        stated_canary: What the model's configuration states about the canary's vector, if it does.
        engine: What runs the model.
        precision: What it computes in; `graph` is whatever the graph states, and where that is
            not known.
    """

    name: str
    task: Task
    inputs: tuple[str, ...]
    past_inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    pooling: Literal["last_token", "in_graph"]
    max_batch_size: int
    instance_count: int
    weights_digest: str
    stated_canary: str = field(default="", compare=False)
    engine: str = field(default="triton", compare=False)
    precision: Precision = "graph"

    @property
    def hidden_size(self) -> int:
        return self.output.shape[-1]

    def is_same_model(self, other: ModelSpec) -> bool:
        """Return whether this describes the same model, with the same vectors."""
        precision = self.precision
        if {precision, other.precision} <= set(SAME_PRECISIONS):
            precision = other.precision
        return other == replace(self, instance_count=other.instance_count, precision=precision)


@dataclass(frozen=True, slots=True)
class Probe:
    """A short batch whose answer shows which weights a model has.

    Attributes:
        batch: A sentence, or a few pairs.
        answer_ids: The tokens of the answers, if a reranker returns logits of its vocabulary.
    """

    batch: TokenBatch
    answer_ids: Sequence[int] | None = None


class Backend(Protocol):
    """A place that runs batches on one model.

    Subclasses have one place whose model never changes, unless they say otherwise.
    """

    @property
    def spec(self) -> ModelSpec:
        """The interface that `connect` found."""
        ...

    @property
    def description(self) -> str:
        """Where the model runs, in a few words, for logs and `/info`."""
        ...

    @property
    def states(self) -> dict[str, bool]:
        """Whether each place that runs the model answered last, for metrics."""
        ...

    @property
    def generation(self) -> int:
        """A count of the reloads noticed by `is_ready`; after each, the weights may be others."""
        return 0

    @property
    def doubts(self) -> int:
        """A count of the times that `is_ready` could not tell whether there was a reload."""
        return 0

    @property
    def problems(self) -> dict[str, str]:
        """Why a place that answers gets no work, by its name in `states`."""
        return {}

    @property
    def max_output_bytes(self) -> int | None:
        """The largest output that a batch can have here; None if only memory limits it."""
        return None

    @property
    def run_memory(self) -> RunMemory | None:
        """What a batch takes of this process's memory, once it is connected; None if nothing."""
        return None

    async def connect(self) -> ModelSpec:
        """Connect, and read the model's interface.

        Raises:
            StartupError: The pipeline cannot serve this model.
            BackendUnavailableError: The model does not answer, or is not loaded yet.
        """
        ...

    async def adopt_canary(self, canary: Probe) -> bool:
        """Expect this probe to keep its answer.

        Returns:
            Whether the backend checks every place by itself from now on: before it gets work, and
            regularly. Otherwise, the caller does.

        Raises:
            StartupError: Its places return different answers.
            BackendUnavailableError: The model does not answer.
        """
        del canary
        return False

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        """Run one batch.

        Args:
            batch: The padded texts.
            timeout_seconds: How long the caller waits.
            priority: 1 for queries, which overtake 2 for documents.

        Raises:
            BackendError: The model refused the batch, its answer has the wrong shape, or there is
                not enough memory for it (`InsufficientMemoryError`).
            BackendUnavailableError: The model does not answer.
            DeadlineExceededError: The model does not answer within `timeout_seconds`.
        """
        ...

    async def is_ready(self) -> bool:
        """Return whether the model would answer now; never raises."""
        ...

    async def close(self) -> None:
        """Release connections and threads."""
        ...
