"""The queue between requests and the model: one for the process.

Policy, each part a pure function or a few lines below:

* **Work-conserving.** A batch leaves as soon as a slot is free and anything waits; no timer.
* **Window.** The model's instances + 1 batches in flight: one always prepared, none piling up
  where it can no longer be reordered. While queries keep coming, the one more is kept for them, so
  that a query waits for the batch that runs and not for another behind it.
* **Lanes.** Queries before documents. Documents age by one with every batch of queries that
  overtakes them, and at `OLD_AGE` go first, so that neither starves.
* **Batches.** The oldest text of the lane is the anchor; texts of similar length join it, from
  whichever request they came, as long as the padding they cost is less than a batch of their own
  would (`similar_lengths`).
* **Budget.** A batch holds no more padded tokens than the setting allows, and than the model does
  in about `BATCH_SECONDS`: on a slow machine, too, a query waits for short batches only.
* **Admission.** Requests under way and waiting tokens are bounded; a request is queued whole or
  refused with the time after which it would fit.
* **Once.** Equal texts that wait together are computed once.
* **Alone.** A text whose vector is unusable, or whose batch the model refused, runs once more by
  itself, so that its neighbours get their vectors and the error names the right text.
* **Gone.** A text that nobody waits for any more leaves before it costs anything.
"""

from __future__ import annotations

import asyncio
import logging
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from operator import attrgetter
from typing import TypeAlias

import numpy as np

from .batching import bucket_length
from .errors import (
    BackendError,
    BadVectorError,
    DeadlineExceededError,
    EmbeddingServerError,
    QueueFullError,
)
from .metrics import LaneState, Metrics
from .pooling import unusable_rows
from .tensors import Float32Matrix, Float32Vector, TokenizedText

# What makes two waiting texts the same one: their lane and their token ids.
TextKey: TypeAlias = "tuple[Lane, bytes]"

logger = logging.getLogger(__name__)

# Batches of queries that may overtake waiting documents in a row: queries get four fifths of the
# model when both lanes are full, documents never less than the last fifth.
OLD_AGE = 4
# What a batch costs before its first token (a round trip, kernel launches), in tokens.
BATCH_OVERHEAD_TOKENS = 64
# Long enough that throughput does not suffer: matrices fill a card or a core long before, and on
# CPUs larger batches are slower (`bench/README.md`). Short enough for a query that waits for two.
BATCH_SECONDS = 0.1
# How long after a query the last slot stays free for the next one.
QUERY_MEMORY_SECONDS = 2.0
RATE_SMOOTHING = 0.2
MAX_RETRY_AFTER_SECONDS = 60


class Lane(IntEnum):
    """Which queue a text waits in; the value is Triton's request priority as well."""

    QUERY = 1
    DOCUMENT = 2

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch: rows, padded tokens (a longer text goes alone), bucket ceiling."""

    max_batch_size: int
    max_batch_tokens: int
    max_length: int


@dataclass(eq=False, slots=True)
class QueuedText:
    """A text in the queue, and everyone who waits for its vector.

    `origin` is whatever the first request gave to tell where the text came from.
    """

    text: TokenizedText
    lane: Lane
    key: TextKey
    serial: int
    arrived: float
    deadline: float
    done: asyncio.Future[Float32Vector | EmbeddingServerError]
    origin: object = None
    claims: int = 0
    alone: bool = False
    started: float = 0.0
    finished: float = 0.0

    @property
    def rank(self) -> tuple[int, int]:
        """Order by length; the serial tells texts of equal length apart."""
        return self.text.length, self.serial


# Runs texts of one lane within so many seconds; the rows are theirs, in their order.
RunBatch: TypeAlias = Callable[[Sequence[QueuedText], float], Awaitable[Float32Matrix]]


_rank = attrgetter("rank")


@dataclass(slots=True)
class LaneQueue:
    """The texts of one lane, by arrival and by length; taken ones stay in `arrivals` until met."""

    arrivals: deque[QueuedText] = field(default_factory=deque[QueuedText])
    by_length: list[QueuedText] = field(default_factory=list[QueuedText])

    def __len__(self) -> int:
        return len(self.by_length)

    def add(self, entry: QueuedText) -> None:
        self.arrivals.append(entry)
        insort(self.by_length, entry, key=_rank)

    def position(self, entry: QueuedText) -> int | None:
        index = bisect_left(self.by_length, entry.rank, key=_rank)
        found = index < len(self.by_length) and self.by_length[index] is entry
        return index if found else None

    def discard(self, entry: QueuedText) -> None:
        index = self.position(entry)
        if index is not None:
            del self.by_length[index]

    def take_batch(self, limits: BatchLimits) -> list[QueuedText]:
        """Remove the oldest text and its neighbours by length; the lane must not be empty."""
        anchor = None
        while anchor is None:
            anchor = self.position(self.arrivals.popleft())
        lengths = _Lengths(self.by_length)
        window = similar_lengths(lengths, anchor, limits)
        batch = self.by_length[window.start : window.stop]
        del self.by_length[window.start : window.stop]
        if not self.by_length:
            self.arrivals.clear()
        return batch


class _Lengths(Sequence[int]):
    """The lengths of a sorted lane, read in place."""

    def __init__(self, entries: list[QueuedText]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._entries[index].text.length


def similar_lengths(lengths: Sequence[int], anchor: int, limits: BatchLimits) -> range:
    """Choose a batch around `anchor` from ascending lengths: a window that contains it.

    A neighbour joins where the padded batch grows by no more than the neighbour would cost in a
    batch of its own, `BATCH_OVERHEAD_TOKENS` included; the cheaper side joins first.
    """
    start, stop = anchor, anchor + 1
    width = bucket_length(lengths[anchor], limits.max_length)
    while stop - start < limits.max_batch_size:
        rows = stop - start
        growth: list[tuple[int, int, int]] = []
        if start > 0:
            own = bucket_length(lengths[start - 1], limits.max_length)
            growth.append((width - own, start - 1, width))
        if stop < len(lengths):
            wider = bucket_length(lengths[stop], limits.max_length)
            growth.append((rows * (wider - width), stop, wider))
        fitting = [
            option
            for option in growth
            if option[0] <= BATCH_OVERHEAD_TOKENS
            and (rows + 1) * option[2] <= limits.max_batch_tokens
        ]
        if not fitting:
            break
        _, joined, width = min(fitting)
        start, stop = min(start, joined), max(stop, joined + 1)
    return range(start, stop)


def choose_lane(queries: int, documents: int, age: int) -> Lane:
    """Choose the lane of the next batch from how many texts wait in each, and the documents' age.

    `age` counts the batches of queries that went before the documents that wait.
    """
    if documents and (not queries or age >= OLD_AGE):
        return Lane.DOCUMENT
    return Lane.QUERY


def token_budget(max_batch_tokens: int, tokens_per_second: float) -> int:
    """Bound a batch's padded tokens by the setting and by the model's speed, where it is known."""
    if not tokens_per_second:
        return max_batch_tokens
    return max(1, min(max_batch_tokens, round(tokens_per_second * BATCH_SECONDS)))


class Scheduler:
    """Form batches from all requests and run them through `run`, at most `window` at a time."""

    def __init__(
        self,
        run: RunBatch,
        *,
        limits: BatchLimits,
        window: int,
        max_queue_tokens: int,
        max_queue_requests: int,
        metrics: Metrics,
    ) -> None:
        self._run = run
        self._limits = limits
        self._window = window
        self._max_queue_tokens = max_queue_tokens
        self._max_queue_requests = max_queue_requests
        self._metrics = metrics
        self._lanes = {lane: LaneQueue() for lane in Lane}
        self._alone: deque[QueuedText] = deque()
        self._waiting: dict[TextKey, QueuedText] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._queued_tokens = 0
        self._requests = 0
        self._documents_age = 0
        self._documents_in_flight = 0
        self._last_query = -math.inf
        self._serial = 0
        # By lane: a lone query is over before the model gets up to speed.
        self._tokens_per_second = dict.fromkeys(Lane, 0.0)
        self.last_answer = 0.0

    @property
    def queued_tokens(self) -> int:
        return self._queued_tokens

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    @property
    def requests_under_way(self) -> int:
        return self._requests

    def lane_states(self) -> list[LaneState]:
        """Say what waits in each lane."""
        now = asyncio.get_running_loop().time()
        return [_lane_state(lane, queue.by_length, now) for lane, queue in self._lanes.items()]

    @contextmanager
    def request(self) -> Generator[None]:
        """Count a request as under way, from before its body is read.

        Raises:
            QueueFullError: as many are under way as may be.
        """
        if self._requests >= self._max_queue_requests:
            msg = (
                f"{self._requests} requests are under way, which is the limit "
                "(EMBED_MAX_QUEUE_REQUESTS)."
            )
            self._metrics.rejected_requests.labels("requests").inc()
            # A request's share of the queue is what has to drain before one leaves.
            raise self._full(msg, self._queued_tokens / self._requests)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def submit(
        self, texts: Sequence[TokenizedText], *, lane: Lane, deadline: float, origin: object = None
    ) -> list[QueuedText]:
        """Queue texts, wait for all, and give their entries, each done with a vector or an error.

        `deadline` is in the event loop's time; `origin` goes with the texts to the model's call.

        Raises:
            QueueFullError: the texts do not fit; none was queued.
            DeadlineExceededError: the deadline passed first.
        """
        self._admit(texts)
        if lane is Lane.QUERY:
            self._last_query = asyncio.get_running_loop().time()
        entries = [self._enqueue(text, lane, deadline, origin) for text in texts]
        # Longest first: it becomes the anchor, and a request on its own is packed downwards.
        new = dict.fromkeys(entry for entry in entries if not entry.claims)
        fresh = sorted(new, key=lambda entry: -entry.text.length)
        for entry in fresh:
            self._lanes[lane].add(entry)
        for entry in entries:
            entry.claims += 1
        self._dispatch()
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait({entry.done for entry in entries})
        except TimeoutError:
            msg = "The request's deadline passed before all its texts were embedded."
            raise DeadlineExceededError(msg) from None
        finally:
            for entry in entries:
                self._release(entry)
        return entries

    async def drain(self) -> None:
        """Wait until nothing is queued or in flight."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _admit(self, texts: Sequence[TokenizedText]) -> None:
        tokens = sum(text.length for text in texts)
        if self._queued_tokens + tokens <= self._max_queue_tokens or not self._queued_tokens:
            return
        msg = (
            f"{self._queued_tokens} tokens are waiting and this request adds {tokens}; the limit "
            f"is {self._max_queue_tokens} (EMBED_MAX_QUEUE_TOKENS)."
        )
        self._metrics.rejected_requests.labels("tokens").inc()
        raise self._full(msg, self._queued_tokens + tokens - self._max_queue_tokens)

    def _full(self, message: str, excess_tokens: float) -> QueueFullError:
        """Refuse until `excess_tokens` will have drained."""
        speed = max(self._tokens_per_second.values())
        wait = min(
            max(1, math.ceil(excess_tokens / speed)) if speed else 1, MAX_RETRY_AFTER_SECONDS
        )
        return QueueFullError(message, retry_after_seconds=wait)

    def _enqueue(
        self, text: TokenizedText, lane: Lane, deadline: float, origin: object
    ) -> QueuedText:
        key = (lane, text.input_ids.tobytes())
        entry = self._waiting.get(key)
        if entry is None:
            loop = asyncio.get_running_loop()
            self._serial += 1
            entry = QueuedText(
                text, lane, key, self._serial, loop.time(), deadline, loop.create_future(), origin
            )
            self._waiting[key] = entry
            self._queued_tokens += text.length
        entry.deadline = max(entry.deadline, deadline)
        return entry

    def _release(self, entry: QueuedText) -> None:
        entry.claims -= 1
        if entry.claims == 0 and self._waiting.get(entry.key) is entry:
            self._forget(entry)
            self._lanes[entry.lane].discard(entry)
            self._metrics.abandoned_texts.inc()

    def _forget(self, entry: QueuedText) -> None:
        """Take an entry off the books of what waits."""
        del self._waiting[entry.key]
        self._queued_tokens -= entry.text.length

    def _dispatch(self) -> None:
        while len(self._tasks) < self._window:
            batch = self._next_batch()
            if not batch:
                return
            self._documents_in_flight += batch[0].lane is Lane.DOCUMENT
            task = asyncio.get_running_loop().create_task(self._run_batch(batch))
            self._tasks.add(task)
            task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._dispatch()

    def _next_batch(self) -> list[QueuedText]:
        while self._alone:
            entry = self._alone.popleft()
            if entry.claims:
                return [entry]
        queries, documents = (self._lanes[lane] for lane in Lane)
        startable = len(documents) if self._documents_in_flight < self._document_window() else 0
        lane = choose_lane(len(queries), startable, self._documents_age)
        if not (queries if lane is Lane.QUERY else startable):
            return []
        overtakes = lane is Lane.QUERY and len(documents) > 0
        self._documents_age = self._documents_age + 1 if overtakes else 0
        budget = token_budget(self._limits.max_batch_tokens, self._tokens_per_second[lane])
        batch = self._lanes[lane].take_batch(replace(self._limits, max_batch_tokens=budget))
        for entry in batch:
            self._forget(entry)
        return batch

    def _document_window(self) -> int:
        """Say how many batches of documents may be in flight now."""
        silence = asyncio.get_running_loop().time() - self._last_query
        return self._window if silence > QUERY_MEMORY_SECONDS else max(1, self._window - 1)

    async def _run_batch(self, batch: list[QueuedText]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        timeout_seconds = max(entry.deadline for entry in batch) - started
        try:
            vectors = await self._run(batch, max(timeout_seconds, 0.001))
        except EmbeddingServerError as error:
            self._metrics.failed_batches.labels(error.code).inc()
            for entry in batch:
                self._fail(entry, error)
        except Exception:  # a bug of ours must not leave the callers waiting
            logger.exception("A batch failed in a way that the gateway does not know.")
            for entry in batch:
                self._fail(entry, EmbeddingServerError("Internal error; see the gateway's log."))
        else:
            self.last_answer = loop.time()
            self._settle(batch, vectors)
            self._measure(batch, loop.time() - started)
        self._documents_in_flight -= batch[0].lane is Lane.DOCUMENT
        for entry in batch:
            entry.started, entry.finished = started, loop.time()

    def _settle(self, batch: list[QueuedText], vectors: Float32Matrix) -> None:
        unusable = set(unusable_rows(vectors))
        for row, entry in enumerate(batch):
            if row not in unusable:
                entry.done.set_result(vectors[row])
                continue
            norm = float(np.linalg.norm(vectors[row].astype(np.float64)))
            self._fail(entry, BadVectorError(f"the model gave a vector of norm {norm:g}"))

    def _fail(self, entry: QueuedText, error: EmbeddingServerError) -> None:
        """Run the text once more by itself where that can help, else hand over the error."""
        if isinstance(error, (BadVectorError, BackendError)) and not entry.alone:
            entry.alone = True
            self._alone.append(entry)
            self._metrics.recomputed_texts.inc()
        else:
            entry.done.set_result(error)

    def _measure(self, batch: Sequence[QueuedText], seconds: float) -> None:
        """Learn how fast the model works from a batch's round trip, others running beside it."""
        tokens = sum(entry.text.length for entry in batch)
        speed, known = tokens * len(self._tasks) / max(seconds, 1e-6), self._tokens_per_second
        lane = batch[0].lane
        smoothing = RATE_SMOOTHING if known[lane] else 1.0
        known[lane] += smoothing * (speed - known[lane])


def _lane_state(lane: Lane, waiting: Sequence[QueuedText], now: float) -> LaneState:
    return LaneState(
        lane=lane.label,
        texts=len(waiting),
        tokens=sum(entry.text.length for entry in waiting),
        oldest_seconds=now - min((entry.arrived for entry in waiting), default=now),
    )
