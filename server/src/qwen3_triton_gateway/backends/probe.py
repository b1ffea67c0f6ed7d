"""A short batch whose answer shows which weights a backend has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BadVectorError, EmbeddingServerError, StartupError
from ..pooling import l2_normalize, unusable_rows, vectors_of
from ..settings import Task
from ..tensors import Float32Matrix, Float32Vector, TokenBatch
from .base import Backend

# Equal weights on equal hardware agree to 1e-6 in float32 and 1e-4 in float16, in any batch. Other
# weights, another padding or a missing end token fall far below this.
MIN_AGREEMENT = 0.999
# A run costs one short batch: often enough to notice swapped weights soon, and rare enough to be
# lost in the load.
INTERVAL_SECONDS = 30.0
TIMEOUT_SECONDS = 10.0
# A large reranker takes seconds for its pairs on a few cores. The first run may take this long;
# later ones may take some times as long as it, and have a twentieth of the time.
FIRST_SECONDS = 60.0
SLOWDOWN = 4.0
MAX_SHARE = 0.05
QUERY_PRIORITY = 1
WORK: dict[Task, str] = {"embed": "embed a plain sentence", "rerank": "score plain pairs"}


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a canary runs, and how long a run may take.

    Attributes:
        first_seconds: How long the first run took; of several backends, the longest.
    """

    first_seconds: float = 0.0

    @property
    def timeout(self) -> float:
        return max(TIMEOUT_SECONDS, SLOWDOWN * self.first_seconds)

    @property
    def interval(self) -> float:
        return max(INTERVAL_SECONDS, self.first_seconds / MAX_SHARE)


async def run_probe(
    backend: Backend, batch: TokenBatch, *, timeout_seconds: float = FIRST_SECONDS
) -> Float32Vector:
    """Return a model's answer to a batch as one vector, without waiting behind other requests.

    That of an embedding model is the unit vector of one sentence. That of a reranker holds the
    logits of several pairs as they are, since their size counts in the scores.

    Args:
        backend: The model.
        batch: The texts.
        timeout_seconds: How long a batch may take; by default, as long as at the start.

    Raises:
        BadVectorError: The answer is not finite, or zero.
        EmbeddingServerError: See `Backend.infer`.
    """
    size = max(1, backend.spec.max_batch_size)
    rows: list[Float32Matrix] = []
    for start in range(0, len(batch.input_ids), size):
        part = slice(start, start + size)
        few = TokenBatch(batch.input_ids[part], batch.attention_mask[part])
        states = await backend.infer(few, timeout_seconds=timeout_seconds, priority=QUERY_PRIORITY)
        rows.append(vectors_of(states, few.attention_mask))
    answer = np.concatenate(rows).reshape(1, -1)
    if unusable_rows(answer):
        raise BadVectorError("The answer to the canary is not finite, or zero.")
    return (l2_normalize(answer) if backend.spec.task == "embed" else answer)[0]


def startup_failure(task: Task, error: EmbeddingServerError) -> StartupError:
    """Wrap what a model answered to its first probe."""
    return StartupError(f"The model cannot {WORK[task]}: {error.message}")


def agreement(left: Float32Vector, right: Float32Vector) -> float:
    """Return the cosine of two unit vectors; of others, one that differences in size lower too.

    It is 1 for equal vectors, and -1 if they have different lengths.
    """
    if left.shape != right.shape:
        return -1.0
    size = np.vdot(left, left) + np.vdot(right, right)
    return float(2 * np.vdot(left, right) / size) if size else 1.0


def largest_agreement(vectors: Sequence[Float32Vector]) -> tuple[int, bool]:
    """Find the vector that most others equal.

    Returns:
        Its index, and whether the vectors that equal it are the only group of that size.
    """
    groups = [
        frozenset(
            index
            for index, other in enumerate(vectors)
            if agreement(vector, other) >= MIN_AGREEMENT
        )
        for vector in vectors
    ]
    best = max(range(len(groups)), key=lambda index: len(groups[index]))
    is_only = all(group == groups[best] or len(group) < len(groups[best]) for group in groups)
    return best, is_only
