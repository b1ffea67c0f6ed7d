"""What the two clients share: everything but the sending."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Self, TypeVar

from . import settings as defaults
from .errors import EmbeddingError
from .fingerprints import FingerprintGuard
from .job import EmbedJob, OnError
from .planning import Batch
from .results import Vector
from .retries import RetryArguments, RetryDetails, retry_arguments
from .settings import ClientSettings, InputType
from .stats import ClientStats, StatsCounter
from .statuses import raise_for_status
from .wire import BatchAnswer, EmbedOptions, WireResponse, parse_answer

__all__ = ["ClientBase", "Finished", "OnRetry"]

HttpClient = TypeVar("HttpClient")
Finished = Callable[[Sequence[Vector]], None]
OnRetry = Callable[[RetryDetails], None]


class ClientBase(Generic[HttpClient]):
    """Hold the settings of a client, and turn calls into jobs and answers into results."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        dimensions: int | None = None,
        instruction: str | None = None,
        truncate: bool | None = None,
        batch_size: int = defaults.DEFAULT_BATCH_SIZE,
        max_batch_bytes: int = defaults.DEFAULT_MAX_BATCH_BYTES,
        max_concurrency: int = defaults.DEFAULT_MAX_CONCURRENCY,
        timeout: float = defaults.DEFAULT_TIMEOUT_SECONDS,
        max_retries: int = defaults.DEFAULT_MAX_RETRIES,
        deadline_seconds: float = defaults.DEFAULT_DEADLINE_SECONDS,
        backoff_seconds: float = defaults.DEFAULT_BACKOFF_SECONDS,
        http_client: HttpClient | None = None,
        on_retry: OnRetry | None = None,
    ) -> None:
        """Make a client. Nothing is sent before the first call.

        Args:
            base_url: Where the gateway listens; default `QWEN3_TRITON_URL`, else
                `http://localhost:8101`.
            api_key: Key to present; default `QWEN3_TRITON_API_KEY`, else none.
            model: Name to ask for; the gateway refuses any other than the one it serves.
            dimensions: Length of the vectors; default the gateway's.
            instruction: What queries are for; default the gateway's.
            truncate: Whether texts that are too long are cut (True) or refused (False); default
                the gateway's.
            batch_size: Most texts in one request, 1 to 2048.
            max_batch_bytes: Most bytes of text in one request.
            max_concurrency: Most requests in flight, over all threads or all tasks of a loop.
            timeout: Seconds for one try to connect, to send, and to go without hearing anything.
            max_retries: Further tries after the first.
            deadline_seconds: Seconds after which a request is not tried again.
            backoff_seconds: Longest wait before the first further try; doubles with each.
            http_client: Your own httpx2 client. It is neither closed nor pickled with this one.
            on_retry: Called before each further try; from worker threads too.

        Raises:
            ValueError: A setting is out of range.
        """
        given = {"base_url": base_url, "api_key": api_key}
        settings = ClientSettings(
            **{name: value for name, value in given.items() if value is not None},
            model=model,
            dimensions=dimensions,
            instruction=instruction,
            truncate=truncate,
            batch_size=batch_size,
            max_batch_bytes=max_batch_bytes,
            max_concurrency=max_concurrency,
            timeout=timeout,
            max_retries=max_retries,
            deadline_seconds=deadline_seconds,
            backoff_seconds=backoff_seconds,
        )
        self._set_up(settings, FingerprintGuard(), StatsCounter(), http_client, on_retry)

    @classmethod
    def from_settings(
        cls,
        settings: ClientSettings,
        *,
        http_client: HttpClient | None = None,
        on_retry: OnRetry | None = None,
    ) -> Self:
        """Make a client of settings that are already checked."""
        client = cls.__new__(cls)
        client._set_up(settings, FingerprintGuard(), StatsCounter(), http_client, on_retry)
        return client

    @property
    def settings(self) -> ClientSettings:
        """Return the settings, which never change."""
        return self._settings

    @property
    def stats(self) -> ClientStats:
        """Return what the client has done so far."""
        return self._stats.total

    def share(self, guard: FingerprintGuard, stats: StatsCounter) -> None:
        """Compare fingerprints and count together with another client; see `as_async`."""
        self._guard = guard
        self._stats = stats

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self._settings, "guard": self._guard, "on_retry": self._on_retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_up(state["settings"], state["guard"], StatsCounter(), None, state["on_retry"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy may share what a pickle cannot carry: the user's own HTTP client and callback.
        return type(self).from_settings(
            self._settings, http_client=self._http_client, on_retry=self._on_retry
        )

    def _set_up(
        self,
        settings: ClientSettings,
        guard: FingerprintGuard,
        stats: StatsCounter,
        http_client: HttpClient | None,
        on_retry: OnRetry | None,
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._stats = stats
        self._http_client = http_client
        self._on_retry = on_retry

    def _job(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType,
        instruction: str | None,
        dimensions: int | None,
        truncate: bool | None,
        on_error: OnError,
    ) -> EmbedJob:
        if input_type not in {"document", "query"}:
            msg = f"`input_type` must be 'document' or 'query', not {input_type!r}"
            raise ValueError(msg)
        if input_type == "document" and instruction is not None:
            msg = "`instruction` belongs to queries: documents are embedded as they are"
            raise ValueError(msg)
        settings = self._settings
        options = EmbedOptions(
            input_type=input_type,
            instruction=(instruction or settings.instruction) if input_type == "query" else None,
            dimensions=dimensions or settings.dimensions,
            truncate=settings.truncate if truncate is None else truncate,
        )
        return EmbedJob(
            texts, settings=settings, options=options, guard=self._guard, on_error=on_error
        )

    def _retry_arguments(self, batch: Batch) -> RetryArguments:
        def on_retry(details: RetryDetails) -> None:
            self._stats.add(retries=1)
            if self._on_retry is not None:
                self._on_retry(details)

        return retry_arguments(self._settings, len(batch.texts), on_retry)

    def _answer(self, response: WireResponse, batch: Batch, options: EmbedOptions) -> BatchAnswer:
        """Turn a response into an answer, or into the error that it stands for."""
        count = len(batch.texts)
        try:
            raise_for_status(response, self._settings, count)
            answer = parse_answer(response, count=count, dimensions=options.dimensions)
        except EmbeddingError as error:
            error.status = response.status
            error.request_id = response.headers.get("x-request-id")
            raise
        self._stats.add(texts=count, prompt_tokens=answer.prompt_tokens)
        return answer
