"""One request to the gateway: its tries, the waits between them, and its answer. No I/O."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar

from tenacity import RetryCallState, retry_if_exception
from tenacity.retry import retry_base

from .errors import EmbeddingError, EmbeddingTimeoutError
from .results import ClientStats
from .settings import ClientSettings
from .wire import BatchAnswer, WireRequest, WireResponse, raise_for_status

MAX_BACKOFF_SECONDS = 16.0
MAX_RETRY_AFTER_SECONDS = 60.0
# A gateway whose Triton is down asks for one second each time, and a model of several gigabytes
# takes a minute to load: from this try on, the wait it asks for is doubled each time.
TRIES_BEFORE_DOUBLING = 4
# Batches that were turned away together should not all come back at the same instant.
RETRY_AFTER_SPREAD = 0.25

Answer = TypeVar("Answer")

_logger = logging.getLogger("qwen3_triton_client")


@dataclass(frozen=True, slots=True)
class RetryDetails:
    """A retry that is about to happen.

    Attributes:
        wait_seconds: Seconds until the next try.
        retry_number: 1 for the second try.
        texts: Number of texts in the request.
        error: What ended the last try.
    """

    wait_seconds: float
    retry_number: int
    texts: int
    error: EmbeddingError


class Exchange(Generic[Answer]):
    """A request, its tries, and the way to parse a successful response.

    Attributes:
        request: What is sent on every try.
        texts: Number of texts in the request.
        tries: The tries so far.
    """

    def __init__(
        self,
        settings: ClientSettings,
        request: WireRequest,
        parse: Callable[[WireResponse], Answer],
        *,
        texts: int = 0,
    ) -> None:
        self.request = request
        self.texts = texts
        self.tries: Tries = Tries(settings)
        self._settings = settings
        self._parse = parse
        self._answer: Answer | None = None

    def answer(self, response: WireResponse) -> Answer:
        """Read the response to a try.

        Raises:
            EmbeddingError: It is not a success, or not a usable answer.
        """
        try:
            raise_for_status(response, self._settings, texts=self.texts)
            self._answer = self._parse(response)
        except EmbeddingError as error:
            error.status = response.status
            error.request_id = response.headers.get("x-request-id")
            raise
        return self._answer

    @property
    def stats(self) -> ClientStats:
        """What the tries did so far."""
        answer = self._answer
        return ClientStats(
            requests=self.tries.count,
            retries=max(0, self.tries.count - 1),
            texts=self.texts if answer is not None else 0,
            prompt_tokens=answer.prompt_tokens if isinstance(answer, BatchAnswer) else 0,
            request_seconds=self.tries.seconds,
        )

    @contextmanager
    def counted(self, *counters: Callable[[ClientStats], None]) -> Generator[None]:
        """Pass what the tries inside did to each counter, and note their number in an error."""
        try:
            yield
        except EmbeddingError as error:
            error.tries = self.tries.count
            raise
        finally:
            for count in counters:
                count(self.stats)

    def retry_arguments(self, on_retry: Callable[[RetryDetails], None]) -> RetryArguments:
        """Return the retry policy: at most `max_retries + 1` tries within the deadline."""
        settings, tries, texts = self._settings, self.tries, self.texts

        def stop(state: RetryCallState) -> bool:
            return not tries.may_follow(state.upcoming_sleep)

        def wait(state: RetryCallState) -> float:
            return wait_seconds(settings, state.attempt_number, _error(state).retry_after_seconds)

        def before_sleep(state: RetryCallState) -> None:
            seconds = state.next_action.sleep if state.next_action else 0.0
            details = RetryDetails(seconds, state.attempt_number, texts, _error(state))
            _logger.warning(
                "Retry %d of %d in %.2f s (texts in the request: %d): %s",
                details.retry_number,
                settings.max_retries,
                seconds,
                texts,
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


class Tries:
    """The tries of one request: their number, their time, and the deadline.

    Attributes:
        count: Tries begun.
        seconds: Seconds spent in them.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._end: float | None = None
        self.count: int = 0
        self.seconds: float = 0.0

    @contextmanager
    def one(self) -> Generator[float]:
        """Count a try and yield the seconds that it may take.

        The deadline runs from the first try, so waiting for a slot does not count.

        Raises:
            EmbeddingTimeoutError: The deadline has passed.
        """
        began = time.monotonic()
        if self._end is None:
            self._end = began + self._settings.deadline_seconds
        left = self._end - began
        if left <= 0:
            msg = f"The {self._settings.deadline_seconds:g} s of `deadline_seconds` passed."
            raise EmbeddingTimeoutError(msg)
        self.count += 1
        try:
            yield min(left, self._settings.timeout)
        finally:
            self.seconds += time.monotonic() - began

    def may_follow(self, wait_seconds: float) -> bool:
        """Return whether another try may begin after a wait."""
        if self._end is None or self.count > self._settings.max_retries:
            return False
        return time.monotonic() + wait_seconds < self._end


class RetryArguments(TypedDict):
    """The arguments that `tenacity.Retrying` and `tenacity.AsyncRetrying` have in common."""

    stop: Callable[[RetryCallState], bool]
    wait: Callable[[RetryCallState], float]
    retry: retry_base
    before_sleep: Callable[[RetryCallState], None]
    reraise: bool


def wait_seconds(
    settings: ClientSettings,
    attempt: int,
    retry_after_seconds: float | None,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float:
    """Return the seconds to wait after try number `attempt`, counted from 1.

    A wait that the gateway asks for is respected, up to a minute, and lengthened if it keeps
    asking. Otherwise full jitter: anything between zero and a bound that doubles with each try
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    if retry_after_seconds is not None:
        asked = min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
        doubled = asked * 2.0 ** max(0, attempt - TRIES_BEFORE_DOUBLING)
        seconds = max(asked, min(doubled, MAX_BACKOFF_SECONDS))
        return seconds * uniform(1.0, 1.0 + RETRY_AFTER_SPREAD)
    bound = settings.backoff_seconds * 2.0 ** min(attempt - 1, 32)
    return uniform(0.0, min(bound, max(MAX_BACKOFF_SECONDS, settings.backoff_seconds)))


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, EmbeddingError) and error.retryable


def _error(state: RetryCallState) -> EmbeddingError:
    error = state.outcome.exception() if state.outcome else None
    if not isinstance(error, EmbeddingError):
        msg = "A retry was planned for something that is not an EmbeddingError; this is a bug."
        raise TypeError(msg) from error
    return error
