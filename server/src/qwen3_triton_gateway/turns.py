"""Whose texts go next: API keys take turns, and the requests of a key.

A turn goes to the key that has had the fewest tokens of the model, and within it to the request
that has had the fewest. A new request begins level with the one that is next, so it goes
next, however many texts others have waiting. The longest waiting text of the turn is the first of
a batch (the anchor), and the batch fills up with texts of similar length: first those whose turns
are near, in the order of turns, then any. Each text that a batch takes is charged to its request
and its key.

A key that was away for a moment gets the turns that it missed. Every fifth batch begins with the
oldest text at the latest, so that none waits forever while new requests keep coming.

This is plain data without a clock or I/O.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from .batching import OLD_AGE, BatchLimits, Lane, bucket_length, padded_length, similar_lengths
from .errors import EmbeddingServerError
from .tensors import Float32Vector, TokenizedText

# A batch is filled from this many batches' worth of texts in the order of turns: enough lengths to
# choose from that padding stays as low as with all texts (`bench/README.md`).
HORIZON_BATCHES = 8
# A key that waits for its own next request, with an empty queue, may catch up on this many
# batches: as many leave before the next request can be in one.
CREDIT_BATCHES = 2
# A request of more texts is large.
SMALL_TEXTS = 8
# Levels of `priority`: before, with and after the other requests of a key.
PRIORITIES = (-1, 0, 1)

# Two waiting texts are the same if their lane and their token IDs are.
TextKey: TypeAlias = tuple[Lane, bytes]


@dataclass(eq=False, slots=True)
class Waiter:
    """A request that waits until all of its texts are done.

    Attributes:
        all_done: Whether they are; False once its deadline has passed.
        missing: Number of texts that are not done.
    """

    all_done: asyncio.Future[bool]
    missing: int

    def give_up(self) -> None:
        """Wake the request, unless all of its texts are done."""
        self._wake(all_done=False)

    def count_done(self) -> None:
        """Count one more text as done, and wake the request after the last."""
        self.missing -= 1
        if not self.missing:
            self._wake(all_done=True)

    def _wake(self, *, all_done: bool) -> None:
        if not self.all_done.done():
            self.all_done.set_result(all_done)


@dataclass(eq=False, slots=True)
class QueuedText:
    """A text in the queue, shared by every request that waits for its vector.

    Attributes:
        serial: Counts texts in their order of arrival.
        arrived: When the text was queued, in the event loop's time; so are the other times.
        deadline: The latest deadline of the requests that wait for it.
        caller: The API key of the first request that waits for it.
        is_bulk: Whether that request is a bulk request.
        origin: What that request passed to `submit`, for tracing.
        waiters: The requests that wait for it, once for each place where they have it.
        result: The vector, or the reason why there is none; unset until it is done.
        alone: Whether it has to run in a batch of its own.
        model_seconds: What the model took for its batch; 0 where that is not measured.
        turn: The request that its tokens count for; None once it has left the queue.
        rank: The sort key by length. Texts that are padded to one length keep their order of
            arrival: else, those that are longer or shorter than most would wait for all others.
    """

    text: TokenizedText
    lane: Lane
    key: TextKey
    serial: int
    arrived: float
    deadline: float
    caller: str = ""
    is_bulk: bool = False
    origin: object = None
    waiters: list[Waiter] = field(default_factory=list[Waiter])
    result: Float32Vector | EmbeddingServerError = field(init=False)
    alone: bool = False
    started: float = 0.0
    finished: float = 0.0
    model_seconds: float = 0.0
    turn: Turn | None = None
    rank: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rank = padded_length(self.text.length), self.serial

    def finish(self, result: Float32Vector | EmbeddingServerError) -> None:
        """Set the result, and wake up requests that waited for nothing else."""
        self.result = result
        for waiter in self.waiters:
            waiter.count_done()


_rank = attrgetter("rank")


@dataclass(eq=False, slots=True)
class Caller:
    """The requests of one API key in a lane.

    Attributes:
        served: Tokens that it has had, counted from what others had when it came.
        turns: Its requests, in the order of their arrival.
        levels: By priority, what the request had that was last in turn.
    """

    served: float = 0.0
    turns: dict[int, Turn] = field(default_factory=dict[int, "Turn"])
    levels: dict[int, float] = field(default_factory=lambda: dict.fromkeys(PRIORITIES, 0.0))

    def waiting(self) -> list[Turn]:
        """List the requests that have texts in the queue, the next in turn first.

        Only those of the most urgent priority.
        """
        turns = [turn for turn in self.turns.values() if turn.has_texts()]
        urgent = min((turn.priority for turn in turns), default=0)
        return sorted(
            (turn for turn in turns if turn.priority == urgent),
            key=lambda turn: (turn.served, turn.is_large, turn.serial),
        )


@dataclass(eq=False, slots=True)
class Turn:
    """A request in the queue.

    Attributes:
        caller: Whose request it is.
        priority: One of `PRIORITIES`; lower goes first.
        serial: Counts requests in their order of arrival.
        served: Tokens that it has had, counted from what others had when it came.
        texts: Its texts, the longest last. Those that have left the queue stay until they are last.
        is_large: Whether small requests that have had as much go first.
    """

    caller: Caller
    priority: int
    serial: int
    served: float
    texts: list[QueuedText]
    is_large: bool = False

    def has_texts(self) -> bool:
        """Return whether it has texts in the queue; the longest is then `texts[-1]`."""
        while self.texts and self.texts[-1].turn is None:
            self.texts.pop()
        return bool(self.texts)

    def upcoming(self, tokens: float) -> Iterator[QueuedText]:
        """Yield its longest texts in the queue, until they have that many tokens."""
        for entry in reversed(self.texts):
            if entry.turn is not None:
                yield entry
                tokens -= entry.rank[0]
                if tokens <= 0:
                    return


def near_texts(waiting: Sequence[Sequence[Turn]], tokens: float) -> dict[QueuedText, float]:
    """Choose the texts whose turns are near, with their places in the order of turns.

    Each key has the same share of the tokens, and each request has the same share of its key's. A
    place is what the key has had by then, if its requests take turns.

    Args:
        waiting: The requests of each key, the next in turn first.
        tokens: How many to choose, roughly: every request has a text until its key's are used up.
    """
    near: dict[QueuedText, float] = {}
    for turns in waiting:
        left = tokens / len(waiting)
        share = left / len(turns)
        for position, turn in enumerate(turns):
            place = turn.caller.served + position * turn.texts[-1].rank[0]
            for entry in turn.upcoming(share):
                if entry not in near:
                    near[entry] = place
                    entry.turn = turn  # of several that share it
                    left -= entry.rank[0]
                place += entry.rank[0] * len(turns)
            if left <= 0:
                break
    return near


def similar_texts(
    near: dict[QueuedText, float], anchor: QueuedText, limits: BatchLimits
) -> list[QueuedText]:
    """Choose a batch around a text; of equal padded lengths, those whose turns are first."""
    width = anchor.rank[0]
    # The position in `near` settles ties, and spares a comparison of texts.
    places = [(entry.rank[0], place, at, entry) for at, (entry, place) in enumerate(near.items())]
    shorter = [(-padded, place, at, entry) for padded, place, at, entry in places if padded < width]
    longer = [item for item in places if item[0] >= width and item[3] is not anchor]
    shorter.sort()
    longer.sort()
    ordered = [item[3] for item in reversed(shorter)]
    ordered.append(anchor)
    ordered += [item[3] for item in longer]
    window = similar_lengths(_Lengths(ordered), len(shorter), limits)
    return ordered[window.start : window.stop]


class _Lengths(Sequence[int]):
    """The lengths of entries, read in place: a copy would cost time for every batch."""

    def __init__(self, entries: Sequence[QueuedText]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    # An index is all that `similar_lengths` asks for; slices are not supported.
    def __getitem__(self, index: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._entries[index].text.length


@dataclass(slots=True)
class LaneQueue:
    """The waiting texts of one lane.

    Attributes:
        by_length: The texts in ascending padded length, the oldest of each first.
        callers: Who has requests in the queue, or had some, by name.
        arrivals: The texts in their order of arrival. Texts that have left the queue stay in it
            until they reach the front, since removing them from the middle would be slow.
        level: What the key had whose turn was last.
        age: Batches since one began with the oldest text.
        credit: Tokens that a key may catch up on.
    """

    by_length: list[QueuedText] = field(default_factory=list[QueuedText])
    callers: dict[str, Caller] = field(default_factory=dict[str, Caller])
    arrivals: deque[QueuedText] = field(default_factory=deque[QueuedText])
    level: float = 0.0
    age: int = 0
    credit: float = 0.0
    _requests: int = 0

    def __len__(self) -> int:
        return len(self.by_length)

    def join(self, entries: Iterable[QueuedText], *, caller: str = "", priority: int = 0) -> Turn:
        """Queue the texts of a request, and return its turn, to `leave` with.

        Texts that another request has queued become part of both.

        Args:
            entries: Its texts, without those that have left the queue.
            caller: The name of its API key.
            priority: Any number; lower goes first among the requests of a key.
        """
        owner = self.callers.setdefault(caller, Caller())
        if not any(turn.has_texts() for turn in owner.turns.values()):
            owner.served = max(owner.served, self.level - self.credit)
        sign = (priority > 0) - (priority < 0)
        self._requests += 1
        # From the longest to the shortest, those of one length in their own order, and backwards.
        texts = sorted(entries, key=lambda entry: -entry.text.length)[::-1]
        is_large = len(texts) > SMALL_TEXTS
        turn = Turn(owner, sign, self._requests, owner.levels[sign], texts, is_large)
        owner.turns[turn.serial] = turn
        for entry in reversed(texts):
            if entry.turn is None:
                entry.turn = turn
                self.arrivals.append(entry)
                insort(self.by_length, entry, key=_rank)
        return turn

    def leave(self, turn: Turn) -> None:
        """Forget a request; its texts are taken, discarded, or part of others."""
        del turn.caller.turns[turn.serial]

    def discard(self, entry: QueuedText) -> None:
        """Remove a text that no caller is waiting for."""
        if entry.turn is not None:
            entry.turn = None
            del self.by_length[bisect_left(self.by_length, entry.rank, key=_rank)]

    def take_batch(self, limits: BatchLimits) -> list[QueuedText]:
        """Remove the texts of the next batch; the lane must not be empty."""
        self.credit = CREDIT_BATCHES * limits.max_batch_tokens
        if len(self.by_length) == 1:
            return self._take_only_text()
        waiting = [turns for caller in self.callers.values() if (turns := caller.waiting())]
        near = near_texts(waiting, HORIZON_BATCHES * limits.max_batch_tokens)
        anchor = self._choose_anchor(min(waiting, key=lambda turns: turns[0].caller.served)[0])
        batch = similar_texts(near, anchor, limits)
        for entry in batch:
            self._take(entry)
        # Whatever room is left goes to those whose turns are not near.
        width = bucket_length(max(entry.text.length for entry in batch), limits.max_length)
        start = bisect_left(self.by_length, anchor.rank, key=_rank)
        lengths = _Lengths(self.by_length)
        rest = similar_lengths(lengths, start, limits, rows=len(batch), width=width)
        for entry in self.by_length[rest.start : rest.stop]:
            self._take(entry)
            batch.append(entry)
        if not self.by_length:
            self.arrivals.clear()
        return batch

    def _take_only_text(self) -> list[QueuedText]:
        """Remove the text of a lane that has no other: choosing it would take most of the time."""
        (entry,) = self.by_length
        assert entry.turn is not None, "it is waiting"
        self._begin_turn(entry.turn)
        self.age = 0
        self._take(entry)
        self.arrivals.clear()
        return [entry]

    def _begin_turn(self, turn: Turn) -> None:
        """Raise the levels at which others begin to what the request, and its caller, have had."""
        self.level = max(self.level, turn.caller.served)
        levels = turn.caller.levels
        levels[turn.priority] = max(levels[turn.priority], turn.served)

    def _choose_anchor(self, turn: Turn) -> QueuedText:
        """Choose the text that the batch begins with: of the request in turn, or the oldest."""
        self._begin_turn(turn)
        while self.arrivals[0].turn is None:
            self.arrivals.popleft()
        anchor = self.arrivals[0] if self.age >= OLD_AGE else turn.texts[-1]
        self.age = 0 if anchor is self.arrivals[0] else self.age + 1
        return anchor

    def _take(self, entry: QueuedText) -> None:
        """Remove a text, and count its tokens for its request and its key."""
        assert entry.turn is not None, "it is waiting"
        entry.turn.served += entry.text.length
        entry.turn.caller.served += entry.text.length
        self.discard(entry)
