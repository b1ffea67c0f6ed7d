"""The order of the stages, from texts to unit vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from .backends.base import Backend
from .batching import BatchLimits, Lane, QueuedText, pad_batch
from .cache import VectorCache
from .errors import BadVectorError, EmbeddingServerError, InvalidRequestError
from .fingerprint import EmbeddingSpace
from .metrics import Metrics
from .pooling import l2_normalize, pool_states, truncate_dimensions, unusable_rows
from .scheduler import Scheduler
from .settings import MIN_DIMENSIONS, Pooling, Settings
from .tensors import (
    EmbeddedText,
    Embeddings,
    Float32Matrix,
    Float32Vector,
    HiddenStates,
    TokenCount,
    TokenizedText,
)
from .tokenization import CutSide, InputType, TextTokenizer, format_inputs
from .tracing import batch_span, current_origin, stage_span

# What happens to a text beyond `max_length`: it is refused, or its end or start is cut off.
Truncation: TypeAlias = Literal["refuse", "end", "start"]

# A token of the text, and the end token.
MIN_TOKENS = 2
# Below this, a thread costs more than tokenizing does.
TOKENIZE_INLINE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """An embedding request, independent of its dialect.

    Attributes:
        max_tokens: Maximum tokens of a text, if the request allows fewer than the gateway.
        truncate_hint: How a caller of this dialect asks for truncation.
    """

    texts: Sequence[str]
    input_type: InputType = "document"
    instruction: str | None = None
    dimensions: int | None = None
    truncation: Truncation = "end"
    normalize: bool = True
    max_tokens: int | None = None
    truncate_hint: str = "send `truncate: true`"


@dataclass(frozen=True, slots=True)
class EmbedTimings:
    """Where a request's time went, in seconds; all 0 if every text was cached."""

    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0


class Embedder:
    """The stages on a connected backend; one per process.

    Attributes:
        scheduler: The queue that all requests share.
        cache: The vectors of recent texts.
        default_dimensions: Dimensions of a vector where a request sets none.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: TextTokenizer,
        space: EmbeddingSpace,
        settings: Settings,
        metrics: Metrics,
        *,
        shares_batches: bool = True,
    ) -> None:
        """Prepare the queue; without `shares_batches`, every text runs alone."""
        self._pooling: Pooling = settings.pooling
        self._backend = backend
        self._tokenizer = tokenizer
        self._space = space
        self._metrics = metrics
        self.cache = VectorCache(settings.cache_bytes)
        self.default_dimensions = settings.output_dim
        spec = backend.spec
        self.scheduler = Scheduler(
            self._run_batch,
            limits=BatchLimits(
                spec.max_batch_size if shares_batches else 1,
                settings.max_batch_tokens,
                tokenizer.max_length,
            ),
            window=spec.instance_count + 1,
            max_queue_tokens=settings.max_queue_tokens,
            max_queue_requests=settings.max_queue_requests,
            metrics=metrics,
        )

    async def embed(self, call: EmbedCall, *, deadline: float) -> tuple[Embeddings, EmbedTimings]:
        """Embed texts, in their order.

        Args:
            call: The texts and how to embed them.
            deadline: When the request times out, in the event loop's time.

        Raises:
            InvalidRequestError: A text is blank, `dimensions` is out of range, or a text is too
                long and the call refuses such texts; `index` names the text.
            EmbeddingServerError: A text could not be embedded.
        """
        dimensions = self.check_dimensions(call.dimensions)
        _check_call(call)
        keys = self._cache_keys(call, dimensions)
        embedded = self._look_up(keys)
        missing = [index for index in range(len(call.texts)) if index not in embedded]
        self._refuse_long(call, {index: text.count for index, text in embedded.items()})
        timings = EmbedTimings()
        if missing:
            computed, timings = await self._compute(call, missing, dimensions, deadline=deadline)
            embedded |= computed
            for index in missing if keys else ():
                self.cache.put(keys[index], computed[index])
        return self._assemble(call, [embedded[index] for index in range(len(call.texts))]), timings

    async def _compute(
        self,
        call: EmbedCall,
        indices: Sequence[int],
        dimensions: int,
        *,
        deadline: float,
    ) -> tuple[dict[int, EmbeddedText], EmbedTimings]:
        """Embed the texts of a call that are not cached."""
        began = time.perf_counter()
        with stage_span("tokenize"):
            tokenized = await self._tokenize(call, [call.texts[index] for index in indices])
        tokenize_seconds = time.perf_counter() - began
        counts = [text.count for text in tokenized]
        self._refuse_long(call, dict(zip(indices, counts, strict=True)))
        lane = Lane.QUERY if call.input_type == "query" else Lane.DOCUMENT
        with stage_span("queue and infer"):
            entries = await self.scheduler.submit(
                tokenized,
                lane=lane,
                deadline=deadline,
                origin=current_origin(),
            )
        vectors = self._collect(entries, indices)
        rows = truncate_dimensions(np.stack(vectors), dimensions)
        self._refuse_unusable(rows, indices)
        texts = map(EmbeddedText, rows, counts)
        return (
            dict(zip(indices, texts, strict=True)),
            EmbedTimings(tokenize_seconds, *_queue_and_infer_seconds(entries)),
        )

    async def _tokenize(self, call: EmbedCall, texts: Sequence[str]) -> list[TokenizedText]:
        prompts = format_inputs(texts, input_type=call.input_type, instruction=call.instruction)
        cut = _cut_side(call)
        if sum(map(len, prompts)) <= TOKENIZE_INLINE_CHARACTERS:
            return self._tokenizer.encode(prompts, cut=cut, limit=call.max_tokens)
        return await asyncio.to_thread(
            self._tokenizer.encode, prompts, cut=cut, limit=call.max_tokens
        )

    async def _run_batch(
        self, entries: Sequence[QueuedText], timeout_seconds: float
    ) -> Float32Matrix:
        lane = entries[0].lane
        batch = pad_batch(
            [entry.text for entry in entries],
            pad_token_id=self._tokenizer.end_token_id,
            max_length=self._tokenizer.max_length,
        )
        self._metrics.observe_batch(lane.label, batch)
        seconds = self._metrics.batch_seconds.labels(lane.label)
        with batch_span([entry.origin for entry in entries], batch), seconds.time():
            states = await self._backend.infer(
                batch, timeout_seconds=timeout_seconds, priority=lane.value
            )
        for entry in entries:
            entry.model_seconds = states.seconds
        if isinstance(states, HiddenStates):
            return pool_states(states.values, batch.attention_mask, self._pooling)
        return states.values.astype(np.float32)

    def _assemble(self, call: EmbedCall, texts: Sequence[EmbeddedText]) -> Embeddings:
        vectors: Float32Matrix = np.stack([text.vector for text in texts])
        truncated = tuple(index for index, text in enumerate(texts) if text.count.truncated)
        prompt_tokens = sum(text.count.kept for text in texts)
        self._metrics.texts.labels(call.input_type).inc(len(texts))
        self._metrics.tokens.labels(call.input_type).inc(prompt_tokens)
        self._metrics.truncated_texts.inc(len(truncated))
        rows = l2_normalize(vectors) if call.normalize else vectors
        return Embeddings(rows, prompt_tokens, truncated)

    def _cache_keys(self, call: EmbedCall, dimensions: int) -> list[bytes]:
        """Compute each text's key; none if the cache is disabled."""
        if not self.cache.enabled:
            return []
        # The side is always part of the key: whether a text is cut is known once it is tokenized.
        scope = (
            self._space.fingerprint(dimensions),
            call.input_type,
            call.instruction or "",
            _cut_side(call),
            str(call.max_tokens or self._tokenizer.max_length),
        )
        return [self.cache.key(text, *scope) for text in call.texts]

    def _look_up(self, keys: Sequence[bytes]) -> dict[int, EmbeddedText]:
        cached = {index: self.cache.get(key) for index, key in enumerate(keys)}
        embedded = {index: text for index, text in cached.items() if text is not None}
        self._metrics.cache_lookups.labels("hit").inc(len(embedded))
        self._metrics.cache_lookups.labels("miss").inc(len(keys) - len(embedded))
        return embedded

    def check_dimensions(self, dimensions: int | None) -> int:
        """Return the dimensions that a request gets.

        Raises:
            InvalidRequestError: The model does not have so many, or they are too few.
        """
        hidden_size = self._backend.spec.hidden_size
        if dimensions is None:
            return self.default_dimensions
        if MIN_DIMENSIONS <= dimensions <= hidden_size:
            return dimensions
        msg = f"`dimensions` is {dimensions}; this model allows {MIN_DIMENSIONS} to {hidden_size}."
        raise InvalidRequestError(msg, param="dimensions")

    def _refuse_long(self, call: EmbedCall, counts: dict[int, TokenCount]) -> None:
        """Refuse texts that are too long if the call does; `counts` is keyed by their index."""
        long = [index for index, count in counts.items() if count.truncated]
        if call.truncation != "refuse" or not long:
            return
        count = counts[long[0]]
        msg = (
            f"Text {long[0]} has {'' if count.exact else 'more than '}{count.total} tokens; the "
            f"limit is {call.max_tokens or self._tokenizer.max_length}. Shorten it, or "
            f"{call.truncate_hint}."
        )
        if long[1:]:
            msg += f" In all, {len(long)} texts are too long."
        raise InvalidRequestError(msg, index=long[0], code="text_too_long")

    def _collect(
        self, entries: Sequence[QueuedText], indices: Sequence[int]
    ) -> list[Float32Vector]:
        """Collect the vectors of finished entries, or raise the first error with its text."""
        vectors: list[Float32Vector] = []
        for index, entry in zip(indices, entries, strict=True):
            result = entry.done.result()
            if isinstance(result, BadVectorError):
                self._metrics.refused_vectors.inc()
                msg = (
                    f"Text {index} has no usable vector, even when embedded alone. "
                    f"{result.message} Float16 models overflow on some texts: serve a float32 or "
                    "bfloat16 export, or change the text."
                )
                raise BadVectorError(msg, index=index)
            if isinstance(result, EmbeddingServerError):
                raise result
            vectors.append(result)
        return vectors

    def _refuse_unusable(self, rows: Float32Matrix, indices: Sequence[int]) -> None:
        """Refuse rows that became zero when they were truncated to `dimensions`."""
        for row in unusable_rows(rows):
            self._metrics.refused_vectors.inc()
            index = indices[row]
            msg = (
                f"The vector of text {index} is zero in its first {rows.shape[1]} dimensions. "
                "Request more `dimensions`."
            )
            raise BadVectorError(msg, index=index)


def _check_call(call: EmbedCall) -> None:
    if call.input_type == "document" and call.instruction is not None:
        msg = "`instruction` applies to queries only. Send `input_type: query` too, or omit it."
        raise InvalidRequestError(msg, param="instruction")
    if call.input_type == "query" and call.truncation == "start":
        msg = (
            "Truncating the start of a query would remove its instruction. Truncate the end, or "
            "shorten the query."
        )
        raise InvalidRequestError(msg, param="truncate")
    for index, text in enumerate(call.texts):
        if not text.strip():
            msg = f"Text {index} is blank, so nothing was embedded. Remove it or give it content."
            raise InvalidRequestError(msg, index=index, code="blank_text")


def _cut_side(call: EmbedCall) -> CutSide:
    return "start" if call.truncation == "start" else "end"


def _queue_and_infer_seconds(entries: Sequence[QueuedText]) -> tuple[float, float]:
    arrived = min(entry.arrived for entry in entries)
    started = min(entry.started for entry in entries)
    finished = max(entry.finished for entry in entries)
    return max(0.0, started - arrived), finished - started
