"""When to try again, and how long to wait first: one layer, shared by both clients."""

from __future__ import annotations

import email.utils
import logging
import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

from tenacity import RetryCallState, retry_if_exception
from tenacity.retry import retry_base

from .errors import EmbeddingError, EmbeddingTimeoutError
from .settings import ClientSettings

__all__ = ["RetryDetails", "Tries", "parse_retry_after", "retry_arguments", "wait_seconds"]

MAX_BACKOFF_SECONDS = 16.0
MAX_RETRY_AFTER_SECONDS = 60.0
# A gateway whose Triton is away says "one second" each time, and a model of gigabytes takes a
# minute to load: after so many tries its word is doubled each time.
TRIES_BY_ITS_WORD = 4
# Batches that were turned away together should not all come back in the same instant.
RETRY_AFTER_SPREAD = 0.25

_logger = logging.getLogger("qwen3_triton_client")


@dataclass(frozen=True, slots=True)
class RetryDetails:
    """Describe a retry that is about to happen."""

    wait_seconds: float
    """Seconds until the next try."""
    retry_number: int
    """1 for the second try."""
    texts: int
    """Number of texts in the request."""
    error: EmbeddingError
    """What the last try ended with."""


class Tries:
    """The tries of one request: how many, how long, and when the last may begin."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._end: float | None = None
        self.count = 0
        self.seconds = 0.0

    @contextmanager
    def one(self) -> Generator[float]:
        """Count a try and yield the seconds that it may take.

        The deadline runs from the first of them: waiting for a slot is no failure.

        Raises:
            EmbeddingTimeoutError: No time is left for it.
        """
        began = time.monotonic()
        if self._end is None:
            self._end = began + self._settings.deadline_seconds
        left = self._end - began
        if left <= 0:
            msg = f"`deadline_seconds` of {self._settings.deadline_seconds:g} s passed"
            raise EmbeddingTimeoutError(msg)
        self.count += 1
        try:
            yield min(left, self._settings.timeout)
        finally:
            self.seconds += time.monotonic() - began

    def may_follow(self, wait_seconds: float) -> bool:
        """Tell whether there may be another one in so many seconds."""
        if self._end is None or self.count > self._settings.max_retries:
            return False
        return time.monotonic() + wait_seconds < self._end


class RetryArguments(TypedDict):
    """Name what `tenacity.Retrying` and `tenacity.AsyncRetrying` are given alike."""

    stop: Callable[[RetryCallState], bool]
    wait: Callable[[RetryCallState], float]
    retry: retry_base
    before_sleep: Callable[[RetryCallState], None]
    reraise: bool


def retry_arguments(
    settings: ClientSettings,
    tries: Tries,
    texts: int,
    on_retry: Callable[[RetryDetails], None],
) -> RetryArguments:
    """Return the policy for one request of `texts` texts: exactly `max_retries + 1` tries."""

    def stop(state: RetryCallState) -> bool:
        return not tries.may_follow(state.upcoming_sleep)

    def wait(state: RetryCallState) -> float:
        return wait_seconds(settings, state.attempt_number, _error(state).retry_after_seconds)

    def before_sleep(state: RetryCallState) -> None:
        seconds = state.next_action.sleep if state.next_action else 0.0
        details = RetryDetails(seconds, state.attempt_number, texts, _error(state))
        _logger.warning(
            "retry %d of %d for a batch of %d texts in %.2f s: %s",
            details.retry_number,
            settings.max_retries,
            texts,
            seconds,
            details.error,
        )
        on_retry(details)

    return RetryArguments(
        stop=stop,
        wait=wait,
        retry=retry_if_exception(_is_retryable),
        before_sleep=before_sleep,
        reraise=True,
    )


def wait_seconds(
    settings: ClientSettings,
    attempt: int,
    retry_after_seconds: float | None,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float:
    """Return the seconds to wait after try number `attempt`, counted from 1.

    What the gateway asks for is obeyed, up to a minute, and more than that where it keeps asking.
    Otherwise full jitter: anything between zero and a bound that doubles with each try
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    if retry_after_seconds is not None:
        asked = min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
        doubled = asked * 2.0 ** max(0, attempt - TRIES_BY_ITS_WORD)
        seconds = max(asked, min(doubled, MAX_BACKOFF_SECONDS))
        return seconds * uniform(1.0, 1.0 + RETRY_AFTER_SPREAD)
    bound = settings.backoff_seconds * 2.0 ** min(attempt - 1, 32)
    return uniform(0.0, min(bound, max(MAX_BACKOFF_SECONDS, settings.backoff_seconds)))


def parse_retry_after(
    headers: Mapping[str, str], clock: Callable[[], float] = time.time
) -> float | None:
    """Read `retry-after-ms` or `retry-after` (seconds or an HTTP date), as seconds from now.

    Header names are in lower case. A date in the past is 0, what makes no sense is None.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    value = headers.get("retry-after")
    seconds = _seconds(value)
    if seconds is not None or value is None:
        return seconds
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - clock())


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0.0 <= seconds < float("inf") else None


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, EmbeddingError) and error.retryable


def _error(state: RetryCallState) -> EmbeddingError:
    error = state.outcome.exception() if state.outcome else None
    if not isinstance(error, EmbeddingError):
        msg = "a retry was planned for something that is no EmbeddingError; this is a bug"
        raise TypeError(msg) from error
    return error
