"""How large batches are, which lane they come from, and how they are padded.

The scheduler asks for every free slot which lane goes next (`choose_lane`), how many batches of
documents may run at a time (`document_window`) and how many tokens the batch may have
(`token_budget`). The lane then chooses a text by turns (`turns`), and texts of similar length join
it (`similar_lengths`).

All of it is plain data and pure functions over lengths in tokens; `scheduler` runs what is chosen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from .run_memory import RunMemory
from .tensors import TokenBatch, TokenizedText

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
# The model's speed is measured over this many batches.
MEASURED_BATCHES = 16
# How much longer a batch may take than its tokens do at the model's measured speed. That is the
# best of the last batches, of short texts and without other load; attention grows with the square
# of a text's length.
MAX_SLOWDOWN = 64


class Lane(IntEnum):
    """The queue a text waits in; the value is also Triton's request priority."""

    QUERY = 1
    DOCUMENT = 2

    @cached_property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch.

    Attributes:
        max_batch_size: Maximum rows.
        max_batch_tokens: Maximum tokens, padding included; a longer text runs alone.
        max_length: Maximum padded length of a row.
        memory: What a batch takes in this process; None where that is not known.
        max_batch_bytes: Maximum memory that a batch takes; a larger text runs alone.
    """

    max_batch_size: int
    max_batch_tokens: int
    max_length: int
    memory: RunMemory | None = None
    max_batch_bytes: int = 0

    def with_tokens(self, max_batch_tokens: int) -> BatchLimits:
        """Return the same bounds with other maximum tokens."""
        # Not `replace`, which takes longer than all else that a batch of one text needs here.
        return BatchLimits(
            self.max_batch_size,
            max_batch_tokens,
            self.max_length,
            self.memory,
            self.max_batch_bytes,
        )

    def allow(self, rows: int, width: int) -> bool:
        """Return whether a batch of so many rows of a padded length is within the bounds."""
        if rows * width > self.max_batch_tokens:
            return False
        return self.memory is None or self.memory.bytes_of(rows, width) <= self.max_batch_bytes


class ModelSpeed:
    """How fast the model was at the last batches.

    The upper eighth of them counts, and not what slows down the others. Under a CPU limit, most
    batches contain a pause, and less of the model's time is left the more requests are refused;
    smaller batches would cost even more.

    Attributes:
        tokens_per_second: 0 while unknown.
    """

    def __init__(self) -> None:
        self.tokens_per_second: float = 0.0
        self._last: deque[float] = deque(maxlen=MEASURED_BATCHES)

    def record(self, tokens: int, seconds: float) -> None:
        """Add a batch."""
        self._last.append(tokens / max(seconds, 1e-6))
        ordered = sorted(self._last)
        self.tokens_per_second = ordered[len(ordered) * 7 // 8]

    def allowed_seconds(self, tokens: int, timeout_seconds: float) -> float:
        """Compute how long a batch may take before the model counts as hanging.

        Args:
            tokens: Those of the batch.
            timeout_seconds: Its deadline, which is the bound while the speed is unknown.
        """
        if not self.tokens_per_second:
            return timeout_seconds
        return min(timeout_seconds, MAX_SLOWDOWN * tokens / self.tokens_per_second)


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


def similar_lengths(
    lengths: Sequence[int], start: int, limits: BatchLimits, *, rows: int = 0, width: int = 0
) -> range:
    """Choose what joins a batch from lengths in ascending buckets: a range around `start`.

    A neighbor joins if the padded batch grows by no more than the neighbor would cost in a batch of
    its own, `BATCH_OVERHEAD_TOKENS` included. The cheaper side joins first.

    Args:
        lengths: Lengths in tokens.
        start: Where the range begins to grow.
        limits: Bounds of the batch.
        rows: Rows that the batch already has; without any, the text at `start` is its first.
        width: Their padded length.

    Returns:
        The range that joins.
    """
    first = stop = start
    if not rows:
        rows, stop = 1, start + 1
        width = bucket_length(lengths[start], limits.max_length)
    while rows < limits.max_batch_size:
        # Growth in padding, index and padded width of the neighbor on either side.
        neighbors: list[tuple[int, int, int]] = []
        if first > 0:
            own = bucket_length(lengths[first - 1], limits.max_length)
            wider = max(width, own)
            neighbors.append((rows * (wider - width) + wider - own, first - 1, wider))
        if stop < len(lengths):
            own = bucket_length(lengths[stop], limits.max_length)
            wider = max(width, own)
            neighbors.append((rows * (wider - width) + wider - own, stop, wider))
        candidates = [
            (growth, index, padded)
            for growth, index, padded in neighbors
            if growth <= BATCH_OVERHEAD_TOKENS and limits.allow(rows + 1, padded)
        ]
        if not candidates:
            break
        _, neighbor, width = min(candidates)
        first, stop, rows = min(first, neighbor), max(stop, neighbor + 1), rows + 1
    return range(first, stop)


def bucket_length(length: int, max_length: int) -> int:
    """Round a length up to its bucket, but not beyond `max_length` unless the text is longer."""
    return max(length, min(padded_length(length), max_length))


def padded_length(length: int) -> int:
    """Round a length up to its bucket."""
    step = max(SMALLEST_STEP, (1 << length.bit_length() - 1) // BUCKET_STEPS_PER_OCTAVE)
    return -(-length // step) * step


def pad_batch(
    texts: Sequence[TokenizedText], *, pad_token_id: int, max_length: int, width: int | None = None
) -> TokenBatch:
    """Pad texts on the right to the bucket of the longest, or to `width`.

    Right padding is exact for a causal model and any export: no real token attends to padding,
    positions count from 0, and no row is fully masked.
    """
    if width is None:
        width = bucket_length(max(text.length for text in texts), max_length)
    input_ids = np.full((len(texts), width), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(texts), width), dtype=np.int64)
    for row, text in enumerate(texts):
        input_ids[row, : text.length] = text.input_ids
        attention_mask[row, : text.length] = 1
    return TokenBatch(input_ids, attention_mask)
