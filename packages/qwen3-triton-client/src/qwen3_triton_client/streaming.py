"""Streams in bounded memory: windows of texts, and the order of their vectors. No I/O."""

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
"""Called with the index of a text that cannot be embedded, and why."""

# The next window is under way while one is given, so that the gateway never waits for us.
WINDOWS_AHEAD = 2
# Of `max_concurrency` batches: enough to sort by length well, and for the last batch of a window
# to be of little weight.
ROUNDS_PER_WINDOW = 2


@dataclass(frozen=True, slots=True)
class Arrived:
    """Say that a batch of a window has its vectors."""

    offset: int
    """Index of the window's first text in the stream."""
    indices: Sequence[int]
    """Of the texts, in the window."""
    vectors: Sequence[Vector]


@dataclass(frozen=True, slots=True)
class Ended:
    """Say that nothing of a window is running any more."""

    offset: int
    error: BaseException | None = None
    """What ended it from outside: a bug, a callback's error, an interrupt."""


class TextStream:
    """Keep count of a stream, and hold the vectors that came before it was their turn."""

    def __init__(self, *, in_order: bool, on_failure: OnFailure | None) -> None:
        self._in_order = in_order
        self._on_failure = on_failure
        self._read = 0
        self._given = 0
        self._jobs: dict[int, EmbedJob] = {}
        self._waiting: dict[int, int] = {}  # offset -> texts of that window not yet given
        self._arrived: dict[int, Vector] = {}
        self._failed: set[int] = set()

    @property
    def has_room(self) -> bool:
        """Tell whether another window may be read."""
        return len(self._waiting) < WINDOWS_AHEAD

    @property
    def is_running(self) -> bool:
        """Tell whether there are events to come."""
        return bool(self._jobs)

    def open_window(
        self, texts: Sequence[str], make_job: Callable[[Sequence[str], int], EmbedJob]
    ) -> tuple[int, EmbedJob]:
        """Take further texts. Returns the index of the first, and the job of embedding them.

        Raises:
            EmbeddingError: A text cannot even be sent.
        """
        offset = self._read
        try:
            job = make_job(texts, offset)
        except EmbeddingError as error:
            _shift(error, offset)
            raise
        self._read += len(texts)
        self._jobs[offset] = job
        self._waiting[offset] = len(texts)
        return offset, job

    def take(self, event: Arrived | Ended) -> None:
        """Hold the vectors of a batch, or see how a window ended.

        Raises:
            EmbeddingError: A text has no vector, and nobody asked to be told by `on_failure`.
            BaseException: What ended the window from outside.
        """
        if isinstance(event, Arrived):
            self._hold(event)
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
        """Let no window send anything more."""
        for job in self._jobs.values():
            job.stop()

    def wind_down(self, event: Arrived | Ended) -> None:
        """Take an event of a stream that has failed."""
        if isinstance(event, Arrived):
            self._hold(event)
        else:
            self._jobs.pop(event.offset, None)

    def held(self) -> dict[int, Vector]:
        """Return what came and was not given."""
        return dict(sorted(self._arrived.items()))

    def give(self) -> Iterator[tuple[int, Vector]]:
        """Yield what may be given now, with the index in the stream."""
        if not self._in_order:
            for index in self._failed:
                self._settle(index)
            self._failed.clear()
            while self._arrived:
                index = next(iter(self._arrived))  # the first that came
                yield self._given_at(index)
            return
        while (index := self._given) in self._arrived or index in self._failed:
            if index in self._arrived:
                yield self._given_at(index)
            else:
                self._failed.remove(index)
                self._settle(index)

    def _hold(self, event: Arrived) -> None:
        indices = (event.offset + index for index in event.indices)
        self._arrived.update(zip(indices, event.vectors, strict=True))

    def _given_at(self, index: int) -> tuple[int, Vector]:
        self._settle(index)
        return index, self._arrived.pop(index)

    def _settle(self, index: int) -> None:
        self._given += 1
        offset = max(offset for offset in self._waiting if offset <= index)
        self._waiting[offset] -= 1
        if not self._waiting[offset]:
            del self._waiting[offset]


def _shift(error: EmbeddingError, offset: int) -> None:
    """Make an error count from the start of the stream."""
    error.failed_indices = tuple(offset + index for index in error.failed_indices)


class _Window:
    """Texts that are read together: bounded in number and in length."""

    def __init__(self, settings: ClientSettings) -> None:
        rounds = settings.max_concurrency * ROUNDS_PER_WINDOW
        self._max_texts = settings.batch_size * rounds
        self._max_characters = settings.max_batch_bytes * rounds
        self._texts: list[str] = []
        self._characters = 0

    def add(self, text: str) -> list[str] | None:
        """Add a text. Returns the window if that filled it, and begins another."""
        self._texts.append(text)
        self._characters += len(text) if isinstance(text, str) else 0  # pyright: ignore[reportUnnecessaryIsInstance] - refused later, by index
        full = len(self._texts) == self._max_texts or self._characters >= self._max_characters
        return self.rest() if full else None

    def rest(self) -> list[str]:
        """Return what there is, and begin another."""
        texts, self._texts, self._characters = self._texts, [], 0
        return texts


def windows(texts: Iterable[str], settings: ClientSettings) -> Generator[list[str]]:
    """Cut a stream into lists that are embedded together."""
    window = _Window(settings)
    for text in texts:
        if full := window.add(text):
            yield full
    if rest := window.rest():
        yield rest


async def awindows(
    texts: Iterable[str] | AsyncIterable[str], settings: ClientSettings
) -> AsyncGenerator[list[str]]:
    """Cut a stream of either kind into lists that are embedded together."""
    if not isinstance(texts, AsyncIterable):
        for full in windows(texts, settings):
            yield full
        return
    window = _Window(settings)
    async for text in texts:
        if full := window.add(text):
            yield full
    if rest := window.rest():
        yield rest


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

    def observe(self, batch: Batch) -> AbstractContextManager[OnVectors]:
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
