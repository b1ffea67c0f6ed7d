"""The embedding model: what it accepts, and the order of the stages from texts to unit vectors."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from .backends.base import Backend, ModelSpec, Probe
from .backends.behavior import Behavior, accept_pooling, probe_behavior
from .batching import BatchLimits, Lane
from .cache import VectorCache
from .canary import canary_batch
from .errors import (
    BadVectorError,
    EmbeddingServerError,
    InvalidRequestError,
    StartupError,
)
from .fingerprint import EmbeddingSpace
from .memory import REQUEST_BYTES, Reservation, in_worker
from .metrics import Metrics
from .model_files import find_tokenizer
from .pooling import (
    l2_normalize,
    stack_vectors,
    truncate_dimensions,
    unusable_rows,
    vectors_of,
)
from .rerank_prompt import ANSWERS
from .scheduler import Scheduler
from .served import (
    QUEUED_TEXT_BYTES,
    QUEUED_TOKEN_BYTES,
    ServedModel,
    Timings,
    queue_and_infer_seconds,
)
from .settings import MIN_DIMENSIONS, Settings
from .tensors import (
    EmbeddedText,
    Embeddings,
    Float32Matrix,
    Float32Vector,
    HiddenStates,
    Int64Vector,
    PooledStates,
    TokenBatch,
    TokenCount,
    TokenizedText,
)
from .text_errors import TextErrors
from .tokenization import (
    PROMPT_VERSION,
    CutSide,
    InputType,
    TextTokenizer,
    Tokenization,
    query_prefix,
)
from .tracing import current_origin, stage_span
from .turns import QueuedText

logger: logging.Logger = logging.getLogger(__name__)

# What happens to a text beyond `max_length`: it is refused, or its end or start is cut off.
Truncation: TypeAlias = Literal["refuse", "end", "start"]

TEXTS = TextErrors("text", "embedded", "vector")
# Below this, digests take less than a millisecond.
HASH_INLINE_CHARACTERS = 1 << 18
BLOCK_ROWS = 256
# The sizes of the family by their hidden size (model cards of Qwen3-Embedding).
MODEL_IDS = {
    1024: "Qwen/Qwen3-Embedding-0.6B",
    2560: "Qwen/Qwen3-Embedding-4B",
    4096: "Qwen/Qwen3-Embedding-8B",
}


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """An embedding request, independent of its dialect.

    Attributes:
        max_tokens: Maximum tokens of a text, if the request allows fewer than the gateway.
        priority: Lower goes first among the requests of a key; only its sign counts.
        truncate_hint: How a caller of this dialect asks for truncation.
    """

    texts: Sequence[str]
    input_type: InputType = "document"
    instruction: str | None = None
    dimensions: int | None = None
    truncation: Truncation = "end"
    normalize: bool = True
    max_tokens: int | None = None
    priority: int = 0
    truncate_hint: str = "send `truncate: true`"


class Embedder(ServedModel):
    """The embedding model, and the stages from texts to unit vectors.

    Attributes:
        cache: The vectors of recent texts.
        default_dimensions: Dimensions of a vector where a request sets none.
        behavior: What the model does, once it is connected.
        pooling: What its vectors are.
    """

    kind: ClassVar[str] = "embedding model"

    def __init__(self, backend: Backend, settings: Settings, metrics: Metrics) -> None:
        """Load the tokenizer; `connect` reaches the model.

        Raises:
            StartupError: The tokenizer is missing or invalid.
        """
        path = find_tokenizer(settings.tokenizer_path, settings.model_dir)
        if path is None:
            msg = (
                "TOKENIZER_PATH is not set. Set it to the folder that contains the model's "
                "tokenizer.json."
            )
            raise StartupError(msg)
        tokenizer = TextTokenizer(path, max_length=settings.max_length)
        if not tokenizer.appends_end_token:
            logger.warning("The tokenizer file does not append <|endoftext|>; the gateway does.")
        super().__init__(
            backend,
            tokenizer,
            settings,
            metrics,
            model_id=settings.model_id or _name_of(settings),
            aliases=settings.model_aliases,
            names_setting="EMBED_MODEL_ALIASES",
        )
        self._metrics: Metrics = metrics
        self._space: EmbeddingSpace | None = None
        self.cache: VectorCache = VectorCache(settings.cache_bytes)
        self.default_dimensions: int = settings.output_dim
        self.behavior: Behavior = Behavior("unknown")
        self.pooling: str = settings.pooling

    def fingerprint(self, dimensions: int) -> str:
        """Return the fingerprint of vectors with this many dimensions."""
        assert self._space is not None, "connect() comes first"
        return self._space.fingerprint(dimensions)

    def _build_canary(self, spec: ModelSpec) -> Probe:
        del spec  # a sentence fits any
        return Probe(canary_batch(self.tokenizer))

    async def _accept(self, spec: ModelSpec) -> BatchLimits:
        if spec.hidden_size <= len(ANSWERS):
            msg = (
                f"Model {spec.name!r} returns logits instead of vectors: it is a reranker. Serve "
                "it with RERANK_TRITON_MODEL or RERANK_MODEL_DIR."
            )
            raise StartupError(msg)
        output_dim = self.settings.output_dim
        if output_dim > spec.hidden_size:
            msg = (
                f"EMBED_OUTPUT_DIM is {output_dim}, but model {spec.name!r} has hidden size "
                f"{spec.hidden_size}. Lower EMBED_OUTPUT_DIM or serve a larger model."
            )
            raise StartupError(msg)
        self.model_id: str = self.settings.model_id or MODEL_IDS.get(spec.hidden_size, spec.name)
        self.behavior = await probe_behavior(self.backend, self.tokenizer)
        if self.behavior.pooling == "unknown":
            logger.warning("The model is too slow to be probed: its pooling is taken on trust.")
        if not self.behavior.shares_batches:
            logger.warning("Texts run one by one: in a batch, this model fails or is wrong.")
        self.pooling = accept_pooling(spec, self.behavior, self.settings.pooling)
        self._space = EmbeddingSpace(
            model_id=self.model_id,
            weights_digest=spec.weights_digest,
            tokenizer_digest=self.tokenizer.digest,
            pooling=self.pooling,
            prompt_version=PROMPT_VERSION,
            dtype=spec.output.dtype.name,
            precision=spec.precision,
        )
        return BatchLimits(
            spec.max_batch_size if self.behavior.shares_batches else 1,
            self.settings.max_batch_tokens,
            self.tokenizer.max_length,
        )

    def _describe(self, spec: ModelSpec) -> str:
        place = "model" if spec.pooling == "in_graph" else "gateway"
        return (
            f"hidden size {spec.hidden_size}, pooled in the {place}, up to {spec.max_batch_size} "
            "texts per batch."
        )

    def _rows(self, states: HiddenStates | PooledStates, batch: TokenBatch) -> Float32Matrix:
        return vectors_of(states, batch.attention_mask, self.settings.pooling)

    def _forget_answers(self) -> None:
        self.cache.clear()

    async def embed(
        self,
        call: EmbedCall,
        *,
        deadline: float,
        memory: Reservation | None = None,
        caller: str = "",
    ) -> tuple[Embeddings, Timings]:
        """Embed texts, in their order. Equal ones are embedded once.

        Args:
            call: The texts and how to embed them.
            deadline: When the request times out, in the event loop's time.
            memory: What the request is charged, which grows with what it takes.
            caller: The name of the API key whose turn it takes.

        Raises:
            BackendUnavailableError: The model is unavailable, or has changed since startup.
            InvalidRequestError: A text is blank, `dimensions` is out of range, or a text is too
                long and the call refuses such texts; `index` names the text.
            QueueFullError: Its texts and vectors do not fit into memory, or into the queue.
            EmbeddingServerError: A text could not be embedded.
        """
        scheduler = self.require_ready()
        dimensions = self.check_dimensions(call.dimensions)
        _check_call(call)
        distinct, rows = _distinct(call.texts)
        if memory is not None:
            memory.resize(self._bytes_of(call, len(distinct), dimensions))
        keys = await self._cache_keys(call, distinct, dimensions)
        embedded = self._look_up(distinct, keys)
        missing = [index for index in distinct if index not in embedded]
        self._refuse_long(call, {index: text.count for index, text in embedded.items()})
        timings = Timings()
        if missing:
            computed, timings = await self._compute(
                scheduler,
                call,
                missing,
                dimensions,
                deadline=deadline,
                memory=memory,
                caller=caller,
            )
            embedded |= computed
            for index, key in zip(distinct, keys, strict=False):
                if index in computed:
                    self.cache.put(key, computed[index])
        texts = [embedded[index] for index in distinct]
        return self._assemble(call, texts, rows), timings

    async def _compute(
        self,
        scheduler: Scheduler,
        call: EmbedCall,
        indices: Sequence[int],
        dimensions: int,
        *,
        deadline: float,
        memory: Reservation | None,
        caller: str,
    ) -> tuple[dict[int, EmbeddedText], Timings]:
        """Embed the texts of a call that are not cached."""
        began = time.perf_counter()
        with stage_span("tokenize"):
            tokenized = await self._tokenize(call, indices, deadline)
        tokenize_seconds = time.perf_counter() - began
        counts = [text.count for text in tokenized]
        self._refuse_long(call, dict(zip(indices, counts, strict=True)))
        if memory is not None:
            tokens = sum(count.kept for count in counts)
            memory.resize(memory.size_bytes + QUEUED_TOKEN_BYTES * tokens)
        lane = Lane.QUERY if call.input_type == "query" else Lane.DOCUMENT
        with stage_span("queue and infer"):
            entries = await scheduler.submit(
                tokenized,
                lane=lane,
                deadline=deadline,
                caller=caller,
                priority=call.priority,
                origin=current_origin(),
            )
        collected = self._collect(entries, indices)
        vectors = [truncate_dimensions(vector, dimensions) for vector in collected]
        if dimensions < collected[0].size:  # the scheduler has checked the whole vectors
            self._refuse_unusable(vectors, indices)
        texts = map(EmbeddedText, vectors, counts)
        return (
            dict(zip(indices, texts, strict=True)),
            Timings(tokenize_seconds, *queue_and_infer_seconds(entries)),
        )

    async def _tokenize(
        self, call: EmbedCall, indices: Sequence[int], deadline: float
    ) -> list[TokenizedText]:
        """Tokenize the texts of these indices, in steps between which others get their turn."""
        texts = [call.texts[index] for index in indices]
        prefix = query_prefix(call.instruction) if call.input_type == "query" else ""
        tokenization = Tokenization(
            self.tokenizer,
            texts,
            prefix=prefix,
            cut=_cut_side(call),
            limit=call.max_tokens,
            indices=indices,
        )
        characters = len(prefix) * len(texts) + sum(map(len, texts))
        await self._finish(tokenization, characters=characters, deadline=deadline)
        return tokenization.tokenized()

    def _assemble(
        self, call: EmbedCall, distinct: Sequence[EmbeddedText], rows: Int64Vector
    ) -> Embeddings:
        vectors = stack_vectors([text.vector for text in distinct])
        texts = [distinct[row] for row in rows.tolist()]
        truncated = tuple(index for index, text in enumerate(texts) if text.count.truncated)
        prompt_tokens = sum(text.count.kept for text in texts)
        self._metrics.texts.labels(call.input_type).inc(len(texts))
        self._metrics.tokens.labels(call.input_type).inc(prompt_tokens)
        self._metrics.truncated_texts.inc(len(truncated))
        if call.normalize:
            for block in _blocks(vectors):
                block[:] = l2_normalize(block)
        return Embeddings(vectors, rows, prompt_tokens, truncated)

    def _bytes_of(self, call: EmbedCall, distinct: int, dimensions: int) -> int:
        """Estimate what a call takes: its texts, and a queue entry and vectors per distinct one."""
        # The model's row, and what is stacked from it.
        floats = self.backend.spec.hidden_size + dimensions
        texts_bytes = sum(map(sys.getsizeof, call.texts))
        vectors_bytes = distinct * (QUEUED_TEXT_BYTES + floats * np.dtype(np.float32).itemsize)
        return REQUEST_BYTES + texts_bytes + vectors_bytes

    async def _cache_keys(
        self, call: EmbedCall, distinct: Sequence[int], dimensions: int
    ) -> list[bytes]:
        """Compute each distinct text's key; none if the cache is disabled."""
        if not self.cache.enabled:
            return []
        # The side is always part of the key: whether a text is cut is known once it is tokenized.
        scope = (
            self.fingerprint(dimensions),
            call.input_type,
            call.instruction or "",
            _cut_side(call),
            str(call.max_tokens or self.tokenizer.max_length),
        )
        texts = [call.texts[index] for index in distinct]
        if sum(map(len, texts)) <= HASH_INLINE_CHARACTERS:
            return self.cache.keys(texts, *scope)
        return await in_worker(self.cache.keys, texts, *scope)

    def _look_up(self, distinct: Sequence[int], keys: Sequence[bytes]) -> dict[int, EmbeddedText]:
        if not keys:
            return {}
        cached = {index: self.cache.get(key) for index, key in zip(distinct, keys, strict=True)}
        embedded = {index: text for index, text in cached.items() if text is not None}
        self._metrics.cache_lookups.labels("hit").inc(len(embedded))
        self._metrics.cache_lookups.labels("miss").inc(len(keys) - len(embedded))
        return embedded

    def check_dimensions(self, dimensions: int | None) -> int:
        """Return the dimensions that a request gets.

        Raises:
            InvalidRequestError: The model does not have so many, or they are too few.
        """
        hidden_size = self.backend.spec.hidden_size
        if dimensions is None:
            return self.default_dimensions
        if MIN_DIMENSIONS <= dimensions <= hidden_size:
            return dimensions
        msg = f"`dimensions` is {dimensions}; this model allows {MIN_DIMENSIONS} to {hidden_size}."
        raise InvalidRequestError(msg, param="dimensions")

    def _refuse_long(self, call: EmbedCall, counts: dict[int, TokenCount]) -> None:
        """Refuse texts that are too long if the call does; `counts` is keyed by their index."""
        if call.truncation == "refuse":
            limit = call.max_tokens or self.tokenizer.max_length
            TEXTS.refuse_long(counts.items(), limit=limit, hint=call.truncate_hint)

    def _collect(
        self, entries: Sequence[QueuedText], indices: Sequence[int]
    ) -> list[Float32Vector]:
        """Collect the vectors of finished entries, or raise the first error with its text."""
        vectors: list[Float32Vector] = []
        for index, entry in zip(indices, entries, strict=True):
            result = entry.result
            if isinstance(result, BadVectorError):
                self._metrics.refused_vectors.inc()
                raise TEXTS.unusable(index, result.message)
            if isinstance(result, EmbeddingServerError):
                raise TEXTS.failed(index, result)
            vectors.append(result)
        return vectors

    def _refuse_unusable(self, vectors: Sequence[Float32Vector], indices: Sequence[int]) -> None:
        """Refuse vectors that became zero when they were truncated to `dimensions`."""
        for start in range(0, len(vectors), BLOCK_ROWS):
            rows = stack_vectors(vectors[start : start + BLOCK_ROWS])
            for row in unusable_rows(rows):
                self._metrics.refused_vectors.inc()
                index = indices[start + row]
                msg = (
                    f"The vector of text {index} is zero in its first {rows.shape[1]} dimensions. "
                    "Request more `dimensions`."
                )
                raise BadVectorError(msg, index=index)


def _name_of(settings: Settings) -> str:
    """Return what the model is called until it has been reached."""
    return settings.model_dir.name if settings.model_dir else settings.triton_model


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
    TEXTS.refuse_blank(call.texts)


def _distinct(texts: Sequence[str]) -> tuple[list[int], Int64Vector]:
    """Return the indices of the distinct texts, and which of them each text equals."""
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        first.setdefault(text, index)
    positions = {text: position for position, text in enumerate(first)}
    rows = np.array([positions[text] for text in texts], dtype=np.int64)
    return [*first.values()], rows


def _cut_side(call: EmbedCall) -> CutSide:
    return "start" if call.truncation == "start" else "end"


def _blocks(vectors: Float32Matrix) -> Iterator[Float32Matrix]:
    """Divide vectors into blocks of rows: intermediate results of all would double their memory."""
    return (vectors[start : start + BLOCK_ROWS] for start in range(0, len(vectors), BLOCK_ROWS))
