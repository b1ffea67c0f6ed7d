"""One call: what is left to send, what came back, and how it ends. Knows no transport."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Literal

from .errors import (
    AuthenticationError,
    EmbeddingConnectionError,
    EmbeddingError,
    FingerprintChangedError,
    ModelNotFoundError,
    OverloadedError,
    RequestTooLargeError,
)
from .fingerprints import FingerprintGuard
from .planning import Batch, checked_sizes, plan_batches, split_batch
from .progress import ProgressReport
from .results import EmbeddingResult, Vector
from .settings import ClientSettings
from .stats import ClientStats
from .wire import BatchAnswer, EmbedOptions

__all__ = ["EmbedJob", "OnError"]

OnError = Literal["raise", "isolate"]

# What a part of the batch would meet as well as the whole.
_NOT_ABOUT_A_TEXT = (
    AuthenticationError,
    EmbeddingConnectionError,
    FingerprintChangedError,
    ModelNotFoundError,
    OverloadedError,
)


class EmbedJob:
    """Hand out the batches of one call and collect their answers; safe to share by threads.

    The texts may be a window of a stream: then `first` is the index of its first one there.

    Raises:
        TypeError: `texts` is no sequence of strings.
        InvalidRequestError: A text is blank or no Unicode text, and `on_error` is "raise".
    """

    def __init__(
        self,
        texts: Sequence[str],
        *,
        settings: ClientSettings,
        options: EmbedOptions,
        guard: FingerprintGuard,
        report: ProgressReport,
        on_error: OnError = "raise",
        first: int = 0,
    ) -> None:
        self.options = options
        self.stopped = threading.Event()
        self._count = len(texts)
        self._isolate = on_error == "isolate"
        self._guard = guard
        self._report = report
        self._stats = ClientStats()
        self._lock = threading.Lock()
        self._error: EmbeddingError | None = None
        self._completed: dict[int, Vector] = {}
        self._failed: dict[int, EmbeddingError] = {}
        self._truncated: list[int] = []
        self._prompt_tokens = 0
        self._last: BatchAnswer | None = None
        self._queue = deque(self._plan(texts, settings, first))

    @property
    def pending(self) -> int:
        """Return the number of batches that nobody has taken yet."""
        return len(self._queue)

    def next_batch(self) -> Batch | None:
        """Take a batch to send; None when none is left or the call has failed."""
        with self._lock:
            return self._queue.popleft() if self._queue and not self.stopped.is_set() else None

    def accept(self, batch: Batch, answer: BatchAnswer) -> None:
        """Keep the vectors of a batch.

        Raises:
            EmbeddingError: They are of another embedding space than those before.
        """
        self._guard.check(answer.dimensions, answer.fingerprint)
        with self._lock:
            self._completed.update(zip(batch.indices, answer.vectors, strict=True))
            self._truncated.extend(batch.indices[position] for position in answer.truncated)
            self._prompt_tokens += answer.prompt_tokens
            self._last = answer
        self._report.advance(len(batch.indices))

    def reject(self, batch: Batch, error: EmbeddingError) -> None:
        """Settle a batch that failed: cut it up, set its text aside, or let the call fail."""
        with self._lock:
            if self._can_split(batch, error):
                self._queue.extendleft(reversed(split_batch(batch, error.positions)))
                return
            indices = [batch.indices[position] for position in error.positions] or batch.indices
            error.failed_indices = tuple(sorted(indices))
            isolated = self._isolate and not isinstance(error, _NOT_ABOUT_A_TEXT)
            if isolated:
                self._failed[batch.indices[0]] = error
            elif self._error is None:
                self._error = error
        if isolated:
            self._report.advance(1)
        else:
            self.stop()

    def count(self, stats: ClientStats) -> None:
        """Add what the requests for a batch did."""
        with self._lock:
            self._stats += stats

    def stop(self) -> None:
        """Hand out nothing more and wake whoever waits to try again."""
        self.stopped.set()

    def result(self) -> EmbeddingResult:
        """Return what the call gave; call it when nothing of it is running any more.

        Raises:
            EmbeddingError: The call failed; `completed` holds what was done until then.
        """
        if self._error is not None:
            self._error.completed = self._completed
            raise self._error
        last = self._last
        return EmbeddingResult(
            count=self._count,
            completed=self._completed,
            failed=dict(sorted(self._failed.items())),
            dimensions=last.dimensions if last else 0,
            model=last.model if last else "",
            fingerprint=last.fingerprint if last else "",
            prompt_tokens=self._prompt_tokens,
            truncated=tuple(sorted(self._truncated)),
            stats=self._stats,
        )

    def _plan(self, texts: Sequence[str], settings: ClientSettings, first: int) -> list[Batch]:
        sizes, refused = checked_sizes(texts, first=first)
        if refused and not self._isolate:
            error = next(iter(refused.values()))
            error.failed_indices = tuple(refused)
            raise error
        self._failed.update(refused)
        self._report.advance(len(refused))
        return plan_batches(
            texts,
            sizes,
            [index for index in range(len(texts)) if index not in refused],
            max_texts=settings.batch_size,
            max_bytes=settings.max_batch_bytes,
        )

    def _can_split(self, batch: Batch, error: EmbeddingError) -> bool:
        if len(batch.indices) == 1 or self.stopped.is_set():
            return False
        if isinstance(error, RequestTooLargeError):
            return True
        return self._isolate and not isinstance(error, _NOT_ABOUT_A_TEXT)
