"""The client for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from contextvars import copy_context
from queue import SimpleQueue
from typing import Self, TypeVar

import httpx2
from tenacity import Retrying

from .async_client import AsyncEmbeddingClient
from .base import PROBE, ClientBase
from .connections import SyncSender
from .errors import EmbeddingError
from .exchange import Exchange
from .job import Batch, EmbedJob, FingerprintGuard, OnError, OnVectors
from .reporting import Hooks, Progress, ProgressReport
from .results import EmbeddingResult, Vector
from .settings import ClientSettings, InputType
from .streaming import Arrived, Ended, OnFailure, TextStream, WindowRun, windows
from .wire import BatchAnswer, EmbedOptions

Answer = TypeVar("Answer")

Observe = Callable[[Batch], AbstractContextManager[OnVectors]]
"""Returns a context manager that is open while a batch is sent; see `EmbeddingClient.embed`."""


class EmbeddingClient(ClientBase[httpx2.Client]):
    """Embed texts through the gateway, from any number of threads.

    Close it with `close()` or a `with` block; connections also close when it is collected. It can
    be pickled, copied and used after a fork; each copy opens connections of its own.

    Examples:
        >>> with EmbeddingClient("http://localhost:8101") as client:
        ...     vectors = client.embed_documents(["Basalt is a volcanic rock."])
        ...     query = client.embed_query("What is lava made of when it cools?")
    """

    def embed_documents(
        self, texts: Sequence[str], *, progress: Progress = False
    ) -> list[list[float]]:
        """Embed texts to be found. Returns one list of floats for each, in their order.

        Raises:
            EmbeddingError: Some text has no vector; `completed` holds those that were done.
        """
        return self.embed(texts, progress=progress).to_lists()

    def embed_query(self, text: str) -> list[float]:
        """Embed a text to search by, with the instruction before it. Returns a list of floats.

        Raises:
            EmbeddingError: There is no vector for it.
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
        """Embed texts and return their vectors with all that the gateway said about them.

        Args:
            texts: Any number; none gives an empty result without a request.
            input_type: What the texts are: "document", to be found, or "query", to search by.
            instruction: What the queries are for; this call only.
            dimensions: Length of the vectors; this call only.
            truncate: Whether texts that are too long are cut or refused; this call only.
            on_error: "raise" ends the call at the first error, and waits for the requests in
                flight to end. "isolate" halves a batch that failed until the text that cannot be
                embedded is alone, and lets the rest through: see `EmbeddingResult.failed`.
            progress: True shows a bar; a function is called with the texts done and all there are.
            observe: Called with each batch for a context manager that is open while the batch is
                sent, in the thread that sends it; it is handed a function to call with the vectors.

        Raises:
            EmbeddingError: Some text has no vector; `completed` holds those that were done.
            TypeError: `texts` is no sequence of strings.
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
        """Embed a stream of any length in bounded memory, giving `(index, vector)`.

        A window of texts is read and embedded while the one before it is given, so the next
        vectors are computed while the caller is at work. Closing the iterator ends the requests.

        Args:
            texts: Any iterable; it is read in the caller's thread, some thousands at a time.
            input_type: As for `embed`, and so the next three.
            instruction: What the queries are for.
            dimensions: Length of the vectors.
            truncate: Whether texts that are too long are cut or refused.
            in_order: Whether vectors are given in the order of the texts, or as they come.
            on_failure: Called with the index of each text that cannot be embedded, and the error;
                the others go on. Without it the first such text ends the stream.
            progress: As for `embed`.

        Raises:
            EmbeddingError: Indices count from the start of the stream; `completed` holds what was
                done and not yet given.
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

    def fingerprint(self) -> str:
        """Return the digest that names the embedding space of this client's vectors.

        Use it to name a cache or an index: vectors of different fingerprints cannot be compared.
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
            ModelNotFoundError: The gateway has no such route: it is older than this client.
            EmbeddingError: The gateway does not answer.
        """
        exchange = self._tokenizer_exchange()
        with exchange.counted(self._count):
            return self._send(exchange, threading.Event())

    def as_async(self, *, http_client: httpx2.AsyncClient | None = None) -> AsyncEmbeddingClient:
        """Return the asynchronous client with the same settings, statistics and fingerprint."""
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

    def _run(self, job: EmbedJob, observe: Observe) -> None:
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
                self._work(job, observe)  # to wait only would cost one thread more
                for future in futures:
                    future.result()
            except BaseException:  # also an interrupt while waiting: let the workers wind down
                job.stop()
                raise

    def _work(self, job: EmbedJob, observe: Observe) -> None:
        """Send batches of the job until there is none left."""
        while (batch := job.next_batch()) is not None:
            try:
                with observe(batch) as on_vectors:
                    answer = self._request(job, batch)
                    job.accept(batch, answer)
                    on_vectors(answer.vectors)
            except EmbeddingError as error:
                job.reject(batch, error)
            except BaseException:
                job.stop()
                raise

    def _request(self, job: EmbedJob, batch: Batch) -> BatchAnswer:
        exchange = self._embed_exchange(job, batch)
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
        events: SimpleQueue[Arrived | Ended] = SimpleQueue()
        workers = self._settings.max_concurrency
        # The same threads for all windows: each new one would claim memory of its own.
        with closing(report), ThreadPoolExecutor(workers, "qwen3-triton-client") as pool:
            try:
                while True:
                    while stream.has_room and (window := next(source, None)):
                        run = WindowRun(*stream.open_window(window, make_job), events, workers)
                        for _ in range(run.workers):
                            pool.submit(copy_context().run, self._work_on_window, run)
                    if not stream.is_running:
                        return
                    stream.take(events.get())
                    yield from stream.give()
            except EmbeddingError as error:
                stream.stop()
                while stream.is_running:
                    stream.wind_down(events.get())
                error.completed = stream.held()
                raise
            finally:
                stream.stop()

    def _work_on_window(self, run: WindowRun) -> None:
        try:
            self._work(run.job, run.observe)
        except BaseException as error:  # for the thread that waits for the event to raise
            run.leave(error)
        else:
            run.leave()


def _unobserved(_: Batch) -> AbstractContextManager[OnVectors]:
    return nullcontext(lambda _: None)
