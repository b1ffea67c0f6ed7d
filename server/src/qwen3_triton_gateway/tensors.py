"""The records that pass between the stages, and the array types they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Int64Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]
Float32Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float32]]
Int64Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.int64]]
Float32Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32]]
FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How many tokens of a text the model sees, and how many the whole text has.

    `exact` is false where `total` is a lower bound: the end of a huge text is never tokenized.
    """

    kept: int
    total: int
    exact: bool = True

    @property
    def truncated(self) -> bool:
        return self.total > self.kept


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text as token ids, without padding, ending with `<|endoftext|>`.

    `input_ids` is int64 of shape `(length,)`.
    """

    input_ids: Int64Vector
    count: TokenCount

    @property
    def length(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """One text's vector, float32 of shape `(dimensions,)` and not yet normalised."""

    vector: Float32Vector
    count: TokenCount


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
    """The answer for n texts: unit rows in the order of the texts, unless the call wanted them raw.

    `vectors` is float32 of shape `(n, dimensions)`; `prompt_tokens` counts the tokens the model
    saw, end tokens included; `truncated` lists the indices of the texts that were cut.
    """

    vectors: Float32Matrix
    prompt_tokens: int
    truncated: tuple[int, ...]
