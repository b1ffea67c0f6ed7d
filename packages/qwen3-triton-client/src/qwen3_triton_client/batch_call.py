"""One batch on its way: the request, its tries, and what they add up to. Knows no transport."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from .errors import EmbeddingError
from .job import EmbedJob
from .planning import Batch
from .retries import RetryArguments, RetryDetails, Tries, retry_arguments
from .settings import ClientSettings
from .stats import ClientStats
from .statuses import raise_for_status
from .wire import BatchAnswer, WireResponse, build_request, parse_answer

__all__ = ["BatchCall"]


class BatchCall:
    """Turn a batch into a request, and responses into an answer or the errors they stand for."""

    def __init__(self, settings: ClientSettings, job: EmbedJob, batch: Batch) -> None:
        self._settings = settings
        self._job = job
        self._batch = batch
        self._answer: BatchAnswer | None = None
        self.request = build_request(settings, job.options, batch.texts)
        self.tries = Tries(settings)

    def retry_arguments(self, on_retry: Callable[[RetryDetails], None]) -> RetryArguments:
        """Return the policy for its tries."""
        return retry_arguments(self._settings, self.tries, len(self._batch.texts), on_retry)

    def answer(self, response: WireResponse) -> BatchAnswer:
        """Read the response to a try.

        Raises:
            EmbeddingError: It is no success, or no usable answer.
        """
        count = len(self._batch.texts)
        try:
            raise_for_status(response, self._settings, count)
            self._answer = parse_answer(
                response, count=count, dimensions=self._job.options.dimensions
            )
        except EmbeddingError as error:
            error.status = response.status
            error.request_id = response.headers.get("x-request-id")
            raise
        return self._answer

    @contextmanager
    def counted(self, count: Callable[[ClientStats], None]) -> Generator[None]:
        """Hand over what the tries inside add up to, and note in an error how many there were."""
        try:
            yield
        except EmbeddingError as error:
            error.tries = self.tries.count
            raise
        finally:
            answer = self._answer
            stats = ClientStats(
                requests=self.tries.count,
                retries=max(0, self.tries.count - 1),
                texts=len(answer.vectors) if answer else 0,
                prompt_tokens=answer.prompt_tokens if answer else 0,
                request_seconds=self.tries.seconds,
            )
            self._job.count(stats)
            count(stats)
