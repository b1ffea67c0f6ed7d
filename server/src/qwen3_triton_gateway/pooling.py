"""From a model's output to unit vectors: pool, cut, normalise, in this order and in float32."""

from __future__ import annotations

import numpy as np

from .tensors import Float32Matrix, FloatArray, Int64Matrix

# Below this norm a row holds no direction: fp16 overflow inside some ONNX Runtime releases
# zeroes whole rows (microsoft/onnxruntime#29034). Real last-token states have norms of 10 to 1000.
MIN_NORM = 1e-6


def last_token_pool(last_hidden_state: FloatArray, attention_mask: Int64Matrix) -> Float32Matrix:
    """Take each row's hidden state at its last `attention_mask == 1`, for either padding side.

    `last_hidden_state` is `(batch, length, hidden_size)`, the result float32 of shape
    `(batch, hidden_size)`.
    """
    length = attention_mask.shape[1]
    last = length - 1 - np.argmax(attention_mask[:, ::-1], axis=1)
    rows = np.arange(attention_mask.shape[0])
    return last_hidden_state[rows, last].astype(np.float32)


def truncate_dimensions(vectors: Float32Matrix, dimensions: int) -> Float32Matrix:
    """Keep the first `dimensions` components (Matryoshka); the rows lose their norm by it."""
    return vectors[:, :dimensions]


def l2_normalize(vectors: Float32Matrix) -> Float32Matrix:
    """Scale each row to norm 1; rows must be usable (see `unusable_rows`)."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def unusable_rows(vectors: Float32Matrix) -> list[int]:
    """List the rows that are no direction: a component not finite, or a norm of about zero."""
    # float64, since the squares of large but finite components overflow float32.
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return np.flatnonzero(~np.isfinite(norms) | (norms < MIN_NORM)).tolist()
