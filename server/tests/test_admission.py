"""Which requests are admitted, and when refused ones may come back."""

import asyncio
import time
from contextlib import ExitStack
from functools import partial

import pytest

from qwen3_triton_gateway.admission import (
    ALWAYS_ADMITTED,
    BULK_TOKENS,
    Admission,
    DrainRate,
    Limit,
    is_bulk_request,
    settle_entry,
)
from qwen3_triton_gateway.batching import Lane
from qwen3_triton_gateway.errors import MAX_RETRY_AFTER_SECONDS, QueueFullError
from qwen3_triton_gateway.metrics import Metrics

RATE = 1000.0
TIMEOUT_SECONDS = 120.0


def make(**bounds: int) -> Admission:
    bounds = {"max_queue_tokens": 10**9, "max_queue_requests": 1000} | bounds
    return Admission(**bounds, metrics=Metrics())


def measured(*, seconds_ago: float = 0.0, **bounds: int) -> Admission:
    """Create bounds whose rate was measured: `RATE` tokens per second."""
    admission = make(**bounds)
    measured_at = int(time.monotonic() - seconds_ago)
    for now in range(measured_at - 2, measured_at + 1):
        admission.drain.record(int(RATE), now, is_backlogged=True)
    return admission


def submit(
    admission: Admission,
    stack: ExitStack,
    tokens: int,
    lane: Lane = Lane.DOCUMENT,
    *,
    texts: int = 1,
) -> None:
    """Queue a request of so many tokens in texts of one length until the stack is closed."""
    deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
    stack.enter_context(admission.submission(lane, tokens, deadline=deadline))
    add = partial(admission.queued[lane].add, is_bulk=is_bulk_request(tokens))
    for _ in range(texts):
        add(tokens // texts)
        stack.callback(add, -tokens // texts)


def fill(admission: Admission, stack: ExitStack, tokens: int, lane: Lane = Lane.DOCUMENT) -> int:
    """Queue requests until one is refused; return how many were not."""
    count = 0
    try:
        while count < 10_000:
            submit(admission, stack, tokens, lane)
            count += 1
    except QueueFullError:
        return count
    pytest.fail("none was refused")


async def test_what_would_wait_too_long_is_refused() -> None:
    admission = measured()
    with ExitStack() as stack:
        admitted = fill(admission, stack, 10)
    assert 0.5 * RATE < 10 * admitted < 3 * RATE


async def test_the_first_requests_are_admitted_however_slow_the_model_is() -> None:
    admission = measured()
    with ExitStack() as stack:
        for _ in range(ALWAYS_ADMITTED):
            submit(admission, stack, BULK_TOKENS - 1)
        with pytest.raises(QueueFullError):
            submit(admission, stack, BULK_TOKENS - 1)


@pytest.mark.parametrize(("seconds", "admitted"), [(7.0, 15), (30.0, 3), (300.0, 1)])
async def test_as_many_bulk_requests_are_admitted_as_end_in_time_by_turns(
    seconds: float, admitted: int
) -> None:
    with ExitStack() as stack:
        assert fill(measured(), stack, int(seconds * RATE)) == admitted


@pytest.mark.parametrize("is_measured", [True, False])
async def test_the_second_bulk_request_waits_until_the_rate_is_known_or_the_first_has_ended(
    is_measured: bool,
) -> None:
    admission = make()
    with ExitStack() as stack:
        submit(admission, stack, 2 * BULK_TOKENS)
        second = asyncio.create_task(admission.learn_rate(Lane.DOCUMENT))
        await asyncio.sleep(0)
        assert not second.done()
        if is_measured:
            for now in (0.0, 1.0):
                admission.record_batch(10, now, model_rate=1.0, has_more=True)
            await asyncio.wait_for(second, 5)
    await asyncio.wait_for(second, 5)


async def test_an_old_rate_refuses_none_of_the_first_bulk_requests() -> None:
    with ExitStack() as stack:
        admission = measured(seconds_ago=TIMEOUT_SECONDS + 1)
        assert fill(admission, stack, int(30 * RATE)) == ALWAYS_ADMITTED


async def test_a_bulk_request_is_admitted_when_little_is_ahead_of_it() -> None:
    admission = measured()
    with ExitStack() as stack:
        for _ in range(4):
            submit(admission, stack, BULK_TOKENS)
        submit(admission, stack, int(40 * RATE))


async def test_bulk_requests_may_wait_for_half_of_their_deadline() -> None:
    admission = measured()
    with ExitStack() as stack:
        admitted = fill(admission, stack, BULK_TOKENS)
    waiting_seconds = admitted * BULK_TOKENS / RATE
    assert 0.4 * TIMEOUT_SECONDS < waiting_seconds < 0.7 * TIMEOUT_SECONDS


async def test_nothing_is_refused_for_its_wait_before_the_rate_is_known() -> None:
    admission = make()
    admission.record_batch(10, 0.0, model_rate=1.0, has_more=True)
    with ExitStack() as stack:
        for _ in range(500):
            submit(admission, stack, 1000)


async def test_queries_wait_for_queries_only() -> None:
    admission = measured()
    with ExitStack() as stack:
        fill(admission, stack, 10)
        assert fill(admission, stack, 10, Lane.QUERY) > ALWAYS_ADMITTED


async def test_documents_leave_requests_and_tokens_to_queries() -> None:
    for bounds in ({"max_queue_requests": 80}, {"max_queue_tokens": 8000}):
        admission = make(**bounds)
        with ExitStack() as stack:
            documents = fill(admission, stack, 100)
            assert documents == 70
            queries = 0
            while queries < 10:
                submit(admission, stack, 100, Lane.QUERY)
                queries += 1


async def test_a_query_fits_even_when_one_request_of_documents_exceeds_the_limit() -> None:
    admission = make(max_queue_tokens=1000)
    with ExitStack() as stack:
        submit(admission, stack, 5000)
        submit(admission, stack, 100, Lane.QUERY)
        with pytest.raises(QueueFullError, match="EMBED_MAX_QUEUE_TOKENS"):
            submit(admission, stack, 100)


async def test_requests_that_have_just_arrived_count_at_the_door() -> None:
    admission = measured()

    def at_the_door() -> Limit | None:
        return admission.limit_at_the_door(Lane.DOCUMENT, is_bulk=False, timeout_seconds=1.0)

    with ExitStack() as stack:
        for _ in range(ALWAYS_ADMITTED):
            submit(admission, stack, 20)
        assert at_the_door() is None
        states: list[dict[str, object]] = [{} for _ in range(100)]
        for state in states:
            admission.enter(state)
        assert at_the_door() is Limit.WAIT
        for state in states:
            settle_entry(state)
            settle_entry(state)  # when the request ends
        assert not admission.entering
        assert at_the_door() is None


async def test_the_limit_of_requests_leaves_a_share_to_queries_at_the_door() -> None:
    admission = make(max_queue_requests=8)
    with ExitStack() as stack:
        for _ in range(7):
            admission.begin_request()
            submit(admission, stack, 10)
        limits = [
            admission.limit_at_the_door(lane, is_bulk=False, timeout_seconds=1.0) for lane in Lane
        ]
        assert limits == [None, Limit.REQUESTS]


def test_the_rate_is_what_leaves_while_requests_wait() -> None:
    rate = DrainRate()
    for step in range(100):
        rate.record(50, step * 0.1, is_backlogged=True)
    assert rate.per_second == pytest.approx(500, rel=0.1)
    # A pause without work, then single requests: neither shows what the gateway is able to do.
    rate.record(50, 10.0, is_backlogged=False)
    for second in range(60, 90):
        rate.record(1, float(second), is_backlogged=False)
    assert rate.per_second == pytest.approx(500, rel=0.1)


async def test_a_pause_after_the_last_batch_does_not_lower_the_rate() -> None:
    admission = measured()
    with ExitStack() as stack:
        for _ in range(20):
            submit(admission, stack, 10)
        now = admission.drain.measured_at
        admission.record_batch(1000, now + 1, model_rate=RATE, has_more=False)
        admission.record_batch(1000, now + 58, model_rate=RATE, has_more=True)
    assert admission.drain.per_second == pytest.approx(RATE, rel=0.1)


def test_the_rate_follows_within_seconds() -> None:
    rate = DrainRate()
    for step in range(100):
        rate.record(50, step * 0.1, is_backlogged=True)
    for step in range(100, 160):
        rate.record(5, step * 0.1, is_backlogged=True)
    assert rate.per_second < 100


def retry_times(admission: Admission, limit: Limit, tokens: int = 0) -> set[int]:
    return {
        admission.refuse(limit, Lane.DOCUMENT, tokens).retry_after_seconds or 0 for _ in range(200)
    }


@pytest.mark.parametrize("limit", [Limit.REQUESTS, Limit.WAIT])
async def test_retry_after_is_the_time_of_the_work_ahead_with_jitter(limit: Limit) -> None:
    admission = measured()
    with ExitStack() as stack:
        submit(admission, stack, int(4 * RATE))
        assert retry_times(admission, limit) == {4, 5, 6}
        submit(admission, stack, int(500 * RATE))
        assert retry_times(admission, limit) == {MAX_RETRY_AFTER_SECONDS}


async def test_even_short_waits_are_spread() -> None:
    admission = measured()
    with ExitStack() as stack:
        submit(admission, stack, int(0.4 * RATE))
        assert retry_times(admission, Limit.WAIT) == {1, 2}


def submit_for(admission: Admission, stack: ExitStack, caller: str, tokens: int = 10) -> None:
    """Queue a request of a key until the stack is closed."""
    deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
    lane, is_bulk = Lane.DOCUMENT, is_bulk_request(tokens)
    stack.enter_context(admission.submission(lane, tokens, deadline=deadline, caller=caller))
    admission.queued[lane].add(tokens, caller, is_bulk=is_bulk)
    stack.callback(admission.queued[lane].add, -tokens, caller, is_bulk=is_bulk)


def fill_for(admission: Admission, stack: ExitStack, caller: str, tokens: int = 10) -> int:
    for count in range(10_000):
        try:
            submit_for(admission, stack, caller, tokens)
        except QueueFullError:
            return count
    pytest.fail("none was refused")


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param({}, id="wait"),
        pytest.param({"max_queue_requests": 80}, id="requests"),
        pytest.param({"max_queue_tokens": 8000}, id="tokens"),
    ],
)
async def test_a_key_is_admitted_however_much_another_has_queued(bounds: dict[str, int]) -> None:
    admission = measured(**bounds)
    with ExitStack() as stack:
        fill_for(admission, stack, "flood", 100)
        submit_for(admission, stack, "lone", 100)
    assert not admission.queued[Lane.DOCUMENT].callers


async def test_a_key_waits_for_its_own_share_of_the_model_only() -> None:
    admission = measured()
    with ExitStack() as stack:
        fill_for(admission, stack, "flood")
        lone = fill_for(admission, stack, "lone")
    assert lone > ALWAYS_ADMITTED


async def test_the_keys_together_leave_requests_to_queries() -> None:
    admission = make(max_queue_requests=80)
    with ExitStack() as stack:
        for number in range(80):
            try:
                submit_for(admission, stack, f"key-{number}")
            except QueueFullError:
                break
        for _ in range(5):
            submit(admission, stack, 10, Lane.QUERY)


async def test_a_small_request_does_not_wait_for_all_of_the_bulk() -> None:
    admission = measured()
    with ExitStack() as stack:
        submit(admission, stack, int(20 * RATE))
        assert fill(admission, stack, 10) > ALWAYS_ADMITTED
        with pytest.raises(QueueFullError):
            submit(admission, stack, 10)


@pytest.mark.parametrize("texts", [100, 128])
async def test_a_text_waits_for_a_turn_of_each_small_request_and_not_for_all_its_texts(
    texts: int,
) -> None:
    admission, tokens = measured(), BULK_TOKENS // texts - 1
    limit = partial(
        admission.limit_at_the_door, Lane.DOCUMENT, is_bulk=False, timeout_seconds=TIMEOUT_SECONDS
    )
    with ExitStack() as stack:
        for _ in range(ALWAYS_ADMITTED):
            submit(admission, stack, texts * tokens, texts=texts)
        # Another of these would wait for all of them, a text for the next batches.
        assert limit(body_bytes=texts * tokens) is Limit.WAIT
        assert limit(body_bytes=tokens) is None
        with pytest.raises(QueueFullError):
            submit(admission, stack, texts * tokens, texts=texts)
        submit(admission, stack, tokens)
    assert not admission.queued[Lane.DOCUMENT].small_texts


async def test_nobody_is_refused_at_a_calm_door() -> None:
    admission = measured()
    with ExitStack() as stack:
        for number in range(ALWAYS_ADMITTED):
            assert admission.is_calm
            submit_for(admission, stack, f"key-{number % 2}", BULK_TOKENS - 1)
        assert not admission.is_calm
