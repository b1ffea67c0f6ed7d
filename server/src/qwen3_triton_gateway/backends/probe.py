"""A short batch whose answer shows which weights a backend has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BadVectorError, EmbeddingServerError, StartupError
from ..pooling import l2_normalize, logits_of, raw_scores, unusable_rows, vectors_of
from ..settings import Task
from ..tensors import Float32Matrix, Float32Vector, TokenBatch
from .base import Backend, Probe

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


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far the answers of equal weights may be apart.

    Attributes:
        cosine: The lowest one of a vector.
        score: The largest difference of a pair's raw score, as a share of what they typically are.
    """

    cosine: float
    score: float

    def find_difference(self, answer: Float32Vector, expected: Float32Vector, task: Task) -> str:
        """Describe how another answer differs, empty if equal weights may have given both."""
        if answer.shape != expected.shape:
            return f"has {len(answer)} values instead of {len(expected)} of"
        if task == "embed":
            cosine = float(np.vdot(answer, expected))
            return "" if cosine >= self.cosine else f"agrees only to {cosine:.4f} with"
        # Rounding is that of the logits, which are not small when their differences are.
        typical = max(1.0, float(np.sqrt(np.mean(np.square(expected)))))
        difference = float(np.abs(answer - expected).max())
        is_same = difference <= self.score * typical
        return "" if is_same else f"differs by {difference:.3f} in a raw score from"


# Of one export in one precision, on any hardware and in any batch. Vectors agree to 1e-6 in float32
# and 1e-4 in float16; other weights, another padding or a missing end token fall far below.
#
# Scores, relative to their size, of the nano reranker and of small ones with random heads: batch
# and engine (ONNX Runtime, OpenVINO) change them by 3e-6, weights rounded to float16 by 0.0015, to
# bfloat16 by 0.011, to int8 by 0.012. A missing last token changes them by 0.035 at least, ten
# missing at the beginning by 0.1, one norm's shuffled weights by 0.06, a norm without weights by
# 0.15, shuffled int8 scales of the tokens by 0.28 (but by 0.0035 where these are nearly equal), the
# swapped answers by 2.
SAME_MODEL = Tolerance(cosine=0.999, score=0.03)
# Between engines and precisions of the same weights: dynamic int8 has a cosine of 0.997 with
# float32. Other weights are far below (0.2 with one matrix shuffled). Scores of that cosine are off
# by a seventh.
SAME_WEIGHTS = Tolerance(cosine=0.99, score=0.15)


async def run_probe(
    backend: Backend, probe: Probe, *, timeout_seconds: float = FIRST_SECONDS
) -> Float32Vector:
    """Return a model's answer to a probe, without waiting behind other requests.

    That of an embedding model is the unit vector of the sentence, that of a reranker the raw score
    of each pair. Logits say less: what both have in common hides a change of their difference.

    Args:
        backend: The model.
        probe: What it runs.
        timeout_seconds: How long a batch may take; by default, as long as at the start.

    Raises:
        BadVectorError: The answer is not finite, or zero.
        EmbeddingServerError: See `Backend.infer`.
    """
    batch, task = probe.batch, backend.spec.task
    size = max(1, backend.spec.max_batch_size)
    rows: list[Float32Matrix] = []
    for start in range(0, len(batch.input_ids), size):
        part = slice(start, start + size)
        few = TokenBatch(batch.input_ids[part], batch.attention_mask[part])
        states = await backend.infer(few, timeout_seconds=timeout_seconds, priority=QUERY_PRIORITY)
        mask = few.attention_mask
        rows.append(
            vectors_of(states, mask)
            if task == "embed"
            else logits_of(states, mask, probe.answer_ids)
        )
    answer = np.concatenate(rows)
    if unusable_rows(answer.reshape(1, -1)):
        raise BadVectorError("The answer to the canary is not finite, or zero.")
    return l2_normalize(answer)[0] if task == "embed" else raw_scores(answer).astype(np.float32)


def startup_failure(task: Task, error: EmbeddingServerError) -> StartupError:
    """Wrap what a model answered to its first probe."""
    return StartupError(f"The model cannot {WORK[task]}: {error.message}")


def largest_agreement(answers: Sequence[Float32Vector], task: Task) -> tuple[int, bool]:
    """Find the answer that most others equal.

    Returns:
        Its index, and whether the answers that equal it are the only group of that size.
    """
    groups = [
        frozenset(
            index
            for index, other in enumerate(answers)
            if not SAME_MODEL.find_difference(other, answer, task)
        )
        for answer in answers
    ]
    best = max(range(len(groups)), key=lambda index: len(groups[index]))
    is_only = all(group == groups[best] or len(group) < len(groups[best]) for group in groups)
    return best, is_only
