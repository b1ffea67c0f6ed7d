"""How batches are chosen and padded.

The scheduler asks for every free slot which lane goes next (`choose_lane`), how many batches of
documents may run at a time (`document_window`) and how many tokens the batch may have
(`token_budget`). The lane then takes its oldest text (`LaneQueue.take_batch`), and texts of similar
length join it, from whichever request they came (`similar_lengths`).

All of it is plain data and pure functions over lengths in tokens; `scheduler` runs what is chosen.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from typing import TypeAlias

import numpy as np

from .errors import EmbeddingServerError
from .tensors import Float32Vector, TokenBatch, TokenizedText

# Batches of queries that may overtake waiting documents in a row: when both lanes are full, queries
# get four fifths of the model and documents one fifth.
OLD_AGE = 4
# How long after a query the last slot stays free for the next one.
QUERY_MEMORY_SECONDS = 2.0
# The fixed cost of a batch (a round trip, kernel launches), in tokens.
BATCH_OVERHEAD_TOKENS = 64
# Long enough for full throughput: matrices fill a card or a core long before, and on CPUs larger
# batches are slower (`bench/README.md`). Short enough for a query that waits for two of them.
BATCH_SECONDS = 0.1
# Padded lengths are rounded up to steps of about a sixteenth of themselves: few distinct shapes
# (equal shapes merge inside Triton, allocators and kernels see repeats) for at most 6 % padding.
BUCKET_STEPS_PER_OCTAVE = 16
SMALLEST_STEP = 4


class Lane(IntEnum):
    """The queue a text waits in; the value is also Triton's request priority."""

    QUERY = 1
    DOCUMENT = 2

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch.

    Attributes:
        max_batch_size: Maximum rows.
        max_batch_tokens: Maximum tokens, padding included; a longer text runs alone.
        max_length: Maximum padded length of a row.
    """

    max_batch_size: int
    max_batch_tokens: int
    max_length: int


def choose_lane(queries: int, documents: int, age: int) -> Lane:
    """Choose the lane of the next batch: queries first, unless documents have waited too long.

    Args:
        queries: Waiting queries.
        documents: Waiting documents that may start now.
        age: Batches of queries that have overtaken the waiting documents.
    """
    if documents and (not queries or age >= OLD_AGE):
        return Lane.DOCUMENT
    return Lane.QUERY


def document_window(window: int, seconds_since_query: float) -> int:
    """Compute how many batches of documents may be in flight, out of `window`.

    While queries keep coming, one slot stays free for the next, so that it waits for the batch that
    is running and not for another one behind it.
    """
    return window if seconds_since_query > QUERY_MEMORY_SECONDS else max(1, window - 1)


def token_budget(max_batch_tokens: int, tokens_per_second: float) -> int:
    """Compute the padded tokens that a batch may hold: the setting, or about `BATCH_SECONDS`.

    Args:
        max_batch_tokens: The setting.
        tokens_per_second: The model's measured speed, 0 while unknown. On a slow machine it keeps
            batches short, so that a query never waits long for one.
    """
    if not tokens_per_second:
        return max_batch_tokens
    return max(1, min(max_batch_tokens, round(tokens_per_second * BATCH_SECONDS)))


def similar_lengths(lengths: Sequence[int], anchor: int, limits: BatchLimits) -> range:
    """Choose a batch around `anchor` from lengths in ascending buckets: a range containing it.

    A neighbor joins if the padded batch grows by no more than the neighbor would cost in a batch of
    its own, `BATCH_OVERHEAD_TOKENS` included. The cheaper side joins first.
    """
    start, stop = anchor, anchor + 1
    width = bucket_length(lengths[anchor], limits.max_length)
    while stop - start < limits.max_batch_size:
        rows = stop - start
        # Growth in padding, index and padded width of the neighbor on either side.
        neighbors: list[tuple[int, int, int]] = []
        if start > 0:
            own = bucket_length(lengths[start - 1], limits.max_length)
            neighbors.append((width - own, start - 1, width))
        if stop < len(lengths):
            wider = bucket_length(lengths[stop], limits.max_length)
            neighbors.append((rows * (wider - width), stop, wider))
        candidates = [
            (growth, index, padded)
            for growth, index, padded in neighbors
            if growth <= BATCH_OVERHEAD_TOKENS and (rows + 1) * padded <= limits.max_batch_tokens
        ]
        if not candidates:
            break
        _, neighbor, width = min(candidates)
        start, stop = min(start, neighbor), max(stop, neighbor + 1)
    return range(start, stop)


# Two waiting texts are the same if their lane and their token IDs are.
TextKey: TypeAlias = tuple[Lane, bytes]


@dataclass(eq=False, slots=True)
class QueuedText:
    """A text in the queue, shared by every request that waits for its vector.

    Attributes:
        serial: Counts texts in their order of arrival.
        arrived: When the text was queued, in the event loop's time; so are the other times.
        deadline: The latest deadline of the requests that wait for it.
        done: The vector, or the reason why there is none.
        origin: What the first request passed to `submit`, for tracing.
        waiters: Number of requests that wait for it.
        alone: Whether it has to run in a batch of its own.
        model_seconds: What the model took for its batch; 0 where that is not measured.
        rank: The sort key by length. Texts that are padded to one length keep their order of
            arrival: else, those that are longer or shorter than most would wait for all others.
    """

    text: TokenizedText
    lane: Lane
    key: TextKey
    serial: int
    arrived: float
    deadline: float
    done: asyncio.Future[Float32Vector | EmbeddingServerError]
    origin: object = None
    waiters: int = 0
    alone: bool = False
    started: float = 0.0
    finished: float = 0.0
    model_seconds: float = 0.0
    rank: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rank = _round_up(self.text.length), self.serial


_rank = attrgetter("rank")


@dataclass(slots=True)
class LaneQueue:
    """The waiting texts of one lane.

    Attributes:
        arrivals: The texts in their order of arrival. Texts that were taken or discarded stay in it
            until they reach the front, since removing them from the middle would be slow.
        by_length: The texts in ascending padded length, the oldest of each first; only those that
            are still waiting.
    """

    arrivals: deque[QueuedText] = field(default_factory=deque[QueuedText])
    by_length: list[QueuedText] = field(default_factory=list[QueuedText])

    def __len__(self) -> int:
        return len(self.by_length)

    def add(self, entry: QueuedText) -> None:
        self.arrivals.append(entry)
        insort(self.by_length, entry, key=_rank)

    def position(self, entry: QueuedText) -> int | None:
        index = bisect_left(self.by_length, entry.rank, key=_rank)
        is_waiting = index < len(self.by_length) and self.by_length[index] is entry
        return index if is_waiting else None

    def discard(self, entry: QueuedText) -> None:
        index = self.position(entry)
        if index is not None:
            del self.by_length[index]

    def take_batch(self, limits: BatchLimits) -> list[QueuedText]:
        """Remove the oldest text and its neighbors by length; the lane must not be empty."""
        anchor = None
        while anchor is None:
            anchor = self.position(self.arrivals.popleft())
        window = similar_lengths(_Lengths(self.by_length), anchor, limits)
        batch = self.by_length[window.start : window.stop]
        del self.by_length[window.start : window.stop]
        if not self.by_length:
            self.arrivals.clear()
        return batch


class _Lengths(Sequence[int]):
    """The lengths of a sorted lane, read in place: a copy would cost time for every batch."""

    def __init__(self, entries: list[QueuedText]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    # An index is all that `similar_lengths` asks for; slices are not supported.
    def __getitem__(self, index: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._entries[index].text.length


def bucket_length(length: int, max_length: int) -> int:
    """Round a length up to its bucket, but not beyond `max_length` unless the text is longer."""
    return max(length, min(_round_up(length), max_length))


def _round_up(length: int) -> int:
    step = max(SMALLEST_STEP, (1 << length.bit_length() - 1) // BUCKET_STEPS_PER_OCTAVE)
    return -(-length // step) * step


def pad_batch(texts: Sequence[TokenizedText], *, pad_token_id: int, max_length: int) -> TokenBatch:
    """Pad texts on the right to the bucket of the longest.

    Right padding is exact for a causal model and any export: no real token attends to padding,
    positions count from 0, and no row is fully masked.
    """
    width = bucket_length(max(text.length for text in texts), max_length)
    input_ids = np.full((len(texts), width), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(texts), width), dtype=np.int64)
    for row, text in enumerate(texts):
        input_ids[row, : text.length] = text.input_ids
        attention_mask[row, : text.length] = 1
    return TokenBatch(input_ids, attention_mask)
