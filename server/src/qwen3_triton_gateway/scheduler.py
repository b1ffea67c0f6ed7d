"""The queue between requests and the model; one per served model.

The rule that chooses batches is a function of what waits, without a clock or I/O:

* **Queries first**, and documents for every fifth batch at the latest (`batching`).
* **Turns.** Within a lane, API keys take turns, and the requests of a key, counted in tokens. The
  longest text of the request in turn begins the batch, and texts of similar length fill it,
  whose turns are near first. So a new request is in the next batch or two, however many texts
  others have waiting; and every fifth batch begins with the oldest text at the latest (`turns`).

This module runs what the rule chooses:

* **Work-conserving.** A batch leaves as soon as a slot is free and a text is waiting; there is no
  timer. As many batches are in flight as the model has instances, and one more: one is always
  prepared, and none piles up where it can no longer be reordered.
* **Admission.** A request is queued whole, or refused with the time after which it may be sent
  again (`admission`).
* **Deduplication.** Equal texts that wait at the same time are computed once.
* **Isolation.** A text whose vector is unusable, or whose batch the model refused, runs again by
  itself, so that its neighbors get their vectors and the error names the right text.
* **Abandonment.** A text that no caller is waiting for leaves the queue before it costs anything.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from .admission import Admission, is_bulk_request
from .batching import (
    BatchLimits,
    Lane,
    ModelSpeed,
    choose_lane,
    document_window,
    token_budget,
)
from .errors import (
    DEADLINE_PASSED,
    INTERNAL_ERROR,
    BackendError,
    BadVectorError,
    DeadlineExceededError,
    EmbeddingServerError,
)
from .metrics import LaneState, ModelMetrics
from .pooling import unusable_rows
from .tensors import Float32Matrix, TokenizedText
from .turns import LaneQueue, QueuedText, TextKey, Waiter

# Runs texts of one lane within a number of seconds; returns one row per text, in their order.
RunBatch: TypeAlias = Callable[[Sequence[QueuedText], float], Awaitable[Float32Matrix]]

logger: logging.Logger = logging.getLogger(__name__)


class Scheduler:
    """The queue, and the tasks that run its batches."""

    def __init__(
        self,
        run: RunBatch,
        unusable: Callable[[Float32Matrix], list[int]] = unusable_rows,
        /,
        *,
        limits: BatchLimits,
        window: int,
        max_queue_tokens: int,
        max_queue_requests: int,
        metrics: ModelMetrics,
    ) -> None:
        """Create an empty queue.

        Args:
            run: Runs one batch.
            unusable: Lists the rows that cannot be a text's result.
            limits: Bounds of one batch.
            window: Maximum batches in flight.
            max_queue_tokens: Maximum tokens waiting.
            max_queue_requests: Maximum requests in progress.
            metrics: Where batches and refusals are counted.
        """
        self._run = run
        self._limits = limits
        self._window = window
        self._metrics = metrics
        self._unusable = unusable
        self.admission: Admission = Admission(
            max_queue_tokens=max_queue_tokens,
            max_queue_requests=max_queue_requests,
            metrics=metrics,
        )
        self._lanes = {lane: LaneQueue() for lane in Lane}
        self._alone: deque[QueuedText] = deque()
        self._waiting: dict[TextKey, QueuedText] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._documents_age = 0
        self._documents_in_flight = 0
        self._last_query = -math.inf
        self._serial = 0
        # Per lane: a single query is over before the model gets up to speed.
        self._speeds = {lane: ModelSpeed() for lane in Lane}
        # When each batch in flight is overdue, by its first text's serial number.
        self._overdue: dict[int, float] = {}
        self.last_answer: float = 0.0

    @property
    def queued_tokens(self) -> int:
        return self.admission.queued_tokens

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    @property
    def requests_under_way(self) -> int:
        return self.admission.requests

    @property
    def is_at_work(self) -> bool:
        """Whether the model may be silent because of a batch in flight, and its long texts."""
        now = asyncio.get_running_loop().time()
        return any(now < overdue for overdue in self._overdue.values())

    def lane_states(self) -> list[LaneState]:
        """Describe what is waiting in each lane."""
        now = asyncio.get_running_loop().time()
        return [_lane_state(lane, queue.by_length, now) for lane, queue in self._lanes.items()]

    async def submit(
        self,
        texts: Sequence[TokenizedText],
        *,
        lane: Lane,
        deadline: float,
        caller: str = "",
        priority: int = 0,
        origin: object = None,
    ) -> list[QueuedText]:
        """Queue texts, wait for all, and return their entries, each done with a vector or error.

        Args:
            texts: The texts of one request.
            lane: The queue they wait in.
            deadline: When the request times out, in the event loop's time.
            caller: The name of the API key whose turn it is.
            priority: Lower goes first among the requests of a key; only the sign counts.
            origin: Passed on to `run` with the texts, for tracing.

        Raises:
            QueueFullError: The texts do not fit, or would wait too long; none was queued.
            DeadlineExceededError: The deadline passed first.
        """
        tokens = sum(text.length for text in texts)
        is_bulk = is_bulk_request(tokens)
        if is_bulk:
            await self.admission.learn_rate(lane)
        with self.admission.submission(lane, tokens, deadline=deadline, caller=caller):
            now = asyncio.get_running_loop().time()
            if lane is Lane.QUERY:
                self._last_query = now
            new = partial(self._enqueue, lane, caller, deadline, origin, now=now, is_bulk=is_bulk)
            entries = [new(text) for text in texts]
            queue = self._lanes[lane]
            turn = queue.join(dict.fromkeys(entries), caller=caller, priority=priority)
            try:
                await self._run_all(entries, deadline)
            finally:
                queue.leave(turn)
            return entries

    async def drain(self) -> None:
        """Wait until nothing is queued or in flight."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _run_all(self, entries: Sequence[QueuedText], deadline: float) -> None:
        """Run what is next in the queue, and wait until all entries are done.

        It waits for one future, since each takes time of the event loop.
        """
        loop = asyncio.get_running_loop()
        waiter = Waiter(loop.create_future(), missing=len(entries))
        for entry in entries:
            entry.waiters.append(waiter)
        timer = loop.call_at(deadline, waiter.give_up)
        try:
            self._dispatch()
            all_done = await waiter.all_done
        finally:
            timer.cancel()
            for entry in entries:
                self._release(entry, waiter)
        if not all_done:
            raise DeadlineExceededError(DEADLINE_PASSED)

    def _enqueue(
        self,
        lane: Lane,
        caller: str,
        deadline: float,
        origin: object,
        text: TokenizedText,
        *,
        now: float,
        is_bulk: bool,
    ) -> QueuedText:
        key = (lane, text.input_ids.tobytes())
        entry = self._waiting.get(key)
        if entry is None:
            self._serial += 1
            entry = QueuedText(
                text,
                lane,
                key,
                self._serial,
                now,
                deadline,
                caller=caller,
                is_bulk=is_bulk,
                origin=origin,
            )
            self._waiting[key] = entry
            self.admission.queued[lane].add(text.length, caller, is_bulk=is_bulk)
        entry.deadline = max(entry.deadline, deadline)
        return entry

    def _release(self, entry: QueuedText, waiter: Waiter) -> None:
        entry.waiters.remove(waiter)
        if not entry.waiters and self._waiting.get(entry.key) is entry:
            self._forget(entry)
            self._lanes[entry.lane].discard(entry)
            self._metrics.abandoned_texts.inc()

    def _forget(self, entry: QueuedText) -> None:
        """Stop counting an entry as waiting."""
        del self._waiting[entry.key]
        queued = self.admission.queued[entry.lane]
        queued.add(-entry.text.length, entry.caller, is_bulk=entry.is_bulk)

    def _dispatch(self) -> None:
        while len(self._tasks) < self._window:
            batch = self._next_batch()
            if not batch:
                return
            self._documents_in_flight += batch[0].lane is Lane.DOCUMENT
            self._tasks.add(asyncio.create_task(self._run_in_slot(batch)))

    async def _run_in_slot(self, batch: list[QueuedText]) -> None:
        """Run a batch, and give its slot to the next before the requests get their answers."""
        task = asyncio.current_task()
        assert task is not None, "it is one"
        try:
            await self._run_batch(batch)
        finally:
            self._tasks.discard(task)
            self._dispatch()

    def _next_batch(self) -> list[QueuedText]:
        while self._alone:
            entry = self._alone.popleft()
            if entry.waiters:
                return [entry]
        if not self._waiting:
            return []
        queries, documents = self._lanes[Lane.QUERY], self._lanes[Lane.DOCUMENT]
        silence = asyncio.get_running_loop().time() - self._last_query
        has_slot = self._documents_in_flight < document_window(self._window, silence)
        startable = len(documents) if has_slot else 0
        lane = choose_lane(len(queries), startable, self._documents_age)
        if not (queries if lane is Lane.QUERY else startable):
            return []
        overtakes = lane is Lane.QUERY and len(documents) > 0
        self._documents_age = self._documents_age + 1 if overtakes else 0
        budget = token_budget(self._limits.max_batch_tokens, self._speeds[lane].tokens_per_second)
        batch = self._lanes[lane].take_batch(self._limits.with_tokens(budget))
        for entry in batch:
            self._forget(entry)
        return batch

    async def _run_batch(self, batch: list[QueuedText]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        timeout_seconds = max(entry.deadline for entry in batch) - started
        tokens = sum(entry.text.length for entry in batch)
        allowed = self._speeds[batch[0].lane].allowed_seconds(tokens, timeout_seconds)
        self._overdue[batch[0].serial] = started + allowed
        try:
            vectors = await self._run(batch, max(timeout_seconds, 0.001))
        except EmbeddingServerError as error:
            self._metrics.failed_batches.labels(error.code).inc()
            for entry in batch:
                self._fail(entry, error)
        except Exception:  # a bug in the gateway must not leave callers waiting
            logger.exception("A batch failed unexpectedly.")
            for entry in batch:
                self._fail(entry, EmbeddingServerError(INTERNAL_ERROR))
        else:
            self.last_answer = loop.time()
            self._settle(batch, vectors)
            self._measure(batch, tokens, loop.time() - started)
        del self._overdue[batch[0].serial]
        self._documents_in_flight -= batch[0].lane is Lane.DOCUMENT
        finished = loop.time()
        for entry in batch:
            entry.started, entry.finished = started, finished

    def _settle(self, batch: list[QueuedText], vectors: Float32Matrix) -> None:
        unusable = set(self._unusable(vectors))
        for row, entry in enumerate(batch):
            if row not in unusable:
                entry.finish(vectors[row])
                continue
            norm = float(np.linalg.norm(vectors[row].astype(np.float64)))
            self._fail(entry, BadVectorError(f"The model returned a vector of norm {norm:g}."))

    def _fail(self, entry: QueuedText, error: EmbeddingServerError) -> None:
        """Retry the text in a batch of its own if that can help, else deliver the error."""
        if isinstance(error, (BadVectorError, BackendError)) and not entry.alone:
            entry.alone = True
            self._alone.append(entry)
            self._metrics.recomputed_texts.inc()
        else:
            entry.finish(error)

    def _measure(self, batch: Sequence[QueuedText], tokens: int, seconds: float) -> None:
        """Update the rates from a batch.

        The model's own time decides how large batches are. The round trip would contain the event
        loop's delays: under load, they would make batches smaller, which makes the load heavier.
        """
        # Without it, batches in flight share the model: together they were that many times as fast.
        model_seconds = batch[0].model_seconds or seconds / len(self._tasks)
        self._speeds[batch[0].lane].record(tokens, model_seconds)
        self.admission.record_batch(
            tokens,
            asyncio.get_running_loop().time(),
            model_rate=max(speed.tokens_per_second for speed in self._speeds.values()),
            has_more=len(self._tasks) > 1 or bool(self._waiting),
        )


def _lane_state(lane: Lane, waiting: Sequence[QueuedText], now: float) -> LaneState:
    return LaneState(
        lane=lane.label,
        texts=len(waiting),
        tokens=sum(entry.text.length for entry in waiting),
        oldest_seconds=now - min((entry.arrived for entry in waiting), default=now),
    )
