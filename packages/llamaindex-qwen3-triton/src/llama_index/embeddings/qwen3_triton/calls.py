"""One call: the cache, the client, and LlamaIndex's events, callbacks and progress bar.

`BaseEmbedding`'s own methods send one batch after another, or all batches at once; they leave
requests running after an error, and do not notice when vectors are missing. Here the client
prevents all that, and this module surrounds each batch with the events that LlamaIndex's observers
expect.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage] - documented, but not in __all__
)
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index.core.utils import (
    get_tqdm_iterable,  # pyright: ignore[reportUnknownVariableType] - its types are incomplete
)

from qwen3_triton_client import Batch, EmbeddingError, InputType, OnVectors, Vector

from .cache import EmbeddingCache

if TYPE_CHECKING:
    from .base import Qwen3TritonEmbedding

_dispatcher = get_dispatcher(__name__)

Embeddings = list[list[float]]
Report = Callable[[Embeddings], None]


def embed(
    model: Qwen3TritonEmbedding,
    texts: Sequence[str],
    input_type: InputType,
    *,
    show_progress: bool = False,
) -> Embeddings:
    """Embed texts from any thread, using the cache and reporting to LlamaIndex."""
    client, _ = model.clients()
    cache = None
    if model.embeddings_cache is not None:
        cache = _cache(model, input_type, client.fingerprint())
    call = _Call(model, texts, cache, show_progress=show_progress)
    with call.progress:
        call.use_cached(call.cache.get(texts) if call.cache else {})
        with _renumbered(call.missing):
            client.embed(call.missing_texts, input_type=input_type, observe=call.observe)
    return call.embeddings


async def aembed(
    model: Qwen3TritonEmbedding,
    texts: Sequence[str],
    input_type: InputType,
    *,
    show_progress: bool = False,
) -> Embeddings:
    """Embed texts in an event loop, using the cache and reporting to LlamaIndex."""
    _, client = model.clients()
    cache = None
    if model.embeddings_cache is not None:
        cache = _cache(model, input_type, await client.fingerprint())
    call = _Call(model, texts, cache, show_progress=show_progress)
    with call.progress:
        call.use_cached(await call.cache.aget(texts) if call.cache else {})
        with _renumbered(call.missing):
            await client.embed(call.missing_texts, input_type=input_type, observe=call.aobserve)
    return call.embeddings


class _Call:
    """The vectors of one call so far, and the events around each of its batches."""

    def __init__(
        self,
        model: Qwen3TritonEmbedding,
        texts: Sequence[str],
        cache: EmbeddingCache | None,
        *,
        show_progress: bool,
    ) -> None:
        self._model = model
        self._texts = texts
        self._embeddings: dict[int, list[float]] = {}
        self._lock = threading.Lock()  # stores and progress bars are not safe for threads
        self.cache = cache
        self.progress = _Progress(len(texts), show=show_progress)
        self.missing: list[int] = list(range(len(texts)))

    @property
    def missing_texts(self) -> Sequence[str]:
        """The texts that are not in the cache."""
        if len(self.missing) == len(self._texts):
            return self._texts  # unchanged, so that the client can refuse what is not a list
        return [self._texts[index] for index in self.missing]

    @property
    def embeddings(self) -> Embeddings:
        """The vectors, in the order of the texts."""
        return [self._embeddings[index] for index in range(len(self._texts))]

    def use_cached(self, cached: dict[int, list[float]]) -> None:
        """Use the vectors from the cache, by index of their text."""
        if not cached:
            return
        with _reported(self._model, [self._texts[index] for index in cached]) as report:
            self._embeddings.update(cached)
            report(list(cached.values()))
        self.progress.advance(len(cached))
        self.missing = [index for index in self.missing if index not in cached]

    @contextmanager
    def observe(self, batch: Batch) -> Generator[OnVectors]:
        """Report a batch that is sent in a thread."""
        if self._model.rate_limiter is not None:
            self._model.rate_limiter.acquire()
        with _reported(self._model, batch.texts) as report:
            yield lambda vectors: report(self._store(batch, vectors, write=True))

    @asynccontextmanager
    async def aobserve(self, batch: Batch) -> AsyncGenerator[OnVectors]:
        """Report a batch that is sent in a task."""
        if self._model.rate_limiter is not None:
            await self._model.rate_limiter.async_acquire()
        embeddings: Embeddings = []
        with _reported(self._model, batch.texts) as report:
            yield lambda vectors: embeddings.extend(self._store(batch, vectors, write=False))
            report(embeddings)
        if self.cache is not None:
            await self.cache.aput(zip(batch.texts, embeddings, strict=True))

    def _store(self, batch: Batch, vectors: Sequence[Vector], *, write: bool) -> Embeddings:
        embeddings = [vector.tolist() for vector in vectors]
        with self._lock:
            for position, embedding in zip(batch.indices, embeddings, strict=True):
                self._embeddings[self.missing[position]] = embedding
            if write and self.cache is not None:
                self.cache.put(zip(batch.texts, embeddings, strict=True))
            self.progress.advance(len(embeddings))
        return embeddings


class _Progress:
    """A progress bar that counts texts, or nothing."""

    def __init__(self, total: int, *, show: bool) -> None:
        bar = cast("Any", get_tqdm_iterable(range(total), show, "Generating embeddings"))
        self._bar = bar if hasattr(bar, "update") else None

    def advance(self, texts: int) -> None:
        if self._bar is not None:
            self._bar.update(texts)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _cache(model: Qwen3TritonEmbedding, input_type: InputType, fingerprint: str) -> EmbeddingCache:
    # The fingerprint, not the address: another model may be served at the same address later.
    identity: dict[str, Any] = {"fingerprint": fingerprint, "truncate": model.truncate}
    if input_type == "query":
        identity["instruction"] = model.instruction
        return EmbeddingCache(model.embeddings_cache, identity, "query_embeddings")
    return EmbeddingCache(model.embeddings_cache, identity, "text_embeddings")


@contextmanager
def _reported(model: Qwen3TritonEmbedding, texts: Sequence[str]) -> Generator[Report]:
    """Report the start of a batch to observers, and its end or its error."""
    payload = model.to_payload()
    chunks = list(texts)
    _dispatcher.event(EmbeddingStartEvent(model_dict=payload))
    with model.callback_manager.event(
        CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}
    ) as event:

        def report(embeddings: Embeddings) -> None:
            event.on_end(payload={EventPayload.CHUNKS: chunks, EventPayload.EMBEDDINGS: embeddings})
            _dispatcher.event(EmbeddingEndEvent(chunks=chunks, embeddings=embeddings))

        yield report


@contextmanager
def _renumbered(indices: Sequence[int]) -> Generator[None]:
    """Make an error count the texts as the caller does, including those from the cache."""
    try:
        yield
    except EmbeddingError as error:
        error.failed_indices = tuple(indices[index] for index in error.failed_indices)
        error.completed = {indices[index]: vector for index, vector in error.completed.items()}
        raise
