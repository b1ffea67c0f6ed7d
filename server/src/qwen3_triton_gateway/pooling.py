"""From a model's output to unit vectors: pool, truncate, normalize, in this order, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from .settings import Pooling
from .tensors import (
    Float32Matrix,
    Float32Vector,
    FloatArray,
    HiddenStates,
    Int64Matrix,
    PooledStates,
)

Float32Array = TypeVar("Float32Array", Float32Matrix, Float32Vector)
Float64Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]

# Below this norm, a row has no direction: fp16 overflow in some ONNX Runtime releases zeroes whole
# rows (microsoft/onnxruntime#29034). Real last-token states have norms of 10 to 1000.
MIN_NORM = 1e-6


def last_token_pool(last_hidden_state: FloatArray, attention_mask: Int64Matrix) -> Float32Matrix:
    """Select each row's hidden state at its last `attention_mask == 1`, for either padding side.

    Args:
        last_hidden_state: `(batch, length, hidden_size)`, in any float dtype.
        attention_mask: `(batch, length)`, with at least one 1 in every row.

    Returns:
        Float32 of shape `(batch, hidden_size)`.
    """
    length = attention_mask.shape[1]
    last = length - 1 - np.argmax(attention_mask[:, ::-1], axis=1)
    rows = np.arange(attention_mask.shape[0])
    return last_hidden_state[rows, last].astype(np.float32)


def last_token_logits(
    logits: FloatArray, attention_mask: Int64Matrix, token_ids: Sequence[int] | None = None
) -> Float32Matrix:
    """Select each row's logits at its last `attention_mask == 1`, for either padding side.

    Args:
        logits: `(batch, length, vocabulary)`, in any float dtype.
        attention_mask: As in `last_token_pool`.
        token_ids: The tokens whose logits are wanted, instead of all.
    """
    if token_ids is None:
        return last_token_pool(logits, attention_mask)
    # One by one: rows of a whole vocabulary would be copied otherwise.
    columns = [last_token_pool(logits[..., token, None], attention_mask) for token in token_ids]
    return np.concatenate(columns, axis=1)


def logits_of(
    states: HiddenStates | PooledStates,
    attention_mask: Int64Matrix,
    answer_ids: Sequence[int] | None,
) -> Float32Matrix:
    """Return the logits of each pair: one, or those of "no" and "yes".

    Args:
        states: What the model returned.
        attention_mask: That of the pairs, as in `last_token_pool`.
        answer_ids: The tokens of the answers, unless the model has chosen their logits itself.
    """
    if isinstance(states, PooledStates):
        return states.values.astype(np.float32)
    return last_token_logits(states.values, attention_mask, answer_ids)


def raw_scores(logits: Float32Matrix) -> Float64Vector:
    """Return "yes" minus "no", or the one logit of a classifier, in float64.

    Args:
        logits: `(pairs, 2)` in the order of `ANSWERS`, or `(pairs, 1)`.
    """
    values = logits.astype(np.float64)
    return values[:, -1] if values.shape[1] == 1 else values[:, 1] - values[:, 0]


def pool_states(
    last_hidden_state: FloatArray, attention_mask: Int64Matrix, pooling: Pooling
) -> Float32Matrix:
    """Pool hidden states as a setting says; shapes are those of `last_token_pool`."""
    if pooling == "mean":
        weights = attention_mask[..., None].astype(np.float32)
        # In float32, since the sum of many float16 states overflows.
        total = (last_hidden_state.astype(np.float32) * weights).sum(axis=1)
        return total / weights.sum(axis=1)
    if pooling == "cls":
        first = np.argmax(attention_mask, axis=1)
        return last_hidden_state[np.arange(len(first)), first].astype(np.float32)
    return last_token_pool(last_hidden_state, attention_mask)


def vectors_of(
    states: HiddenStates | PooledStates,
    attention_mask: Int64Matrix,
    pooling: Pooling = "last_token",
) -> Float32Matrix:
    """Return one row per text of a model's output, pooling it where the graph does not."""
    if isinstance(states, HiddenStates):
        return pool_states(states.values, attention_mask, pooling)
    return states.values.astype(np.float32)


def truncate_dimensions(vectors: Float32Array, dimensions: int) -> Float32Array:
    """Keep the first `dimensions` components of a vector or of each row (Matryoshka).

    This changes their norm.
    """
    return vectors[..., :dimensions]


def stack_vectors(vectors: Sequence[Float32Vector]) -> Float32Matrix:
    """Copy vectors of one length into a matrix; `np.stack` takes several times as long."""
    return np.concatenate(vectors).reshape(len(vectors), -1)


def l2_normalize(vectors: Float32Matrix) -> Float32Matrix:
    """Scale each row to norm 1. Rows must be usable; see `unusable_rows`."""
    # For few rows, `np.linalg.norm` takes longer than what it computes.
    return vectors / np.sqrt(np.vecdot(vectors, vectors))[:, np.newaxis]


def unusable_rows(vectors: Float32Matrix) -> list[int]:
    """List the rows without a direction: a component is not finite, or the norm is about zero."""
    # In float64, because the squares of large but finite components overflow float32.
    wide = vectors.astype(np.float64)
    squares = np.vecdot(wide, wide).tolist()
    return [row for row, square in enumerate(squares) if not MIN_NORM**2 <= square < math.inf]
