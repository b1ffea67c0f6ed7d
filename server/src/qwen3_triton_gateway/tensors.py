"""The records that pass between the stages, and the array types they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Int64Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]
Int64Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.int64]]
Float32Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32]]
FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text as token ids, without padding, ending with `<|endoftext|>`.

    `input_ids` is int64 of shape `(length,)`. `total_tokens` counts what the whole text would
    have needed: above `length` where the text was cut to `max_length`.
    """

    input_ids: Int64Vector
    total_tokens: int

    @property
    def length(self) -> int:
        return len(self.input_ids)

    @property
    def truncated(self) -> bool:
        return self.total_tokens > self.length


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Texts padded to one length: int64 matrices of shape `(batch, length)`, pads masked 0."""

    input_ids: Int64Matrix
    attention_mask: Int64Matrix


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """A model's `last_hidden_state`: `(batch, length, hidden_size)` in the model's own dtype."""

    values: FloatArray


@dataclass(frozen=True, slots=True)
class PooledStates:
    """A pooled model's `sentence_embedding`: `(batch, hidden_size)`, float32 or float16."""

    values: FloatArray


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The answer for n texts: unit rows in the order of the texts.

    `vectors` is float32 of shape `(n, dimensions)`; `prompt_tokens` counts the tokens the model
    saw, end tokens included; `truncated` lists the indices of the texts that were cut.
    """

    vectors: Float32Matrix
    prompt_tokens: int
    truncated: tuple[int, ...]
