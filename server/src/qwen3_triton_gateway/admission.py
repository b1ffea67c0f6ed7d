"""Which requests are admitted: bounds on their number, their tokens and their wait.

A request is admitted if the work ahead of it is done within `MAX_WAIT_SECONDS`, by the rate at
which work was done recently. What waits longer than callers want costs goodput: its answer comes
when its caller has given up. A few requests of each kind are admitted whatever is ahead, so that a
slow model serves its callers, each of whom waits for an answer before sending more. Of bulk, only
as many as end in time: they take turns, so that too many would all miss their deadlines at once,
and again when they are retried.

Queries have their own wait, since they overtake documents, and a share of requests and tokens that
documents cannot take. Since requests take turns (`turns`), a small one does not wait for all of a
large one, and one API key not for all that another has queued; and no key takes every place.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from .batching import Lane
from .errors import MAX_RETRY_AFTER_SECONDS, QueueFullError
from .metrics import ModelMetrics

# Several batches, so that the model never idles. With the request's own batch and its way in and
# out of a busy gateway, 99 % are answered within three seconds.
MAX_WAIT_SECONDS = 0.75
# What was admitted at the door is refused later only if its wait is much longer than it seemed.
LATE_WAIT_SECONDS = 1.0
# Requests of this many tokens are bulk: their callers wait, for up to half of the deadline.
BULK_TOKENS = 4096
BULK_WAIT_SHARE = 0.5
# Bulk requests that take turns end within this share of the deadline.
BULK_TURNS_SHARE = 0.9
# Requests of each kind that are admitted whatever is ahead of them, for each API key: two of this
# repository's clients with their default concurrency.
ALWAYS_ADMITTED = 16
# Queries keep one request, and one token, out of this many.
RESERVED_FOR_QUERIES = 8
# The rate is measured while at least this many requests wait, or the tokens of a bulk request, and
# over about this long.
MEASURED_BACKLOG = 8
MEMORY_SECONDS = 2.0
# Less shows nothing: the first batches of a shape are slow.
MIN_MEASURED_SECONDS = 0.5
# How long the first bulk requests of a process wait for that behind another one: a slow model takes
# seconds for a batch.
LEARN_SECONDS = 10.0
MEAN_SMOOTHING = 0.05
# Callers that are refused together are told times that differ by up to this share.
JITTER = 0.5
# Where a request's state holds the bounds that it counts towards and its key, or `ENDED`.
ENTRY = "entered_through"
ENDED = object()


class Limit(StrEnum):
    """A limit that a request may hit, as metrics and logs name it."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    WAIT = "wait"


@dataclass(slots=True)
class LaneTokens:
    """The tokens that wait in one lane.

    Attributes:
        small: Those of small requests.
        small_texts: The texts that these are in.
        bulk: Those of bulk requests.
        callers: Those of each API key that has any.
    """

    small: int = 0
    small_texts: int = 0
    bulk: int = 0
    callers: Counter[str] = field(default_factory=Counter[str])

    @property
    def total(self) -> int:
        return self.small + self.bulk

    def add(self, tokens: int, caller: str = "", *, is_bulk: bool = False) -> None:
        """Count the tokens of a text, or stop counting them if negative."""
        if is_bulk:
            self.bulk += tokens
        else:
            self.small += tokens
            self.small_texts += 1 if tokens > 0 else -1
        self.callers[caller] += tokens
        if not self.callers[caller]:
            del self.callers[caller]


class DrainRate:
    """How many tokens leave per second while requests wait, over the last seconds.

    What leaves is counted, not how long each batch took: so the rate is right whether the model is
    the bottleneck or the gateway. Without requests that wait, it would only show how many come.

    Attributes:
        measured_at: When it was last measured, in the time of `record`.
    """

    def __init__(self) -> None:
        self.measured_at: float = -math.inf
        self._tokens = 0.0
        self._seconds = 0.0
        self._since: float | None = None

    @property
    def per_second(self) -> float:
        """Tokens per second; 0 while unknown."""
        is_known = self._seconds >= MIN_MEASURED_SECONDS
        return self._tokens / self._seconds if is_known else 0.0

    def record(self, tokens: int, now: float, *, is_backlogged: bool) -> None:
        """Count tokens that leave now.

        Args:
            tokens: How many.
            now: A monotonic time in seconds.
            is_backlogged: Whether requests wait, so that the time until the next call is busy.
        """
        if self._since is not None:
            seconds = now - self._since
            kept = math.exp(-seconds / MEMORY_SECONDS)
            self._tokens = self._tokens * kept + tokens
            self._seconds = self._seconds * kept + seconds
            self.measured_at = now
        self._since = now if is_backlogged else None


class Admission:
    """The bounds of one queue, and what counts towards them.

    Attributes:
        requests: Requests in progress.
        queued: Waiting tokens per lane.
        entering: Requests that have arrived, and whose tokens are not known yet, per API key.
        drain: The rate at which work is done.
    """

    def __init__(
        self, *, max_queue_tokens: int, max_queue_requests: int, metrics: ModelMetrics
    ) -> None:
        """Create the bounds of an empty queue; see `Scheduler`."""
        self._max_tokens = max_queue_tokens
        self._max_requests = max_queue_requests
        reserved = max_queue_requests // RESERVED_FOR_QUERIES
        self._max_document_requests = max(1, max_queue_requests - reserved)
        self._calm_requests = min(ALWAYS_ADMITTED, self._max_document_requests)
        self._refusals = {limit: metrics.rejected_requests.labels(limit.value) for limit in Limit}
        self.requests: int = 0
        self.queued: dict[Lane, LaneTokens] = {lane: LaneTokens() for lane in Lane}
        self.entering: Counter[str] = Counter()
        self._entering_requests = 0
        self.drain: DrainRate = DrainRate()
        self._progress = asyncio.Event()
        self._learning = 0
        self._submitted: Counter[tuple[str, Lane, bool]] = Counter()
        self._by_lane = dict.fromkeys(Lane, 0)
        self._by_caller: Counter[str] = Counter()
        self._bulk_requests = dict.fromkeys(Lane, 0)
        self._mean_tokens = 0.0
        self._model_rate = 0.0

    @property
    def queued_tokens(self) -> int:
        return self.queued[Lane.QUERY].total + self.queued[Lane.DOCUMENT].total

    @property
    def is_calm(self) -> bool:
        """Whether so few requests are in progress that none would be refused at the door."""
        entering = self._entering_requests
        waiting = self._by_lane[Lane.QUERY] + self._by_lane[Lane.DOCUMENT]
        return (
            waiting + entering < self._calm_requests
            and self.requests + entering < self._max_requests
        )

    def begin_request(self) -> None:
        """Count a request as in progress, once its body has arrived, until `end_request`.

        Raises:
            QueueFullError: As many requests as allowed are in progress.
        """
        if self.requests >= self._max_requests:
            raise self.refuse(Limit.REQUESTS, Lane.QUERY)
        self.requests += 1

    def end_request(self) -> None:
        self.requests -= 1

    async def learn_rate(self, lane: Lane) -> None:
        """Wait until the rate is known, or no other bulk request is in progress.

        Else, all that come at once to a new gateway would be admitted, and miss their deadlines.
        """
        self._learning += 1
        try:
            async with asyncio.timeout(LEARN_SECONDS):
                while self._bulk_requests[lane] and not self.drain.per_second:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            pass
        finally:
            self._learning -= 1

    @contextmanager
    def submission(
        self, lane: Lane, tokens: int, *, deadline: float, caller: str = ""
    ) -> Generator[None]:
        """Count a request as waiting, or refuse it.

        Args:
            lane: Where its texts wait.
            tokens: Their tokens.
            deadline: When it times out, in the event loop's time.
            caller: The name of its API key.

        Raises:
            QueueFullError: It exceeds a limit, or would wait too long.
        """
        left = deadline - asyncio.get_running_loop().time()
        limit = self._limit_of(lane, tokens, left, caller)
        if limit is not None:
            raise self.refuse(limit, lane, tokens, caller)
        is_bulk = is_bulk_request(tokens)
        if not is_bulk:
            self._mean_tokens += MEAN_SMOOTHING * (tokens - self._mean_tokens)
        self._count(caller, lane, 1, is_bulk=is_bulk)
        try:
            yield
        finally:
            self._count(caller, lane, -1, is_bulk=is_bulk)

    def _count(self, caller: str, lane: Lane, requests: int, *, is_bulk: bool) -> None:
        kind = caller, lane, is_bulk
        self._submitted[kind] += requests
        self._by_caller[caller] += requests
        self._by_lane[lane] += requests
        self._bulk_requests[lane] += requests * is_bulk
        if is_bulk:
            self._progress.set()
        if not self._submitted[kind]:
            del self._submitted[kind]
        if not self._by_caller[caller]:
            del self._by_caller[caller]

    def record_batch(self, tokens: int, now: float, *, model_rate: float, has_more: bool) -> None:
        """Count a batch that the model has finished.

        Args:
            tokens: Its tokens, without padding.
            now: The event loop's time.
            model_rate: How many tokens per second the model is able to do.
            has_more: Whether other texts are queued or in flight. If not, the requests that still
                count as waiting are about to get their answers.
        """
        self._model_rate = model_rate
        waiting = self._entering_requests + (sum(self._by_lane.values()) if has_more else 0)
        has_bulk = self._learning > 0 or (has_more and self.queued_tokens >= BULK_TOKENS)
        self.drain.record(tokens, now, is_backlogged=has_bulk or waiting >= MEASURED_BACKLOG)
        self._progress.set()

    def enter(self, state: dict[str, Any], caller: str = "") -> None:
        """Count a request that has arrived, until `settle_entry` gets its `state`."""
        if state.get(ENTRY) is not ENDED:
            self.entering[caller] += 1
            self._entering_requests += 1
            state[ENTRY] = self, caller

    def leave(self, caller: str) -> None:
        """Stop counting a request that has arrived."""
        self.entering[caller] -= 1
        self._entering_requests -= 1
        if not self.entering[caller]:
            del self.entering[caller]

    def limit_at_the_door(
        self,
        lane: Lane,
        *,
        is_bulk: bool,
        timeout_seconds: float,
        caller: str = "",
        body_bytes: float = math.inf,
    ) -> Limit | None:
        """Return the limit that a request would hit, before anything of its body is known.

        A token has a byte at least, so `body_bytes` bounds its tokens; a prompt that the gateway
        adds is to be counted, too.
        """
        if self.requests >= self._max_requests or not self._has_share(lane, caller):
            return Limit.REQUESTS
        patience = BULK_WAIT_SHARE * timeout_seconds if is_bulk else MAX_WAIT_SECONDS
        return self._limit_of_wait(
            lane, caller, body_bytes, is_bulk=is_bulk, patience_seconds=patience
        )

    def refuse(self, limit: Limit, lane: Lane, tokens: int = 0, caller: str = "") -> QueueFullError:
        """Count a refusal, and build its error."""
        self._refusals[limit].inc()
        return QueueFullError(
            self._describe(limit, lane, tokens),
            retry_after_seconds=self.retry_after_seconds(limit, lane, tokens, caller),
        )

    def retry_after_seconds(
        self, limit: Limit, lane: Lane, tokens: int = 0, caller: str = ""
    ) -> int:
        """Compute when a refused request may be sent again.

        Until then, the work ahead of it is done; or of a full queue, enough for it to fit.
        """
        rate = self.drain.per_second or self._model_rate
        if not rate:
            return 1
        ahead = self._tokens_ahead(lane, caller, is_bulk=True)
        if limit is Limit.TOKENS:
            ahead = max(0, self.queued_tokens + tokens - self._max_tokens)
        seconds = math.ceil(ahead / rate)
        # Whole seconds, and spread: callers that were refused together do not return together.
        spread = int(random.random() * (1 + max(1, math.ceil(JITTER * seconds))))
        return min(max(1, seconds) + spread, MAX_RETRY_AFTER_SECONDS)

    def _limit_of(self, lane: Lane, tokens: int, seconds_left: float, caller: str) -> Limit | None:
        """Return the limit that a request hits, once its tokens are known."""
        if not self._has_share(lane, caller):
            return Limit.REQUESTS
        if not self._fits(lane, tokens, caller):
            return Limit.TOKENS
        is_bulk = is_bulk_request(tokens)
        patience = LATE_WAIT_SECONDS
        if is_bulk:
            patience = max(patience, BULK_WAIT_SHARE * seconds_left)
            if self._misses_deadline(lane, tokens, seconds_left, caller):
                return Limit.WAIT
        return self._limit_of_wait(lane, caller, tokens, is_bulk=is_bulk, patience_seconds=patience)

    def _limit_of_wait(
        self, lane: Lane, caller: str, tokens: float, *, is_bulk: bool, patience_seconds: float
    ) -> Limit | None:
        is_among_first = (
            self._submitted[caller, lane, is_bulk] + self.entering[caller] < ALWAYS_ADMITTED
        )
        rate = self.drain.per_second
        if is_among_first or not rate:
            return None
        ahead = self._tokens_ahead(lane, caller, tokens, is_bulk=is_bulk)
        return None if ahead <= rate * patience_seconds else Limit.WAIT

    def _misses_deadline(self, lane: Lane, tokens: int, seconds_left: float, caller: str) -> bool:
        """Return whether a bulk request would miss its deadline, and others theirs because of it.

        It does not if little is ahead of it, or if it ends in time although each of the others has
        as many tokens as it has itself. A rate from before a deadline ago tells nothing: where
        requests are refused by it, none might wait, and so it would not be measured again.
        """
        others = self._bulk_requests[lane]
        possible = self.drain.per_second * seconds_left
        age = asyncio.get_running_loop().time() - self.drain.measured_at
        if not others or not possible or age > seconds_left:
            return False
        ahead = self._tokens_ahead(lane, caller, tokens, is_bulk=True)
        has_little_ahead = ahead + tokens <= BULK_WAIT_SHARE * possible
        return not has_little_ahead and (1 + others) * tokens > BULK_TURNS_SHARE * possible

    def _has_share(self, lane: Lane, caller: str) -> bool:
        """Return whether requests of a lane and of a key may be added.

        All queries together are bounded by `request`. A key leaves places to others, and one that
        has few gets some of those that documents leave to queries.
        """
        reserve = self._max_requests - self._max_document_requests
        own = self._by_caller[caller] if caller else 0
        if own and own >= self._max_document_requests:
            return False
        allowed = self._max_document_requests
        if caller and own < ALWAYS_ADMITTED:
            allowed += reserve // 2
        return lane is Lane.QUERY or self._by_lane[lane] < allowed

    def _fits(self, lane: Lane, tokens: int, caller: str) -> bool:
        """Return whether a request's tokens fit; alone in its lane, every request does."""
        reserved = self._max_tokens // RESERVED_FOR_QUERIES
        total = self.queued_tokens
        if lane is Lane.DOCUMENT:
            is_first = bool(caller) and not self.queued[lane].callers[caller]
            allowed = self._max_tokens - reserved // (2 if is_first else 1)
            return not self.queued[lane].total or total + tokens <= allowed
        own = self.queued[lane].total + tokens
        return not total or total + tokens <= self._max_tokens or own <= reserved

    def _tokens_ahead(
        self, lane: Lane, caller: str, tokens: float = math.inf, *, is_bulk: bool
    ) -> float:
        """Estimate the tokens that are done before those of a request that arrives now.

        Of a bulk request, it waits for a turn or two if it is small; of a small one, for as many
        tokens as it has itself, or a text; of other keys, for as much as its own has ahead of it.
        """
        queued = self.queued[lane]
        small, bulk, turn = queued.small, queued.bulk, tokens
        if not is_bulk:
            bulk = min(bulk, self._bulk_requests[lane] * self._mean_tokens)
            turn = max(tokens, small / max(1, queued.small_texts))
            small = min(small, (self._by_lane[lane] - self._bulk_requests[lane]) * turn)
        ahead = small + bulk
        if caller and len(queued.callers) > 1:
            ahead = min(ahead, queued.callers[caller] * len(queued.callers))
        if lane is Lane.DOCUMENT:
            ahead += self.queued[Lane.QUERY].total
        return ahead + self._entering_requests * min(turn, self._mean_tokens)

    def _describe(self, limit: Limit, lane: Lane, tokens: int) -> str:
        if limit is Limit.REQUESTS:
            allowed = self._max_requests if lane is Lane.QUERY else self._max_document_requests
            return (
                f"{allowed} requests are in progress, which is the limit "
                "(EMBED_MAX_QUEUE_REQUESTS). Retry later."
            )
        if limit is Limit.TOKENS:
            return (
                f"{self.queued_tokens} tokens are waiting and this request adds {tokens}; the "
                f"limit is {self._max_tokens} (EMBED_MAX_QUEUE_TOKENS). Retry later."
            )
        return (
            "The model has more work than it can do soon, so this request would wait too long. "
            "Retry later."
        )


def is_bulk_request(tokens: int) -> bool:
    """Return whether a request of this many tokens is a bulk request, whose caller can wait."""
    return tokens >= BULK_TOKENS


def settle_entry(state: dict[str, Any]) -> None:
    """Stop counting a request as entering, for good: its tokens are known, or it has ended."""
    entry = state.get(ENTRY)
    state[ENTRY] = ENDED
    if isinstance(entry, tuple):
        admission, caller = cast("tuple[Admission, str]", entry)
        admission.leave(caller)
