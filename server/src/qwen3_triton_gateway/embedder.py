"""The order of the stages, from texts to unit vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backends import Backend
from .batching import pad_batch
from .errors import BadVectorError, EmbeddingServerError, InvalidRequestError
from .pooling import l2_normalize, last_token_pool, truncate_dimensions, unusable_rows
from .prompts import InputType, format_inputs
from .scheduler import BatchLimits, Float32Vector, Lane, QueuedText, Scheduler
from .settings import MIN_DIMENSIONS, Settings
from .tensors import Embeddings, Float32Matrix, HiddenStates, TokenizedText
from .tokenization import TextTokenizer


@dataclass(frozen=True, slots=True)
class EmbedTimings:
    """Where a request's time went, in seconds."""

    tokenize_seconds: float
    queue_seconds: float
    infer_seconds: float


class Embedder:
    """Embed texts with a connected backend; one for the process."""

    def __init__(self, backend: Backend, tokenizer: TextTokenizer, settings: Settings) -> None:
        self._backend = backend
        self._tokenizer = tokenizer
        self.default_dimensions = settings.output_dim
        spec = backend.spec
        self.scheduler = Scheduler(
            self._run_batch,
            limits=BatchLimits(
                spec.max_batch_size, settings.max_batch_tokens, tokenizer.max_length
            ),
            window=spec.instance_count + 1,
            max_queue_tokens=settings.max_queue_tokens,
        )

    async def embed(
        self,
        texts: Sequence[str],
        *,
        deadline: float,
        input_type: InputType = "document",
        instruction: str | None = None,
        dimensions: int | None = None,
        truncate: bool = True,
    ) -> tuple[Embeddings, EmbedTimings]:
        """Embed texts into unit rows in their order; `deadline` is in the event loop's time.

        Raises:
            InvalidRequestError: a blank text, dimensions out of range, or a text too long with
                `truncate` off; the message names the index.
            EmbeddingServerError: what kept a text from being embedded.
        """
        dimensions = self._check_dimensions(dimensions)
        _refuse_blank(texts)
        began = time.perf_counter()
        prompts = format_inputs(texts, input_type=input_type, instruction=instruction)
        tokenized = await asyncio.to_thread(self._tokenizer.encode, prompts)
        tokenize_seconds = time.perf_counter() - began
        truncated = tuple(i for i, text in enumerate(tokenized) if text.truncated)
        if truncated and not truncate:
            self._refuse_long(tokenized, truncated)
        lane = Lane.QUERY if input_type == "query" else Lane.DOCUMENT
        entries = await self.scheduler.submit(tokenized, lane=lane, deadline=deadline)
        vectors = truncate_dimensions(_collect(entries), dimensions)
        _refuse_unusable(vectors)
        prompt_tokens = sum(text.length for text in tokenized)
        return (
            Embeddings(l2_normalize(vectors), prompt_tokens, truncated),
            EmbedTimings(tokenize_seconds, *_queue_and_infer_seconds(entries)),
        )

    async def _run_batch(
        self, texts: Sequence[TokenizedText], lane: Lane, timeout_seconds: float
    ) -> Float32Matrix:
        batch = pad_batch(
            texts,
            pad_token_id=self._tokenizer.end_token_id,
            max_length=self._tokenizer.max_length,
        )
        states = await self._backend.infer(
            batch, timeout_seconds=timeout_seconds, priority=lane.value
        )
        if isinstance(states, HiddenStates):
            return last_token_pool(states.values, batch.attention_mask)
        return states.values.astype(np.float32)

    def _check_dimensions(self, dimensions: int | None) -> int:
        hidden_size = self._backend.spec.hidden_size
        if dimensions is None:
            return self.default_dimensions
        if MIN_DIMENSIONS <= dimensions <= hidden_size:
            return dimensions
        msg = f"`dimensions` is {dimensions}; this model allows {MIN_DIMENSIONS} to {hidden_size}."
        raise InvalidRequestError(msg, param="dimensions")

    def _refuse_long(self, tokenized: Sequence[TokenizedText], indices: tuple[int, ...]) -> None:
        first = indices[0]
        more = f" ({len(indices) - 1} more texts are too long as well)" if indices[1:] else ""
        msg = (
            f"Text {first} has {tokenized[first].total_tokens} tokens; the limit is "
            f"{self._tokenizer.max_length}{more}. Shorten it, or send `truncate: true`."
        )
        raise InvalidRequestError(msg, param=f"texts[{first}]", code="text_too_long")


def _refuse_blank(texts: Sequence[str]) -> None:
    for index, text in enumerate(texts):
        if not text.strip():
            msg = f"Text {index} is blank. Remove it or give it content; nothing was embedded."
            raise InvalidRequestError(msg, param=f"texts[{index}]", code="blank_text")


def _refuse_unusable(vectors: Float32Matrix) -> None:
    """Refuse rows that lost their direction when they were cut to `dimensions`."""
    for index in unusable_rows(vectors):
        msg = f"Text {index} has no direction left in its first {vectors.shape[1]} dimensions."
        raise BadVectorError(msg, param=f"texts[{index}]")


def _collect(entries: Sequence[QueuedText]) -> Float32Matrix:
    """Stack the vectors of finished entries, or raise the first error naming its text."""
    results = [entry.done.result() for entry in entries]
    vectors: list[Float32Vector] = []
    for index, result in enumerate(results):
        if isinstance(result, BadVectorError):
            msg = (
                f"Text {index} got no usable vector, alone too: {result.message}. Float16 models "
                "overflow on some texts: serve a float32 or bfloat16 export, or change the text."
            )
            raise BadVectorError(msg, param=f"texts[{index}]")
        if isinstance(result, EmbeddingServerError):
            raise result
        vectors.append(result)
    return np.stack(vectors)


def _queue_and_infer_seconds(entries: Sequence[QueuedText]) -> tuple[float, float]:
    arrived = min(entry.arrived for entry in entries)
    started = min(entry.started for entry in entries)
    finished = max(entry.finished for entry in entries)
    return max(0.0, started - arrived), finished - started
