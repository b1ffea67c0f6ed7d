"""The synchronous client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import httpx2
from tenacity import Retrying

from .async_client import AsyncEmbeddingClient
from .base import PROBE, ClientBase
from .connections import SyncSender
from .errors import EmbeddingError
from .exchange import Exchange
from .job import Batch, EmbedJob, FingerprintGuard, Job, OnError, OnVectors
from .reporting import Hooks, Progress, ProgressReport
from .rerank import OnBlank, RerankJob, RerankResult
from .results import EmbeddingResult, Vector
from .settings import ClientSettings, InputType
from .streaming import BatchEmbedded, OnFailure, TextStream, WindowEnded, WindowRun, windows
from .wire import BatchAnswer, EmbedOptions

Answer = TypeVar("Answer")
Item = TypeVar("Item")

Observe = Callable[[Batch], AbstractContextManager[OnVectors]]
"""Returns a context manager that is open while a batch is sent; see `EmbeddingClient.embed`."""

_Observe = Callable[[Batch], AbstractContextManager[Callable[[Sequence[Item]], None]]]


class EmbeddingClient(ClientBase[httpx2.Client]):
    """A client that embeds texts through the gateway, for any number of threads.

    Close it with `close()` or a `with` block; connections are also closed when it is
    garbage-collected. It can be pickled, copied, and used after a fork; each copy opens its own
    connections.

    Examples:
        >>> with EmbeddingClient("http://localhost:8101") as client:
        ...     vectors = client.embed_documents(["Basalt is a volcanic rock."])
        ...     query = client.embed_query("What is lava made of when it cools?")
    """

    def embed_documents(
        self, texts: Sequence[str], *, progress: Progress = False
    ) -> list[list[float]]:
        """Embed documents; return one list of floats per text, in the order of the texts.

        Raises:
            EmbeddingError: A text has no vector; `completed` holds the vectors that did arrive.
        """
        return self.embed(texts, progress=progress).to_lists()

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, with the instruction in front of it; return a list of floats.

        Raises:
            EmbeddingError: The query has no vector.
        """
        return self.embed([text], input_type="query").to_lists()[0]

    def embed(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType = "document",
        instruction: str | None = None,
        dimensions: int | None = None,
        truncate: bool | None = None,
        on_error: OnError = "raise",
        progress: Progress = False,
        observe: Observe | None = None,
    ) -> EmbeddingResult:
        """Embed texts and return their vectors with the gateway's metadata.

        Args:
            texts: Any number of texts. For none, the result is empty and no request is sent.
            input_type: "document" for texts to search in, "query" for texts to search with.
            instruction: The task that the queries are for, for this call only.
            dimensions: Length of the vectors, for this call only.
            truncate: Whether texts that are too long are cut or refused, for this call only.
            on_error: "raise" ends the call at the first error, after the requests in flight have
                ended. "isolate" splits a failed batch until the text that cannot be embedded is
                alone, and embeds all others; see `EmbeddingResult.failed`.
            progress: True shows a progress bar; a function is called with the number of finished
                texts and the total.
            observe: Called with each batch, in the thread that sends it. Returns a context manager
                that stays open while the batch is sent; it yields a function to call with the
                vectors.

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
            self._run(job, observe or _unobserved)
            return job.result()

    def iter_embed(
        self,
        texts: Iterable[str],
        *,
        input_type: InputType = "document",
        instruction: str | None = None,
        dimensions: int | None = None,
        truncate: bool | None = None,
        in_order: bool = True,
        on_failure: OnFailure | None = None,
        progress: Progress = False,
    ) -> Iterator[tuple[int, Vector]]:
        """Embed a stream of any length in bounded memory; yield `(index, vector)` pairs.

        The next window of texts is embedded while the caller handles the vectors of this one.
        Closing the iterator ends the requests.

        Args:
            texts: Any iterable. It is read in the caller's thread, a few thousand texts at a time.
            input_type: "document" for texts to search in, "query" for texts to search with.
            instruction: The task that the queries are for.
            dimensions: Length of the vectors.
            truncate: Whether texts that are too long are cut or refused.
            in_order: Whether to yield vectors in the order of the texts, or as they arrive.
            on_failure: Called with the index of each text that cannot be embedded, and the error;
                the others are embedded. Without it, the first such text ends the stream.
            progress: True shows a progress bar; a function is called with the number of finished
                texts and the total.

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

    def rerank(
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
        """Score documents against a query with the gateway's reranker; the best come first.

        Documents are sent in batches, like the texts of `embed`; scores do not depend on them.

        Args:
            query: What the documents are scored against.
            documents: Any number of texts. For none, the result is empty and no request is sent.
            top_n: Number of documents to return. Default: all.
            instruction: What makes a document relevant. Default: the gateway's, not the client's,
                which is for embeddings.
            model: Name of the reranker to request. The gateway refuses any other than the one it
                serves.
            truncate: Whether the end of a document that is too long is cut or the call refused.
                Default: the client's, else the gateway's.
            on_blank: What is done about blank documents, which no model can read: "raise" refuses
                the call, "last" puts them after all others, with a score of 0.

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
        self._run(job, _unobserved)
        return job.result()

    def fingerprint(self) -> str:
        """Return the digest that names the embedding space of this client's vectors.

        Use it to name a cache or an index: vectors with different fingerprints cannot be compared.
        The gateway is asked once.

        Raises:
            EmbeddingError: The gateway does not answer.
        """
        if not self._fingerprint:
            self._fingerprint = self.embed([PROBE]).fingerprint
        return self._fingerprint

    def tokenizer_json(self) -> bytes:
        """Download the served model's `tokenizer.json`, to count tokens as the gateway does.

        Raises:
            ModelNotFoundError: The gateway is older than this route.
            EmbeddingError: The gateway does not answer.
        """
        exchange = self._tokenizer_exchange()
        with exchange.counted(self._count):
            return self._send(exchange, threading.Event())

    def info(self) -> dict[str, Any]:
        """Return what the gateway says of its model and its limits, such as `max_length`.

        Raises:
            ModelNotFoundError: The server has no route `/info`.
            EmbeddingError: The gateway does not answer.
        """
        exchange = self._info_exchange()
        with exchange.counted(self._count):
            return self._send(exchange, threading.Event())

    def as_async(self, *, http_client: httpx2.AsyncClient | None = None) -> AsyncEmbeddingClient:
        """Return an asynchronous client that shares settings, statistics and fingerprint."""
        twin = AsyncEmbeddingClient.from_settings(
            self._settings, http_client=http_client, hooks=self._hooks
        )
        twin.share(self._guard, self._stats)
        return twin

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_up(
        self,
        settings: ClientSettings,
        guard: FingerprintGuard,
        http_client: httpx2.Client | None,
        hooks: Hooks,
    ) -> None:
        super()._set_up(settings, guard, http_client, hooks)
        self._sender = SyncSender(settings, http_client)

    def _run(self, job: Job[Item], observe: _Observe[Item]) -> None:
        workers = min(self._settings.max_concurrency, job.pending)
        if workers <= 1:
            self._work(job, observe)
            return
        with ThreadPoolExecutor(workers - 1, "qwen3-triton-client") as pool:
            futures = [
                pool.submit(copy_context().run, self._work, job, observe)
                for _ in range(workers - 1)
            ]
            try:
                self._work(job, observe)  # only waiting here would cost one more thread
                for future in futures:
                    future.result()
            except BaseException:  # including an interrupt: the workers must stop, too
                job.stop()
                raise

    def _work(self, job: Job[Item], observe: _Observe[Item]) -> None:
        """Send batches of the job until none is left."""
        while (batch := job.next_batch()) is not None:
            try:
                with observe(batch) as on_items:
                    answer = self._request(job, batch)
                    job.accept(batch, answer)
                    on_items(answer.items)
            except EmbeddingError as error:
                job.reject(batch, error)
            except BaseException:
                job.stop()
                raise

    def _request(self, job: Job[Item], batch: Batch) -> BatchAnswer[Item]:
        exchange = job.exchange(batch)
        with exchange.counted(job.count, self._count):
            return self._send(exchange, job.stopped)

    def _send(self, exchange: Exchange[Answer], stopped: threading.Event) -> Answer:
        """Send a request, with retries until it is answered or `stopped` is set."""

        def pause(seconds: float) -> None:
            stopped.wait(seconds)

        # tenacity's objects form a reference cycle. Nothing in it may refer to the job, or vectors
        # would stay in memory until the next garbage collection.
        retrying = Retrying(**exchange.retry_arguments(self._hooks.retried), sleep=pause)
        return retrying(self._try_once, exchange, stopped)

    def _try_once(self, exchange: Exchange[Answer], stopped: threading.Event) -> Answer:
        if stopped.is_set():
            msg = "The call failed or was interrupted before this batch was sent."
            raise EmbeddingError(msg)
        return exchange.answer(self._sender.send(exchange.request, exchange.tries))

    def _stream(
        self,
        texts: Iterable[str],
        stream: TextStream,
        options: EmbedOptions,
        on_error: OnError,
        report: ProgressReport,
    ) -> Generator[tuple[int, Vector]]:
        def make_job(window: Sequence[str], first: int) -> EmbedJob:
            return self._job(window, options, on_error, report, first=first)

        source = windows(texts, self._settings)
        events: SimpleQueue[BatchEmbedded | WindowEnded] = SimpleQueue()
        workers = self._settings.max_concurrency
        # The same threads serve all windows: each new thread would claim memory of its own.
        with closing(report), ThreadPoolExecutor(workers, "qwen3-triton-client") as pool:
            try:
                while True:
                    while stream.has_room and (window := next(source, None)):
                        run = WindowRun(*stream.open_window(window, make_job), events, workers)
                        for _ in range(run.workers):
                            pool.submit(copy_context().run, self._work_on_window, run)
                    if not stream.is_running:
                        return
                    stream.handle(events.get())
                    yield from stream.ready_vectors()
            except EmbeddingError as error:
                stream.stop()
                while stream.is_running:
                    stream.handle_after_failure(events.get())
                error.completed = stream.unyielded_vectors()
                raise
            finally:
                stream.stop()

    def _work_on_window(self, run: WindowRun) -> None:
        try:
            self._work(run.job, run.observe)
        except BaseException as error:  # raised again in the thread that waits for the event
            run.end_worker(error)
        else:
            run.end_worker()


def _unobserved(_: Batch) -> AbstractContextManager[Callable[[object], None]]:
    return nullcontext(lambda _: None)
