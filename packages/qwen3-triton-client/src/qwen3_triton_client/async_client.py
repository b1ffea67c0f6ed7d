"""The client for event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Self

import httpx2
from tenacity import AsyncRetrying

from .base import ClientBase, Finished, OnRetry
from .errors import EmbeddingError
from .fingerprints import FingerprintGuard
from .job import EmbedJob, OnError
from .planning import Batch
from .results import EmbeddingResult, Vector
from .senders import AsyncSender
from .settings import ClientSettings, InputType
from .stats import StatsCounter
from .streaming import awindows, shifted_errors, window_size
from .wire import BatchAnswer, WireRequest, build_request

__all__ = ["AsyncEmbeddingClient", "AsyncObserve"]

AsyncObserve = Callable[[Batch], AbstractAsyncContextManager[Finished]]


class _CallFailedError(Exception):
    """Make a task group cancel what is still running; the job knows the reason."""


class AsyncEmbeddingClient(ClientBase[httpx2.AsyncClient]):
    """Embed texts through the gateway, from any number of tasks and event loops.

    Each event loop gets connections of its own, closed by `aclose()`, an `async with` block, or
    the end of the loop. It can be pickled and copied.

    Examples:
        >>> async with AsyncEmbeddingClient("http://localhost:8101") as client:
        ...     vectors = await client.embed_documents(["Basalt is a volcanic rock."])
        ...     query = await client.embed_query("What is lava made of when it cools?")
    """

    async def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed texts to be found. Returns one list of floats for each, in their order.

        Raises:
            EmbeddingError: Some text has no vector; `completed` holds those that were done.
        """
        return (await self.embed(texts)).to_lists()

    async def embed_query(self, text: str) -> list[float]:
        """Embed a text to search by, with the instruction before it. Returns a list of floats.

        Raises:
            EmbeddingError: There is no vector for it.
        """
        return (await self.embed([text], input_type="query")).to_lists()[0]

    async def embed(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType = "document",
        instruction: str | None = None,
        dimensions: int | None = None,
        truncate: bool | None = None,
        on_error: OnError = "raise",
        observe: AsyncObserve | None = None,
    ) -> EmbeddingResult:
        """Embed texts and return their vectors with all that the gateway said about them.

        The arguments are those of `EmbeddingClient.embed`, but `observe` gives asynchronous
        context managers. The first error, or a cancellation, cancels the requests in flight.

        Raises:
            EmbeddingError: Some text has no vector; `completed` holds those that were done.
            TypeError: `texts` is no sequence of strings.
        """
        job = self._job(
            texts,
            input_type=input_type,
            instruction=instruction,
            dimensions=dimensions,
            truncate=truncate,
            on_error=on_error,
        )
        await self._run(job, observe or _unobserved)
        return job.result()

    async def aiter_embed(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        input_type: InputType = "document",
    ) -> AsyncIterator[tuple[int, Vector]]:
        """Embed a stream of any length in bounded memory, giving `(index, vector)` in order.

        The stream may be asynchronous itself. See `EmbeddingClient.iter_embed`.

        Raises:
            EmbeddingError: Indices count from the start of the stream; `completed` holds what was
                done and not yet given.
        """
        async for offset, window in awindows(texts, window_size(self.settings)):
            with shifted_errors(offset):
                result = await self.embed(window, input_type=input_type)
            for item in enumerate(result.vectors, offset):
                yield item

    async def aclose(self) -> None:
        """Close the connections of the running event loop; a later call opens new ones."""
        await self._sender.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _set_up(
        self,
        settings: ClientSettings,
        guard: FingerprintGuard,
        stats: StatsCounter,
        http_client: httpx2.AsyncClient | None,
        on_retry: OnRetry | None,
    ) -> None:
        super()._set_up(settings, guard, stats, http_client, on_retry)
        self._sender = AsyncSender(settings, http_client)

    async def _run(self, job: EmbedJob, observe: AsyncObserve) -> None:
        workers = min(self._settings.max_concurrency, job.pending)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(job, observe))
        except ExceptionGroup as errors:
            for error in errors.exceptions:
                if not isinstance(error, _CallFailedError):
                    raise error from None

    async def _work(self, job: EmbedJob, observe: AsyncObserve) -> None:
        """Send batches of the job until there is none left.

        Raises:
            _CallFailedError: The job has failed, so nothing else of it is wanted.
        """
        while (batch := job.next_batch()) is not None:
            try:
                async with observe(batch) as finished:
                    answer = await self._request(job, batch)
                    job.accept(batch, answer)
                    finished(answer.vectors)
            except EmbeddingError as error:
                job.reject(batch, error)
        if job.stopped.is_set():
            raise _CallFailedError

    async def _request(self, job: EmbedJob, batch: Batch) -> BatchAnswer:
        """Send one batch, again and again where that may help."""
        request = build_request(self._settings, job.options, batch.texts)
        retrying = AsyncRetrying(**self._retry_arguments(batch), sleep=asyncio.sleep)
        try:
            return await retrying(self._try_once, job, batch, request)
        except EmbeddingError as error:
            error.tries = int(retrying.statistics["attempt_number"])
            raise

    async def _try_once(self, job: EmbedJob, batch: Batch, request: WireRequest) -> BatchAnswer:
        start = time.perf_counter()
        try:
            response = await self._sender.send(request)
        finally:
            self._stats.add(requests=1, request_seconds=time.perf_counter() - start)
        return self._answer(response, batch, job.options)


def _unobserved(_: Batch) -> AbstractAsyncContextManager[Finished]:
    return nullcontext(lambda _: None)
