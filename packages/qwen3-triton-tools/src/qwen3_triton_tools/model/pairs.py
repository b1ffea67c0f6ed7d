"""Pairs of a query and a document as tokens, and their logits by a graph in this process.

Independent of how the gateway does it, so that `model verify` can compare the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import numpy as np

from qwen3_triton_gateway.backends.base import Backend
from qwen3_triton_gateway.backends.behavior import TIMEOUT_SECONDS
from qwen3_triton_gateway.backends.probe import QUERY_PRIORITY
from qwen3_triton_gateway.errors import EmbeddingServerError
from qwen3_triton_gateway.pooling import vectors_of
from qwen3_triton_gateway.rerank_prompt import ANSWERS, PREFIX, SUFFIX, render_pair
from qwen3_triton_gateway.tensors import Float32Matrix, TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer

from ..errors import ModelError
from .inspection import Inspection, tokenizer_of

Side: TypeAlias = Literal["right", "left"]
Tokens: TypeAlias = list[int]


class PairTokenizer:
    """The tokens of the card's prompt: prefix, pair and suffix, each tokenized on its own.

    Attributes:
        pad_token_id: What fills up shorter pairs.
        prefix: The tokens before a pair.
        suffix: The tokens after it.
    """

    def __init__(self, path: Path, *, max_length: int) -> None:
        self._tokenizer = TextTokenizer(path, max_length=max_length)
        self._max_length = max_length
        self.pad_token_id: int = self._tokenizer.end_token_id
        self.prefix: Tokens
        self.suffix: Tokens
        self.prefix, self.suffix = map(self.join, (PREFIX, SUFFIX))

    def encode(self, query: str, document: str, instruction: str | None = None) -> Tokens:
        """Tokenize a pair, and cut its document where it is too long, never the suffix.

        The document is last, so the cut is that of the card's `max_length - len(prefix) -
        len(suffix)`.
        """
        return self.cut(self.join(PREFIX, render_pair(query, document, instruction), SUFFIX))

    def join(self, *pieces: str) -> Tokens:
        """Tokenize pieces on their own, and join their tokens."""
        return [token for part in self._tokenizer.token_ids(pieces) for token in part.tolist()]

    def cut(self, pair: Tokens, limit: int | None = None) -> Tokens:
        """Cut a pair with its prompt before the suffix."""
        room = (limit or self._max_length) - len(self.suffix)
        return [*pair[: -len(self.suffix)][:room], *self.suffix]

    def pad(self, rows: Sequence[Tokens], side: Side = "right") -> TokenBatch:
        """Pad rows to the longest; the card pads left."""
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(rows):
            part = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
            ids[row, part], mask[row, part] = tokens, 1
        return TokenBatch(ids, mask)


class GraphScorer:
    """A reranker's graph in this process, for the time of a `with` block.

    Attributes:
        pairs: Its tokenizer.
        selects_answers: Whether it returns the logits of the answers only.
        is_single: Whether it takes one pair at a time.
        pads_right_only: Whether padding on the left is not for it.
    """

    def __init__(self, inspection: Inspection, backend: Backend, *, max_length: int) -> None:
        """Prepare to load the model.

        Raises:
            ModelError: It has no tokenizer, or no tokens for its answers.
        """
        reranker, tokenizer = inspection.reranker, tokenizer_of(inspection)
        assert reranker is not None, "the caller knows that it is one"
        self.selects_answers: bool = reranker.selects_answers
        self._columns = None if self.selects_answers else answer_ids(tokenizer.answer_ids)
        self.is_single: bool = inspection.spec is not None and inspection.spec.max_batch_size == 1
        self.pads_right_only: bool = inspection.padding == "right only"
        self._backend = backend
        self._runner = asyncio.Runner()
        self.pairs: PairTokenizer = PairTokenizer(Path(tokenizer.path), max_length=max_length)

    def __enter__(self) -> Self:
        try:
            self._runner.run(self._backend.connect())
        except EmbeddingServerError as error:
            self.close()
            raise ModelError(error.message) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._runner.run(self._backend.close())
        self._runner.close()

    def logits(self, batch: TokenBatch) -> Float32Matrix:
        """Return (batch, 2) logits of "no" and "yes", or (batch, 1) of a classifier.

        Raises:
            ModelError: The model refuses the batch.
        """
        try:
            states = self._runner.run(
                self._backend.infer(batch, timeout_seconds=TIMEOUT_SECONDS, priority=QUERY_PRIORITY)
            )
        except EmbeddingServerError as error:
            raise ModelError(error.message) from error
        rows = vectors_of(states, batch.attention_mask)
        return rows if self._columns is None else rows[:, self._columns]

    def score(self, rows: Sequence[Tokens], side: Side = "right") -> list[float]:
        """Score pairs in one batch, or one by one if the model takes no more.

        Raises:
            ModelError: The model refuses the batch.
        """
        groups = [[row] for row in rows] if self.is_single else [rows]
        batches = [self.pairs.pad(group, side) for group in groups]
        return [score for batch in batches for score in scores_of(self.logits(batch))]


def answer_ids(ids: Sequence[int | None]) -> list[int]:
    """Return the tokens of the answers.

    Raises:
        ModelError: The tokenizer does not have them.
    """
    found = [token_id for token_id in ids if token_id is not None]
    if len(found) < len(ANSWERS):
        raise ModelError(f"The tokenizer has no tokens for {' and '.join(map(repr, ANSWERS))}.")
    return found


def scores_of(logits: Float32Matrix) -> list[float]:
    """Return the share of "yes" in the softmax, or the sigmoid of a classifier's logit."""
    values = logits.astype(np.float64)
    margin = values[:, 0] if values.shape[1] == 1 else values[:, 1] - values[:, 0]
    # In this form no exponential overflows.
    return np.exp(-np.logaddexp(0.0, -margin)).tolist()
