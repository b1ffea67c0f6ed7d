"""Padding, and the arithmetic of what a batch costs. Pure functions over lengths in tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .tensors import TokenBatch, TokenizedText

# Padded lengths are rounded up to steps of about a sixteenth of themselves: few distinct shapes
# (equal shapes merge inside Triton, allocators and kernels see repeats) for at most 6 % padding.
BUCKET_STEPS_PER_OCTAVE = 16
SMALLEST_STEP = 4


def bucket_length(length: int, max_length: int) -> int:
    """Round a length up to its bucket, never beyond `max_length` unless the text is longer."""
    step = max(SMALLEST_STEP, (1 << length.bit_length() - 1) // BUCKET_STEPS_PER_OCTAVE)
    rounded = -(-length // step) * step
    return max(length, min(rounded, max_length))


def pad_batch(texts: Sequence[TokenizedText], *, pad_token_id: int, max_length: int) -> TokenBatch:
    """Pad texts on the right to the bucket of the longest.

    Right padding is exact for a causal model whatever the export: no real token attends to a pad,
    positions count from 0, and no row is ever fully masked.
    """
    width = bucket_length(max(text.length for text in texts), max_length)
    input_ids = np.full((len(texts), width), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(texts), width), dtype=np.int64)
    for row, text in enumerate(texts):
        input_ids[row, : text.length] = text.input_ids
        attention_mask[row, : text.length] = 1
    return TokenBatch(input_ids, attention_mask)
