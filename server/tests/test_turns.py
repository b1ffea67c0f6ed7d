"""Whose texts go next: properties of the rule, over lengths alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_triton_gateway.batching import OLD_AGE, BatchLimits, Lane, bucket_length
from qwen3_triton_gateway.tensors import TokenCount, TokenizedText
from qwen3_triton_gateway.turns import CREDIT_BATCHES, LaneQueue, QueuedText, Turn

LIMITS = BatchLimits(max_batch_size=16, max_batch_tokens=1500, max_length=1024)
SHORT = 16
LENGTHS = st.integers(2, 700)
REQUESTS = st.lists(st.lists(LENGTHS, min_size=1, max_size=40), min_size=1, max_size=12)


class Queue:
    """A lane, and what is needed to queue lengths instead of texts."""

    def __init__(self) -> None:
        self.lane = LaneQueue()
        self._arrived = 0
        self._turns: dict[QueuedText, Turn] = {}
        self._left: Counter[Turn] = Counter()

    def add(self, lengths: Iterable[int], caller: str = "", priority: int = 0) -> list[QueuedText]:
        """Queue a request, whose texts have these lengths."""
        entries = [self._entry(length, caller) for length in lengths]
        turn = self.lane.join(entries, caller=caller, priority=priority)
        self._turns |= dict.fromkeys(entries, turn)
        self._left[turn] = len(entries)
        return entries

    def take(self) -> list[QueuedText]:
        """Take a batch; a request whose last text is in it has its answer."""
        batch = self.lane.take_batch(LIMITS)
        for entry in batch:
            turn = self._turns.pop(entry)
            self._left[turn] -= 1
            if not self._left[turn]:
                self.lane.leave(turn)
        return batch

    def batches(self) -> Iterator[list[QueuedText]]:
        while len(self.lane):
            yield self.take()

    def _entry(self, length: int, caller: str) -> QueuedText:
        self._arrived += 1
        text = TokenizedText(np.zeros(length, dtype=np.int64), TokenCount(length, length))
        key = Lane.DOCUMENT, str(self._arrived).encode()
        return QueuedText(text, Lane.DOCUMENT, key, self._arrived, 0.0, 0.0, caller=caller)


def batches_until(queue: Queue, entries: Sequence[QueuedText]) -> int:
    """Take batches until all entries have left the queue; return how many."""
    for number, _ in enumerate(queue.batches(), start=1):
        if all(entry.turn is None for entry in entries):
            return number
    pytest.fail("they never left")


def tokens_of(batch: Sequence[QueuedText], caller: str) -> int:
    return sum(entry.text.length for entry in batch if entry.caller == caller)


@given(REQUESTS)
def test_every_text_leaves_once_in_a_batch_within_the_limits(requests: list[list[int]]) -> None:
    queue = Queue()
    queued = [entry for lengths in requests for entry in queue.add(lengths)]
    taken: list[QueuedText] = []
    for batch in queue.batches():
        width = max(bucket_length(entry.text.length, LIMITS.max_length) for entry in batch)
        assert len(batch) <= LIMITS.max_batch_size
        assert len(batch) == 1 or len(batch) * width <= LIMITS.max_batch_tokens
        taken += batch
    assert Counter(taken) == Counter(queued)


@given(REQUESTS, st.integers(0, 30), LENGTHS, st.sampled_from(["", "mine"]))
def test_a_small_request_is_in_the_next_batch_or_two(
    requests: list[list[int]], before: int, length: int, caller: str
) -> None:
    queue = Queue()
    for lengths in requests:
        queue.add(lengths * 10)
    for _ in range(min(before, len(queue.lane) // LIMITS.max_batch_size)):
        queue.take()
    assert batches_until(queue, queue.add([length], caller)) <= 2


@settings(max_examples=20)
@given(st.lists(LENGTHS, min_size=1, max_size=8), st.sampled_from([-1, 0]))
def test_nothing_starves_while_more_small_requests_come_than_batches_take(
    lengths: list[int], priority: int
) -> None:
    """However many requests come later, an older text costs at most `OLD_AGE` + 1 batches."""
    queue = Queue()
    entries = queue.add(lengths, priority=1)
    for _ in range(len(lengths) * (OLD_AGE + 1)):
        for _ in range(LIMITS.max_batch_size + 4):
            queue.add([SHORT], priority=priority)
        queue.take()
    assert all(entry.turn is None for entry in entries)


def test_a_large_request_still_fills_batches() -> None:
    queue = Queue()
    queue.add(np.random.default_rng(5).integers(40, 60, size=640).tolist())
    sizes = [len(batch) for batch in queue.batches()]
    assert set(sizes[:-2]) == {LIMITS.max_batch_size}


def test_small_requests_share_batches_with_a_large_one() -> None:
    queue = Queue()
    queue.add([50] * 640)
    for _ in range(30):
        queue.add([50])
        assert len(queue.take()) == LIMITS.max_batch_size


@pytest.mark.parametrize("requests", [1, 4, 16])
def test_padding_stays_low_however_many_requests_take_turns(requests: int) -> None:
    numbers = np.random.default_rng(6)
    queue = Queue()
    for _ in range(requests):
        lengths = numbers.lognormal(4.0, 0.9, size=1024 // requests)
        queue.add(np.clip(lengths, 3, 700).astype(int).tolist())
    padded = real = 0
    for batch in queue.batches():
        lengths = [entry.text.length for entry in batch]
        padded += len(batch) * bucket_length(max(lengths), LIMITS.max_length)
        real += sum(lengths)
    assert padded <= 1.12 * real


@pytest.mark.parametrize(
    "callers",
    [
        pytest.param({"one": 1, "two": 16}, id="1-and-16-requests"),
        pytest.param({"one": 3, "two": 1}, id="3-and-1"),
        pytest.param({"one": 1, "two": 4, "three": 8}, id="three-keys"),
    ],
)
def test_keys_have_equal_shares_however_many_requests_each_sends(callers: dict[str, int]) -> None:
    numbers = np.random.default_rng(7)
    queue, had = Queue(), Counter[str]()
    for caller, requests in callers.items():
        for _ in range(requests):
            queue.add(numbers.integers(10, 200, size=1000).tolist(), caller)
    for _ in range(60):
        batch = queue.take()
        had += Counter({caller: tokens_of(batch, caller) for caller in callers})
    assert min(had.values()) > 0.9 * had.total() / len(callers)


def test_requests_of_a_key_have_equal_shares_however_large_they_are() -> None:
    queue = Queue()
    large = set(queue.add([50] * 2000))
    small = queue.add([50] * 128)
    had = sum(len(large.intersection(queue.take())) for _ in range(10))
    assert had == pytest.approx(sum(entry.turn is None for entry in small), rel=0.2)


def test_a_key_that_was_away_catches_up_on_a_bounded_number_of_batches() -> None:
    queue = Queue()
    queue.add([100] * 3000, "busy")
    queue.add([100] * 30, "lone")
    for _ in range(40):
        queue.take()
    queue.add([100] * 300, "lone")
    batches = [queue.take() for _ in range(12)]
    lone = [tokens_of(batch, "lone") for batch in batches]
    ahead = sum(lone) - sum(tokens_of(batch, "busy") for batch in batches)
    assert lone[0] > 0
    assert abs(ahead) <= (CREDIT_BATCHES + 1) * LIMITS.max_batch_tokens


def test_a_new_key_gets_no_more_than_one_whose_texts_were_each_alone_in_the_queue() -> None:
    queue = Queue()
    for _ in range(500):
        queue.add([100], "first")
        queue.take()
    for caller in ("first", "second"):
        queue.add([100] * 300, caller)
    batches = [queue.take() for _ in range(12)]
    second = sum(tokens_of(batch, "second") for batch in batches)
    ahead = second - sum(tokens_of(batch, "first") for batch in batches)
    assert abs(ahead) <= (CREDIT_BATCHES + 1) * LIMITS.max_batch_tokens


def test_priority_orders_the_requests_of_a_key_and_no_others() -> None:
    queue = Queue()
    last = queue.add([100] * 40, "mine", priority=7)
    first = queue.add([100] * 40, "mine", priority=-3)
    other = queue.add([100] * 40, "other")
    for _ in range(3):
        queue.take()
    assert sum(entry.turn is None for entry in first) > sum(entry.turn is None for entry in last)
    assert any(entry.turn is None for entry in other)


def test_a_text_that_two_requests_share_has_the_turn_that_comes_first() -> None:
    queue = Queue()
    large = queue.add([100] * 500 + [SHORT])
    queue.take()
    shared = large[-1]
    turn = queue.lane.join([shared])
    assert batches_until(queue, [shared]) <= 2
    queue.lane.leave(turn)


def test_a_request_that_is_gone_leaves_nothing_behind() -> None:
    queue = Queue()
    lane = queue.lane
    entries = queue.add([50] * 20)
    turn = entries[0].turn
    assert turn is not None
    for entry in entries:
        lane.discard(entry)
        lane.discard(entry)
    lane.leave(turn)
    queue.add([60])
    assert len(queue.take()) == 1
    assert not lane.by_length
    assert not lane.arrivals
    assert not any(caller.turns for caller in lane.callers.values())
