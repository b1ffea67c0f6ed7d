"""Streams in bounded memory: windows of texts, and the order of their vectors. No I/O.

A stream is embedded window by window. Each window is one `EmbedJob`; its workers report each
finished batch, and the end of the window, as events to the caller's thread or task.
"""

from __future__ import annotations

import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue

from .errors import EmbeddingError
from .job import Batch, EmbedJob, OnVectors
from .results import Vector
from .settings import ClientSettings

OnFailure = Callable[[int, EmbeddingError], None]
"""Called with the index of a text that cannot be embedded, and the error."""

# The next window is embedded while the caller takes the vectors of this one, so that the gateway is
# never idle.
MAX_OPEN_WINDOWS = 2
# The size of a window, in rounds of `max_concurrency` batches: enough to sort texts by length well,
# and for the last batch, sent alone, to cost little.
ROUNDS_PER_WINDOW = 2


@dataclass(frozen=True, slots=True)
class BatchEmbedded:
    """An event: a batch of a window has its vectors.

    Attributes:
        offset: Index of the window's first text in the stream.
        indices: Indices of the batch's texts in the window.
    """

    offset: int
    indices: Sequence[int]
    vectors: Sequence[Vector]


@dataclass(frozen=True, slots=True)
class WindowEnded:
    """An event: no request of a window is running any more.

    Attributes:
        offset: Index of the window's first text in the stream.
        error: What ended it from outside: a bug, a callback's error, an interrupt.
    """

    offset: int
    error: BaseException | None = None


class TextStream:
    """The state of a stream: its open windows, and the vectors that are not yet yielded."""

    def __init__(self, *, in_order: bool, on_failure: OnFailure | None) -> None:
        self._in_order = in_order
        self._on_failure = on_failure
        self._texts_read = 0
        self._texts_settled = 0  # yielded or failed
        self._jobs: dict[int, EmbedJob] = {}  # by offset
        self._unsettled: dict[int, int] = {}  # number of texts of the window, by offset
        self._vectors: dict[int, Vector] = {}
        self._failed: set[int] = set()

    @property
    def has_room(self) -> bool:
        """Whether another window may be read."""
        return len(self._unsettled) < MAX_OPEN_WINDOWS

    @property
    def is_running(self) -> bool:
        """Whether there are events to come."""
        return bool(self._jobs)

    def open_window(
        self, texts: Sequence[str], make_job: Callable[[Sequence[str], int], EmbedJob]
    ) -> tuple[int, EmbedJob]:
        """Open a window of further texts; return its offset and its job.

        Raises:
            InvalidRequestError: A text cannot be sent.
        """
        offset = self._texts_read
        try:
            job = make_job(texts, offset)
        except EmbeddingError as error:
            _shift(error, offset)
            raise
        self._texts_read += len(texts)
        self._jobs[offset] = job
        self._unsettled[offset] = len(texts)
        return offset, job

    def handle(self, event: BatchEmbedded | WindowEnded) -> None:
        """Store the vectors of a batch, or the failures of a window.

        Raises:
            EmbeddingError: A text has no vector, and there is no `on_failure`.
            BaseException: What ended the window from outside.
        """
        if isinstance(event, BatchEmbedded):
            self._store(event)
            return
        job = self._jobs.pop(event.offset)
        if event.error is not None:
            raise event.error
        try:
            failed = job.result().failed
        except EmbeddingError as error:
            _shift(error, event.offset)
            raise
        for index, error in failed.items():
            _shift(error, event.offset)
            self._failed.add(event.offset + index)
            if self._on_failure is not None:
                self._on_failure(event.offset + index, error)

    def stop(self) -> None:
        """Stop all windows from sending anything more."""
        for job in self._jobs.values():
            job.stop()

    def handle_after_failure(self, event: BatchEmbedded | WindowEnded) -> None:
        """Handle an event of a stream that has failed already."""
        if isinstance(event, BatchEmbedded):
            self._store(event)
        else:
            self._jobs.pop(event.offset, None)

    def unyielded_vectors(self) -> dict[int, Vector]:
        """Return the vectors that arrived but were not yielded, by index in the stream."""
        return dict(sorted(self._vectors.items()))

    def ready_vectors(self) -> Iterator[tuple[int, Vector]]:
        """Yield the vectors whose turn it is, with their indices in the stream."""
        if not self._in_order:
            for index in self._failed:
                self._settle(index)
            self._failed.clear()
            while self._vectors:
                yield self._pop(next(iter(self._vectors)))  # the first that arrived
            return
        while (index := self._texts_settled) in self._vectors or index in self._failed:
            if index in self._vectors:
                yield self._pop(index)
            else:
                self._failed.remove(index)
                self._settle(index)

    def _store(self, event: BatchEmbedded) -> None:
        indices = (event.offset + index for index in event.indices)
        self._vectors.update(zip(indices, event.vectors, strict=True))

    def _pop(self, index: int) -> tuple[int, Vector]:
        self._settle(index)
        return index, self._vectors.pop(index)

    def _settle(self, index: int) -> None:
        self._texts_settled += 1
        offset = max(offset for offset in self._unsettled if offset <= index)
        self._unsettled[offset] -= 1
        if not self._unsettled[offset]:
            del self._unsettled[offset]


def _shift(error: EmbeddingError, offset: int) -> None:
    """Make the indices of an error count from the start of the stream."""
    error.failed_indices = tuple(offset + index for index in error.failed_indices)


class WindowRun:
    """A window that several threads embed.

    Attributes:
        job: The job of embedding its texts.
        workers: Number of threads to use.
    """

    def __init__(
        self,
        offset: int,
        job: EmbedJob,
        events: SimpleQueue[BatchEmbedded | WindowEnded],
        max_workers: int,
    ) -> None:
        self.job: EmbedJob = job
        self.workers: int = max(1, min(max_workers, job.pending))
        self._offset = offset
        self._events = events
        self._lock = threading.Lock()
        self._running_workers = self.workers
        self._error: BaseException | None = None

    def observe(self, batch: Batch) -> AbstractContextManager[OnVectors]:
        """Report the vectors of a batch as an event."""
        return nullcontext(
            lambda vectors: self._events.put(BatchEmbedded(self._offset, batch.indices, vectors))
        )

    def end_worker(self, error: BaseException | None = None) -> None:
        """Record that a thread is done; the last one reports the end of the window."""
        with self._lock:
            self._error = self._error or error
            self._running_workers -= 1
            has_ended = not self._running_workers
        if has_ended:
            self._events.put(WindowEnded(self._offset, self._error))


class _WindowBuffer:
    """A buffer of texts, limited in number and in total length."""

    def __init__(self, settings: ClientSettings) -> None:
        rounds = settings.max_concurrency * ROUNDS_PER_WINDOW
        self._max_texts = settings.batch_size * rounds
        self._max_characters = settings.max_batch_bytes * rounds
        self._texts: list[str] = []
        self._characters = 0

    def add(self, text: str) -> list[str] | None:
        """Add a text; return and clear the content if the buffer is full."""
        self._texts.append(text)
        self._characters += len(text) if isinstance(text, str) else 0  # pyright: ignore[reportUnnecessaryIsInstance] - refused later, by index
        is_full = len(self._texts) == self._max_texts or self._characters >= self._max_characters
        return self.flush() if is_full else None

    def flush(self) -> list[str]:
        """Return and clear the content."""
        texts, self._texts, self._characters = self._texts, [], 0
        return texts


def windows(texts: Iterable[str], settings: ClientSettings) -> Generator[list[str]]:
    """Split a stream into lists of texts that are embedded together."""
    buffer = _WindowBuffer(settings)
    for text in texts:
        if window := buffer.add(text):
            yield window
    if window := buffer.flush():
        yield window


async def awindows(
    texts: Iterable[str] | AsyncIterable[str], settings: ClientSettings
) -> AsyncGenerator[list[str]]:
    """Split a synchronous or asynchronous stream into lists that are embedded together."""
    if not isinstance(texts, AsyncIterable):
        for window in windows(texts, settings):
            yield window
        return
    buffer = _WindowBuffer(settings)
    async for text in texts:
        if window := buffer.add(text):
            yield window
    if window := buffer.flush():
        yield window
