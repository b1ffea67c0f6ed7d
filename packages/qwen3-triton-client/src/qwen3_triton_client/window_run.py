"""One window of a stream, and the threads that are at it."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue

from .base import Finished
from .job import EmbedJob
from .planning import Batch
from .streaming import Arrived, Ended

__all__ = ["WindowRun"]


class WindowRun:
    """A window of a stream under way, and the threads that are at it."""

    def __init__(
        self,
        offset: int,
        job: EmbedJob,
        events: SimpleQueue[Arrived | Ended],
        max_workers: int,
    ) -> None:
        self.job = job
        self.workers = max(1, min(max_workers, job.pending))
        self._offset = offset
        self._events = events
        self._lock = threading.Lock()
        self._at_work = self.workers
        self._error: BaseException | None = None

    def observe(self, batch: Batch) -> AbstractContextManager[Finished]:
        """Report the vectors of a batch as an event."""
        return nullcontext(
            lambda vectors: self._events.put(Arrived(self._offset, batch.indices, vectors))
        )

    def leave(self, error: BaseException | None = None) -> None:
        """Note that a thread is done with the window; the last one reports its end."""
        with self._lock:
            self._error = self._error or error
            self._at_work -= 1
            ended = not self._at_work
        if ended:
            self._events.put(Ended(self._offset, self._error))
