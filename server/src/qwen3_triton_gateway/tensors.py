"""The records that pass between the stages, and their array types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Int64Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]
Float32Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float32]]
Int64Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.int64]]
Float32Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32]]
ByteMatrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.int8 | np.uint8]]
FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The tokens of a text, end token included.

    Attributes:
        kept: Tokens that the model sees.
        total: Tokens of the whole text.
        exact: Whether `total` is exact. If not, it is a lower bound: the end of a huge text is
            never tokenized.
    """

    kept: int
    total: int
    exact: bool = True

    @property
    def truncated(self) -> bool:
        return self.total > self.kept


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text as token IDs, without padding; those of an embedder end with `<|endoftext|>`.

    Attributes:
        input_ids: Int64 of shape `(length,)`.
    """

    input_ids: Int64Vector
    count: TokenCount

    @property
    def length(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """One text's vector, float32 of shape `(dimensions,)`, not yet normalized."""

    vector: Float32Vector
    count: TokenCount


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Texts padded to one length: int64 of shape `(batch, length)`; the mask is 0 for padding."""

    input_ids: Int64Matrix
    attention_mask: Int64Matrix


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """A model's `last_hidden_state`: `(batch, length, hidden_size)`, in the model's dtype.

    Attributes:
        seconds: What the model took; 0 where that is not measured.
    """

    values: FloatArray
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PooledStates:
    """A pooled model's `sentence_embedding`: `(batch, hidden_size)`, float32 or float16.

    Attributes:
        seconds: What the model took; 0 where that is not measured.
    """

    values: FloatArray
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of n texts.

    Attributes:
        distinct: Float32 of shape `(m, dimensions)`, the vectors of the m distinct texts; they
            have norm 1 unless the call disabled that.
        rows: Int64 of shape `(n,)`: which of them belongs to each text.
        prompt_tokens: Tokens that the model saw, end tokens included.
        truncated: Indices of the texts that were truncated.
    """

    distinct: Float32Matrix
    rows: Int64Vector
    prompt_tokens: int
    truncated: tuple[int, ...]

    @property
    def vectors(self) -> Float32Matrix:
        """Float32 of shape `(n, dimensions)`, in the order of the texts."""
        return self.distinct[self.rows]

    @property
    def dimensions(self) -> int:
        return self.distinct.shape[1]
