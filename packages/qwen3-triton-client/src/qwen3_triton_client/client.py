"""The client for threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Self

import httpx2
from tenacity import Retrying

from .async_client import AsyncEmbeddingClient
from .base import ClientBase, Finished, OnRetry
from .errors import EmbeddingError
from .fingerprints import FingerprintGuard
from .job import EmbedJob, OnError
from .planning import Batch
from .results import EmbeddingResult, Vector
from .senders import SyncSender
from .settings import ClientSettings, InputType
from .stats import StatsCounter
from .streaming import shifted_errors, window_size, windows
from .wire import BatchAnswer, WireRequest, build_request

__all__ = ["EmbeddingClient", "Observe"]

Observe = Callable[[Batch], AbstractContextManager[Finished]]


class EmbeddingClient(ClientBase[httpx2.Client]):
    """Embed texts through the gateway, from any number of threads.

    Close it with `close()` or a `with` block; connections also close when it is collected. It can
    be pickled, copied and used after a fork; each copy opens connections of its own.

    Examples:
        >>> with EmbeddingClient("http://localhost:8101") as client:
        ...     vectors = client.embed_documents(["Basalt is a volcanic rock."])
        ...     query = client.embed_query("What is lava made of when it cools?")
    """

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed texts to be found. Returns one list of floats for each, in their order.

        Raises:
            EmbeddingError: Some text has no vector; `completed` holds those that were done.
        """
        return self.embed(texts).to_lists()

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
            observe: Called with each batch for a context manager that is open while the batch is
                sent, in the thread that sends it; it is handed a function to call with the vectors.

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
        self._run(job, observe or _unobserved)
        return job.result()

    def iter_embed(
        self, texts: Iterable[str], *, input_type: InputType = "document"
    ) -> Iterator[tuple[int, Vector]]:
        """Embed a stream of any length in bounded memory, giving `(index, vector)` in order.

        Texts are read some `batch_size * max_concurrency` at a time; nothing runs while the
        caller holds a vector.

        Raises:
            EmbeddingError: Indices count from the start of the stream; `completed` holds what was
                done and not yet given.
        """
        for offset, window in windows(texts, window_size(self.settings)):
            with shifted_errors(offset):
                result = self.embed(window, input_type=input_type)
            yield from enumerate(result.vectors, offset)

    def as_async(self, *, http_client: httpx2.AsyncClient | None = None) -> AsyncEmbeddingClient:
        """Return the asynchronous client with the same settings, statistics and fingerprint."""
        twin = AsyncEmbeddingClient.from_settings(
            self._settings, http_client=http_client, on_retry=self._on_retry
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
        stats: StatsCounter,
        http_client: httpx2.Client | None,
        on_retry: OnRetry | None,
    ) -> None:
        super()._set_up(settings, guard, stats, http_client, on_retry)
        self._sender = SyncSender(settings, http_client)

    def _run(self, job: EmbedJob, observe: Observe) -> None:
        workers = min(self._settings.max_concurrency, job.pending)
        if workers <= 1:
            self._work(job, observe)
            return
        with ThreadPoolExecutor(workers, "qwen3-triton-client") as pool:
            futures = [
                pool.submit(copy_context().run, self._work, job, observe) for _ in range(workers)
            ]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # also an interrupt while waiting: let the workers wind down
                job.stop()
                raise

    def _work(self, job: EmbedJob, observe: Observe) -> None:
        """Send batches of the job until there is none left."""
        while (batch := job.next_batch()) is not None:
            try:
                with observe(batch) as finished:
                    answer = self._request(job, batch)
                    job.accept(batch, answer)
                    finished(answer.vectors)
            except EmbeddingError as error:
                job.reject(batch, error)
            except BaseException:
                job.stop()
                raise

    def _request(self, job: EmbedJob, batch: Batch) -> BatchAnswer:
        """Send one batch, again and again where that may help."""
        request = build_request(self._settings, job.options, batch.texts)

        def sleep(seconds: float) -> None:
            job.stopped.wait(seconds)

        retrying = Retrying(**self._retry_arguments(batch), sleep=sleep)
        try:
            return retrying(self._try_once, job, batch, request)
        except EmbeddingError as error:
            error.tries = int(retrying.statistics["attempt_number"])
            raise

    def _try_once(self, job: EmbedJob, batch: Batch, request: WireRequest) -> BatchAnswer:
        if job.stopped.is_set():
            msg = "the call had failed or was interrupted before this batch was sent"
            raise EmbeddingError(msg)
        start = time.perf_counter()
        try:
            response = self._sender.send(request)
        finally:
            self._stats.add(requests=1, request_seconds=time.perf_counter() - start)
        return self._answer(response, batch, job.options)


def _unobserved(_: Batch) -> AbstractContextManager[Finished]:
    return nullcontext(lambda _: None)
