"""From a model's output to unit vectors: pool, truncate, normalize, in this order, in float32."""

from __future__ import annotations

import numpy as np

from .tensors import Float32Matrix, FloatArray, Int64Matrix

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


def truncate_dimensions(vectors: Float32Matrix, dimensions: int) -> Float32Matrix:
    """Keep the first `dimensions` components (Matryoshka); this changes the norm of the rows."""
    return vectors[:, :dimensions]


def l2_normalize(vectors: Float32Matrix) -> Float32Matrix:
    """Scale each row to norm 1. Rows must be usable; see `unusable_rows`."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def unusable_rows(vectors: Float32Matrix) -> list[int]:
    """List the rows without a direction: a component is not finite, or the norm is about zero."""
    # In float64, because the squares of large but finite components overflow float32.
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return np.flatnonzero(~np.isfinite(norms) | (norms < MIN_NORM)).tolist()
