"""What the two clients share: everything but the sending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar

from . import settings as defaults
from .exchange import Exchange
from .job import EmbedJob, FingerprintGuard, OnError
from .reporting import Hooks, OnRetry, OnStats, ProgressReport, StatsCounter
from .results import ClientStats
from .settings import ClientSettings, InputType
from .wire import EmbedOptions, info_request, parse_info, tokenizer_request

HttpClient = TypeVar("HttpClient")

PROBE = "fingerprint"  # every text has the fingerprint of its embedding space


class ClientBase(Generic[HttpClient]):
    """The part of a client that turns calls into jobs, and jobs into requests."""

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
        on_stats: OnStats | None = None,
    ) -> None:
        """Create a client. Nothing is sent before the first call.

        Args:
            base_url: Address of the gateway. Default: `QWEN3_TRITON_URL`, else
                `http://localhost:8101`.
            api_key: Key to send. Default: `QWEN3_TRITON_API_KEY`, else none.
            model: Model name to request. The gateway refuses any other than the one it serves.
            dimensions: Length of the vectors. Default: the gateway's.
            instruction: The task that queries are for. Default: the gateway's.
            truncate: Whether texts that are too long are cut (True) or refused (False). Default:
                the gateway's.
            batch_size: Maximum number of texts per request, 1 to 2048.
            max_batch_bytes: Maximum bytes of text per request.
            max_concurrency: Maximum number of requests in flight, over all threads or over all
                tasks of an event loop.
            timeout: Seconds for one try.
            max_retries: Retries after the first try.
            deadline_seconds: Seconds for all tries of a request and the waits between them.
            backoff_seconds: Upper bound of the first random wait; doubles with each retry.
            http_client: Your own httpx2 client. It is neither closed nor pickled with this one.
            on_retry: Called before each retry, possibly from a worker thread.
            on_stats: Called after each batch with the statistics of its requests, possibly from a
                worker thread.

        Raises:
            ValueError: A setting is out of range.
        """
        # None here means the default, and for `ClientSettings` it means no key.
        explicit = {"base_url": base_url, "api_key": api_key}
        settings = ClientSettings(
            **{name: value for name, value in explicit.items() if value is not None},
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
        self._set_up(settings, FingerprintGuard(), http_client, Hooks(on_retry, on_stats))

    @classmethod
    def from_settings(
        cls,
        settings: ClientSettings,
        *,
        http_client: HttpClient | None = None,
        hooks: Hooks | None = None,
    ) -> Self:
        """Create a client from settings."""
        client = cls.__new__(cls)
        client._set_up(settings, FingerprintGuard(), http_client, hooks or Hooks())
        return client

    @property
    def settings(self) -> ClientSettings:
        """The settings, which never change."""
        return self._settings

    @property
    def stats(self) -> ClientStats:
        """What the requests of this client did so far."""
        return self._stats.total

    def share(self, guard: FingerprintGuard, stats: StatsCounter) -> None:
        """Share the fingerprint and the statistics of another client; see `as_async`."""
        self._guard = guard
        self._stats = stats

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self._settings, "guard": self._guard, "hooks": self._hooks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_up(state["settings"], state["guard"], None, state["hooks"])

    def __copy__(self) -> Self:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Unlike a pickle, a copy can share the user's own HTTP client.
        return type(self).from_settings(
            self._settings, http_client=self._http_client, hooks=self._hooks
        )

    def _set_up(
        self,
        settings: ClientSettings,
        guard: FingerprintGuard,
        http_client: HttpClient | None,
        hooks: Hooks,
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._stats = StatsCounter()
        self._http_client = http_client
        self._hooks = hooks
        self._fingerprint = ""

    def _options(
        self,
        *,
        input_type: InputType,
        instruction: str | None,
        dimensions: int | None,
        truncate: bool | None,
    ) -> EmbedOptions:
        if input_type not in {"document", "query"}:
            msg = f"`input_type` must be 'document' or 'query', not {input_type!r}."
            raise ValueError(msg)
        if input_type == "document" and instruction is not None:
            msg = "`instruction` is for queries only; documents are embedded without one."
            raise ValueError(msg)
        settings = self._settings
        if instruction is None and input_type == "query":
            instruction = settings.instruction
        return EmbedOptions(
            input_type=input_type,
            instruction=instruction,
            dimensions=settings.dimensions if dimensions is None else dimensions,
            truncate=settings.truncate if truncate is None else truncate,
        )

    def _job(
        self,
        texts: Sequence[str],
        options: EmbedOptions,
        on_error: OnError,
        report: ProgressReport,
        *,
        first: int = 0,
    ) -> EmbedJob:
        return EmbedJob(
            texts,
            settings=self._settings,
            options=options,
            guard=self._guard,
            report=report,
            on_error=on_error,
            first=first,
        )

    def _tokenizer_exchange(self) -> Exchange[bytes]:
        request = tokenizer_request(self._settings)
        return Exchange(self._settings, request, lambda response: response.content)

    def _info_exchange(self) -> Exchange[dict[str, Any]]:
        return Exchange(self._settings, info_request(self._settings), parse_info)

    def _count(self, stats: ClientStats) -> None:
        self._stats.add(stats)
        self._hooks.counted(stats)
