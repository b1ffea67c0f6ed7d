"""A batch of one sentence whose vector shows which weights a backend has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import BadVectorError
from ..pooling import l2_normalize, unusable_rows, vectors_of
from ..tensors import Float32Vector, TokenBatch
from .base import Backend

# Equal weights on equal hardware agree to 1e-6 in float32 and 1e-4 in float16, in any batch. Other
# weights, another padding or a missing end token fall far below this.
MIN_COSINE = 0.999
TIMEOUT_SECONDS = 10.0
QUERY_PRIORITY = 1


async def embed_probe(backend: Backend, batch: TokenBatch) -> Float32Vector:
    """Compute the unit vector of a batch of one, without waiting behind other requests.

    Raises:
        BadVectorError: The vector is not finite, or zero.
        EmbeddingServerError: See `Backend.infer`.
    """
    states = await backend.infer(batch, timeout_seconds=TIMEOUT_SECONDS, priority=QUERY_PRIORITY)
    rows = vectors_of(states, batch.attention_mask)
    if unusable_rows(rows):
        msg = "The vector of the canary sentence is not finite, or zero."
        raise BadVectorError(msg)
    return l2_normalize(rows)[0]


def cosine(left: Float32Vector, right: Float32Vector) -> float:
    """Return the cosine of two unit vectors; -1 if they have different sizes."""
    return float(np.vdot(left, right)) if left.shape == right.shape else -1.0


def largest_agreement(vectors: Sequence[Float32Vector]) -> tuple[int, bool]:
    """Find the vector that most others equal.

    Returns:
        Its index, and whether the vectors that equal it are the only group of that size.
    """
    groups = [
        frozenset(
            index for index, other in enumerate(vectors) if cosine(vector, other) >= MIN_COSINE
        )
        for vector in vectors
    ]
    best = max(range(len(groups)), key=lambda index: len(groups[index]))
    is_only = all(group == groups[best] or len(group) < len(groups[best]) for group in groups)
    return best, is_only
