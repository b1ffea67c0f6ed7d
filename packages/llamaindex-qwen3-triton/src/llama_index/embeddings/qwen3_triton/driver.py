"""The road of a call: cache, client, and LlamaIndex's events, callbacks and progress.

`BaseEmbedding`'s own drivers send batch after batch, or all batches at once; they leave requests
running after an error, and do not notice an answer that is too short. Here the client sees to all
of that, and this module wraps each of its batches in what LlamaIndex's observers expect.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage] - documented, not listed
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

__all__ = ["arun", "run"]

_dispatcher = get_dispatcher(__name__)

Embeddings = list[list[float]]
Report = Callable[[Embeddings], None]


def run(
    model: Qwen3TritonEmbedding,
    texts: Sequence[str],
    input_type: InputType,
    *,
    show_progress: bool = False,
) -> Embeddings:
    """Embed texts from any thread, with all that LlamaIndex attaches to it."""
    client, _ = model.clients()
    cache = None
    if model.embeddings_cache is not None:
        cache = _cache(model, input_type, client.fingerprint())
    call = _Call(model, texts, cache, show_progress=show_progress)
    with call.progress:
        call.take_known(call.cache.get(texts) if call.cache else {})
        with _renumbered(call.missing):
            client.embed(call.missing_texts, input_type=input_type, observe=call.observe)
    return call.embeddings


async def arun(
    model: Qwen3TritonEmbedding,
    texts: Sequence[str],
    input_type: InputType,
    *,
    show_progress: bool = False,
) -> Embeddings:
    """Embed texts in an event loop, with all that LlamaIndex attaches to it."""
    _, client = model.clients()
    cache = None
    if model.embeddings_cache is not None:
        cache = _cache(model, input_type, await client.fingerprint())
    call = _Call(model, texts, cache, show_progress=show_progress)
    with call.progress:
        call.take_known(await call.cache.aget(texts) if call.cache else {})
        with _renumbered(call.missing):
            await client.embed(call.missing_texts, input_type=input_type, observe=call.aobserve)
    return call.embeddings


class _Call:
    """What is known of one call, and what is done around each of its batches."""

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
        self._done: dict[int, list[float]] = {}
        self._lock = threading.Lock()  # batches end in threads; stores and bars are not made for it
        self.cache = cache
        self.progress = _Progress(len(texts), show=show_progress)
        self.missing: list[int] = list(range(len(texts)))

    @property
    def missing_texts(self) -> Sequence[str]:
        """Return the texts that the cache does not know."""
        if len(self.missing) == len(self._texts):
            return self._texts  # as it came, so that the client can refuse what is no list
        return [self._texts[index] for index in self.missing]

    @property
    def embeddings(self) -> Embeddings:
        """Return the vectors in the order of the texts."""
        return [self._done[index] for index in range(len(self._texts))]

    def take_known(self, known: dict[int, list[float]]) -> None:
        """Take the vectors that the cache knows, by index of their text."""
        if not known:
            return
        with _reported(self._model, [self._texts[index] for index in known]) as report:
            self._done.update(known)
            report(list(known.values()))
        self.progress.advance(len(known))
        self.missing = [index for index in self.missing if index not in known]

    @contextmanager
    def observe(self, batch: Batch) -> Generator[OnVectors]:
        """Surround a batch that is sent in a thread."""
        if self._model.rate_limiter is not None:
            self._model.rate_limiter.acquire()
        with _reported(self._model, batch.texts) as report:
            yield lambda vectors: report(self._take(batch, vectors, write=True))

    @asynccontextmanager
    async def aobserve(self, batch: Batch) -> AsyncGenerator[OnVectors]:
        """Surround a batch that is sent in a task."""
        if self._model.rate_limiter is not None:
            await self._model.rate_limiter.async_acquire()
        embeddings: Embeddings = []
        with _reported(self._model, batch.texts) as report:
            yield lambda vectors: embeddings.extend(self._take(batch, vectors, write=False))
            report(embeddings)
        if self.cache is not None:
            await self.cache.aput(zip(batch.texts, embeddings, strict=True))

    def _take(self, batch: Batch, vectors: Sequence[Vector], *, write: bool) -> Embeddings:
        embeddings = [vector.tolist() for vector in vectors]
        with self._lock:
            for position, embedding in zip(batch.indices, embeddings, strict=True):
                self._done[self.missing[position]] = embedding
            if write and self.cache is not None:
                self.cache.put(zip(batch.texts, embeddings, strict=True))
            self.progress.advance(len(embeddings))
        return embeddings


class _Progress:
    """A bar that counts texts; nothing unless it is asked for."""

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
    # The fingerprint, not the address: the same model may move, and another one come to its place.
    identity: dict[str, Any] = {"fingerprint": fingerprint, "truncate": model.truncate}
    if input_type == "query":
        identity["instruction"] = model.instruction
        return EmbeddingCache(model.embeddings_cache, identity, "query_embeddings")
    return EmbeddingCache(model.embeddings_cache, identity, "text_embeddings")


@contextmanager
def _reported(model: Qwen3TritonEmbedding, texts: Sequence[str]) -> Generator[Report]:
    """Tell observers of the start of a batch, and of its end or its error."""
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
    """Make an error name texts as the caller counts them, those in the cache included."""
    try:
        yield
    except EmbeddingError as error:
        error.failed_indices = tuple(indices[index] for index in error.failed_indices)
        error.completed = {indices[index]: vector for index, vector in error.completed.items()}
        raise
