"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, closing, nullcontext
from typing import Any, Self, TypeVar

import httpx2
from tenacity import AsyncRetrying

from .base import PROBE, ClientBase
from .connections import AsyncSender
from .errors import EmbeddingError
from .exchange import Exchange
from .job import Batch, EmbedJob, FingerprintGuard, Job, OnError, OnVectors
from .reporting import Hooks, Progress, ProgressReport
from .rerank import OnBlank, RerankJob, RerankResult
from .results import EmbeddingResult, Vector
from .settings import ClientSettings, InputType
from .streaming import BatchEmbedded, OnFailure, TextStream, WindowEnded, awindows
from .wire import BatchAnswer, EmbedOptions

Answer = TypeVar("Answer")
Item = TypeVar("Item")

AsyncObserve = Callable[[Batch], AbstractAsyncContextManager[OnVectors]]
"""Returns a context manager that is open while a batch is sent; see `EmbeddingClient.embed`."""

_AsyncObserve = Callable[[Batch], AbstractAsyncContextManager[Callable[[Sequence[Item]], None]]]


class _CallFailedError(Exception):
    """The reason for a task group to cancel its other tasks; the job has the actual error."""


class AsyncEmbeddingClient(ClientBase[httpx2.AsyncClient]):
    """A client that embeds texts through the gateway, for any number of tasks and event loops.

    Each event loop gets its own connections. They are closed by `aclose()`, by an `async with`
    block, and at the end of the loop. It can be pickled and copied.

    Examples:
        >>> async with AsyncEmbeddingClient("http://localhost:8101") as client:
        ...     vectors = await client.embed_documents(["Basalt is a volcanic rock."])
        ...     query = await client.embed_query("What is lava made of when it cools?")
    """

    async def embed_documents(
        self, texts: Sequence[str], *, progress: Progress = False
    ) -> list[list[float]]:
        """Embed documents; return one list of floats per text, in the order of the texts.

        Raises:
            EmbeddingError: A text has no vector; `completed` holds the vectors that did arrive.
        """
        return (await self.embed(texts, progress=progress)).to_lists()

    async def embed_query(self, text: str) -> list[float]:
        """Embed a query, with the instruction in front of it; return a list of floats.

        Raises:
            EmbeddingError: The query has no vector.
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
        progress: Progress = False,
        observe: AsyncObserve | None = None,
    ) -> EmbeddingResult:
        """Embed texts and return their vectors with the gateway's metadata.

        The arguments are those of `EmbeddingClient.embed`, except that `observe` returns an
        asynchronous context manager. The first error, or a cancellation, cancels the requests in
        flight.

        Raises:
            EmbeddingError: A text has no vector; `completed` holds the vectors that did arrive.
            TypeError: `texts` is not a sequence of strings.
        """
        options = self._options(
            input_type=input_type,
            instruction=instruction,
            dimensions=dimensions,
            truncate=truncate,
        )
        with closing(ProgressReport(progress, texts)) as report:
            job = self._job(texts, options, on_error, report)
            await self._run(job, observe or _unobserved)
            return job.result()

    def aiter_embed(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        input_type: InputType = "document",
        instruction: str | None = None,
        dimensions: int | None = None,
        truncate: bool | None = None,
        in_order: bool = True,
        on_failure: OnFailure | None = None,
        progress: Progress = False,
    ) -> AsyncIterator[tuple[int, Vector]]:
        """Embed a stream of any length in bounded memory; yield `(index, vector)` pairs.

        The arguments are those of `EmbeddingClient.iter_embed`; `texts` may be asynchronous, too.
        Closing the iterator, or canceling the task that awaits it, cancels the requests.

        Raises:
            EmbeddingError: A text has no vector. Indices count from the start of the stream;
                `completed` holds the vectors that arrived but were not yet yielded.
        """
        options = self._options(
            input_type=input_type,
            instruction=instruction,
            dimensions=dimensions,
            truncate=truncate,
        )
        on_error: OnError = "isolate" if on_failure else "raise"
        stream = TextStream(in_order=in_order, on_failure=on_failure)
        return self._stream(texts, stream, options, on_error, ProgressReport(progress, texts))

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        model: str | None = None,
        truncate: bool | None = None,
        on_blank: OnBlank = "raise",
    ) -> RerankResult:
        """Score documents against a query; the arguments are those of `EmbeddingClient.rerank`.

        The first error, or a cancellation, cancels the requests in flight.

        Raises:
            EmbeddingError: A document has no score; `failed_indices` names it.
            TypeError: `query` is not a string, or `documents` not a sequence of strings.
            ValueError: `top_n` is below 1.
        """
        job = RerankJob(
            query,
            documents,
            settings=self._settings,
            top_n=top_n,
            instruction=instruction,
            model=model,
            truncate=truncate,
            on_blank=on_blank,
        )
        await self._run(job, _unobserved)
        return job.result()

    async def fingerprint(self) -> str:
        """Return the digest that names the embedding space; see `EmbeddingClient.fingerprint`.

        Raises:
            EmbeddingError: The gateway does not answer.
        """
        if not self._fingerprint:
            self._fingerprint = (await self.embed([PROBE])).fingerprint
        return self._fingerprint

    async def tokenizer_json(self) -> bytes:
        """Download the served model's `tokenizer.json`; see `EmbeddingClient.tokenizer_json`.

        Raises:
            ModelNotFoundError: The gateway is older than this route.
            EmbeddingError: The gateway does not answer.
        """
        exchange = self._tokenizer_exchange()
        with exchange.counted(self._count):
            return await self._send(exchange)

    async def info(self) -> dict[str, Any]:
        """Return the gateway's description of its model and limits; see `EmbeddingClient.info`.

        Raises:
            ModelNotFoundError: The server has no route `/info`.
            EmbeddingError: The gateway does not answer.
        """
        exchange = self._info_exchange()
        with exchange.counted(self._count):
            return await self._send(exchange)

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
        http_client: httpx2.AsyncClient | None,
        hooks: Hooks,
    ) -> None:
        super()._set_up(settings, guard, http_client, hooks)
        self._sender = AsyncSender(settings, http_client)

    async def _run(self, job: Job[Item], observe: _AsyncObserve[Item]) -> None:
        workers = min(self._settings.max_concurrency, job.pending)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(job, observe))
        except ExceptionGroup as errors:
            for error in errors.exceptions:
                if not isinstance(error, _CallFailedError):
                    raise error from None

    async def _work(self, job: Job[Item], observe: _AsyncObserve[Item]) -> None:
        """Send batches of the job until none is left.

        Raises:
            _CallFailedError: The job has failed, so its other tasks should be canceled.
        """
        while (batch := job.next_batch()) is not None:
            try:
                async with observe(batch) as on_items:
                    answer = await self._request(job, batch)
                    job.accept(batch, answer)
                    on_items(answer.items)
            except EmbeddingError as error:
                job.reject(batch, error)
        if job.stopped.is_set():
            raise _CallFailedError

    async def _request(self, job: Job[Item], batch: Batch) -> BatchAnswer[Item]:
        exchange = job.exchange(batch)
        with exchange.counted(job.count, self._count):
            return await self._send(exchange)

    async def _send(self, exchange: Exchange[Answer]) -> Answer:
        """Send a request, with retries until it is answered."""
        arguments = exchange.retry_arguments(self._hooks.retried)
        return await AsyncRetrying(**arguments, sleep=asyncio.sleep)(self._try_once, exchange)

    async def _try_once(self, exchange: Exchange[Answer]) -> Answer:
        return exchange.answer(await self._sender.send(exchange.request, exchange.tries))

    async def _stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        stream: TextStream,
        options: EmbedOptions,
        on_error: OnError,
        report: ProgressReport,
    ) -> AsyncGenerator[tuple[int, Vector]]:
        def make_job(window: Sequence[str], first: int) -> EmbedJob:
            return self._job(window, options, on_error, report, first=first)

        events: asyncio.Queue[BatchEmbedded | WindowEnded] = asyncio.Queue()
        tasks: set[asyncio.Task[None]] = set()
        async with aclosing(awindows(texts, self._settings)) as source:
            with closing(report):
                try:
                    while True:
                        while stream.has_room and (window := await anext(source, None)):
                            offset, job = stream.open_window(window, make_job)
                            tasks.add(asyncio.create_task(self._run_window(offset, job, events)))
                        if not stream.is_running:
                            return
                        stream.handle(await events.get())
                        for item in stream.ready_vectors():
                            yield item
                except EmbeddingError as error:
                    await _cancel(tasks)
                    while not events.empty():
                        stream.handle_after_failure(events.get_nowait())
                    error.completed = stream.unyielded_vectors()
                    raise
                finally:
                    await _cancel(tasks)

    async def _run_window(
        self, offset: int, job: EmbedJob, events: asyncio.Queue[BatchEmbedded | WindowEnded]
    ) -> None:
        def observe(batch: Batch) -> AbstractAsyncContextManager[OnVectors]:
            return nullcontext(
                lambda vectors: events.put_nowait(BatchEmbedded(offset, batch.indices, vectors))
            )

        try:
            await self._run(job, observe)
        except Exception as error:
            events.put_nowait(WindowEnded(offset, error))
        else:
            events.put_nowait(WindowEnded(offset))


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()


def _unobserved(_: Batch) -> AbstractAsyncContextManager[Callable[[object], None]]:
    return nullcontext(lambda _: None)
