"""Any number of texts in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from .errors import EmbeddingError
from .settings import ClientSettings

__all__ = ["awindows", "shifted_errors", "window_size", "windows"]

# Rounds of `max_concurrency` batches: enough to sort by length well, and to hide the wait for
# the last batch of a window, while a few megabytes of vectors are held.
ROUNDS_PER_WINDOW = 4


def window_size(settings: ClientSettings) -> int:
    """Return the number of texts that are read from a stream at a time."""
    return settings.batch_size * settings.max_concurrency * ROUNDS_PER_WINDOW


def windows(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """Cut a stream into lists of `size` texts, each with the index of its first."""
    iterator = iter(texts)
    offset = 0
    while window := list(islice(iterator, size)):
        yield offset, window
        offset += len(window)


async def awindows(
    texts: Iterable[str] | AsyncIterable[str], size: int
) -> AsyncIterator[tuple[int, list[str]]]:
    """Cut a stream of either kind into lists of `size` texts, each with the index of its first."""
    if not isinstance(texts, AsyncIterable):
        for item in windows(texts, size):
            yield item
        return
    offset, window = 0, list[str]()
    async for text in texts:
        window.append(text)
        if len(window) == size:
            yield offset, window
            offset, window = offset + size, []
    if window:
        yield offset, window


@contextmanager
def shifted_errors(offset: int) -> Generator[None]:
    """Make the indices of an error count from the start of the stream."""
    try:
        yield
    except EmbeddingError as error:
        error.failed_indices = tuple(index + offset for index in error.failed_indices)
        error.completed = {index + offset: vector for index, vector in error.completed.items()}
        raise
