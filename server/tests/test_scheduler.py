import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from qwen3_triton_gateway import batching
from qwen3_triton_gateway.batching import OLD_AGE, BatchLimits, Lane
from qwen3_triton_gateway.errors import (
    BackendError,
    BackendUnavailableError,
    BadVectorError,
    DeadlineExceededError,
    QueueFullError,
)
from qwen3_triton_gateway.metrics import Metrics
from qwen3_triton_gateway.scheduler import Scheduler
from qwen3_triton_gateway.tensors import Float32Matrix, TokenCount, TokenizedText
from qwen3_triton_gateway.turns import QueuedText

LIMITS = BatchLimits(max_batch_size=8, max_batch_tokens=4096, max_length=1024)
FAR = 60.0


def text(length: int, marker: int = 0) -> TokenizedText:
    ids = np.full(length, marker, dtype=np.int64)
    return TokenizedText(ids, TokenCount(length, length))


def marker_of(result: QueuedText) -> int:
    vector = result.result
    assert isinstance(vector, np.ndarray)
    return int(vector[0])


class Model:
    """Answers each text with its first token ID + 1; batches wait for `gate` if it is set."""

    def __init__(self) -> None:
        self.batches: list[tuple[Lane, list[int]]] = []
        self.gate: asyncio.Event | None = None
        self.refuse: Exception | None = None
        self.poison: set[int] = set()
        self.bad: set[int] = set()

    async def __call__(
        self, entries: Sequence[QueuedText], timeout_seconds: float
    ) -> Float32Matrix:
        markers = [int(entry.text.input_ids[0]) for entry in entries]
        self.batches.append((entries[0].lane, markers))
        if self.gate is not None:
            await self.gate.wait()
        if self.refuse is not None:
            raise self.refuse
        if self.poison & set(markers):
            raise BackendError("CUDA out of memory")
        values = [np.nan if marker in self.bad else marker + 1.0 for marker in markers]
        return np.array([[value, 1.0] for value in values], dtype=np.float32)


def make(model: Model, *, window: int = 2, **bounds: int) -> Scheduler:
    bounds = {"max_queue_tokens": 10_000, "max_queue_requests": 100} | bounds
    return Scheduler(model, limits=LIMITS, window=window, metrics=Metrics(), **bounds)


def deadline(seconds: float = FAR) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_results_keep_the_order_of_the_texts() -> None:
    lengths = np.random.default_rng(1).integers(1, 600, size=300)
    texts = [text(int(length), marker) for marker, length in enumerate(lengths)]
    scheduler = make(Model(), max_queue_tokens=10**9)
    results = await scheduler.submit(texts, lane=Lane.DOCUMENT, deadline=deadline())
    assert [marker_of(result) for result in results] == list(range(1, 301))
    assert scheduler.queued_tokens == scheduler.in_flight == 0


async def test_a_query_overtakes_waiting_documents() -> None:
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=1)
    bulk = asyncio.create_task(
        scheduler.submit([text(9, i) for i in range(40)], lane=Lane.DOCUMENT, deadline=deadline())
    )
    await asyncio.sleep(0)
    query = asyncio.create_task(
        scheduler.submit([text(9, 99)], lane=Lane.QUERY, deadline=deadline())
    )
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(bulk, query)
    assert model.batches[1] == (Lane.QUERY, [99])


async def wait_behind(model: Model, scheduler: Scheduler, **whose: Any) -> int:
    """Queue one text behind two requests that fill many batches; return how many leave first."""
    model.gate = asyncio.Event()
    bulk = [
        asyncio.create_task(
            scheduler.submit(
                [text(20, start + i) for i in range(200)], lane=Lane.DOCUMENT, deadline=deadline()
            )
        )
        for start in (0, 200)
    ]
    await asyncio.sleep(0)
    lone = asyncio.create_task(
        scheduler.submit([text(9, 999)], lane=Lane.DOCUMENT, deadline=deadline(), **whose)
    )
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(lone, *bulk)
    return next(n for n, (_, markers) in enumerate(model.batches) if 999 in markers)


@pytest.mark.parametrize("whose", [{}, {"caller": "mine"}, {"priority": -1}])
async def test_a_small_request_does_not_wait_for_what_others_have_queued(
    whose: dict[str, Any],
) -> None:
    model = Model()
    scheduler = make(model, window=1, max_queue_tokens=10**9)
    # One batch was in flight, and another may begin with the oldest text.
    assert await wait_behind(model, scheduler, **whose) <= 2


async def test_a_text_that_a_large_request_has_queued_is_not_late_for_a_small_one() -> None:
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=1, max_queue_tokens=10**9)
    texts = [text(20, i) for i in range(200)]
    bulk = asyncio.create_task(
        scheduler.submit(texts, lane=Lane.DOCUMENT, deadline=deadline(), caller="large")
    )
    await asyncio.sleep(0)
    lone = asyncio.create_task(
        scheduler.submit([texts[199]], lane=Lane.DOCUMENT, deadline=deadline())
    )
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(bulk, lone)
    markers = [marker for _, batch in model.batches for marker in batch]
    assert markers.index(199) < 3 * LIMITS.max_batch_size
    assert len(markers) == 200


async def test_requests_share_batches_while_the_model_is_busy() -> None:
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=1)
    requests = [
        asyncio.create_task(scheduler.submit([text(9, i)], lane=Lane.DOCUMENT, deadline=deadline()))
        for i in range(5)
    ]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(*requests)
    assert model.batches == [(Lane.DOCUMENT, [0]), (Lane.DOCUMENT, [1, 2, 3, 4])]


async def test_batches_in_flight_never_exceed_the_window() -> None:
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=3)
    bulk = asyncio.create_task(
        scheduler.submit([text(9, i) for i in range(80)], lane=Lane.DOCUMENT, deadline=deadline())
    )
    await asyncio.sleep(0)
    assert scheduler.in_flight == 3
    model.gate.set()
    await bulk


async def test_the_last_slot_is_kept_for_queries_while_they_keep_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Model()
    scheduler = make(model, window=2)
    await scheduler.submit([text(9, 500)], lane=Lane.QUERY, deadline=deadline())
    model.gate = asyncio.Event()
    bulk = asyncio.create_task(
        scheduler.submit([text(9, i) for i in range(80)], lane=Lane.DOCUMENT, deadline=deadline())
    )
    await asyncio.sleep(0)
    assert scheduler.in_flight == 1
    query = asyncio.create_task(
        scheduler.submit([text(9, 501)], lane=Lane.QUERY, deadline=deadline())
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [lane for lane, _ in model.batches[1:]] == [Lane.DOCUMENT, Lane.QUERY]
    monkeypatch.setattr(batching, "QUERY_MEMORY_SECONDS", 0.0)
    model.gate.set()
    await asyncio.gather(bulk, query)
    assert {lane for lane, _ in model.batches[3:]} == {Lane.DOCUMENT}


async def test_equal_texts_are_computed_once() -> None:
    model = Model()
    results = await make(model).submit(
        [text(9, 5), text(9, 6), text(9, 5)], lane=Lane.DOCUMENT, deadline=deadline()
    )
    assert [marker_of(result) for result in results] == [6, 7, 6]
    assert model.batches == [(Lane.DOCUMENT, [5, 6])]


async def test_a_full_queue_refuses_a_whole_request_and_says_when_to_retry() -> None:
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=1, max_queue_tokens=100)
    first = asyncio.create_task(
        scheduler.submit([text(9, i) for i in range(12)], lane=Lane.DOCUMENT, deadline=deadline())
    )
    await asyncio.sleep(0)
    queued = scheduler.queued_tokens
    with pytest.raises(QueueFullError, match="EMBED_MAX_QUEUE_TOKENS") as caught:
        await scheduler.submit([text(40, 50), text(40, 51)], lane=Lane.QUERY, deadline=deadline())
    assert scheduler.queued_tokens == queued
    assert caught.value.retry_after_seconds == 1
    model.gate.set()
    await first


async def test_a_canceled_request_leaves_the_queue_before_it_costs_anything() -> None:
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=1)
    running = asyncio.create_task(
        scheduler.submit([text(9, 1)], lane=Lane.DOCUMENT, deadline=deadline())
    )
    await asyncio.sleep(0)
    gone = asyncio.create_task(
        scheduler.submit([text(9, 2)], lane=Lane.DOCUMENT, deadline=deadline())
    )
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert scheduler.queued_tokens == 0
    model.gate.set()
    await running
    assert model.batches == [(Lane.DOCUMENT, [1])]


async def test_a_request_past_its_deadline_gets_504_and_leaves_the_queue() -> None:
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=1)
    with pytest.raises(DeadlineExceededError, match="deadline"):
        await scheduler.submit(
            [text(9, i) for i in range(20)], lane=Lane.DOCUMENT, deadline=deadline(0.01)
        )
    assert scheduler.queued_tokens == 0
    model.gate.set()
    await scheduler.drain()
    assert len(model.batches) == 1


async def test_a_bad_vector_is_computed_again_alone_and_then_refused() -> None:
    model = Model()
    model.bad = {2}
    results = await make(model).submit(
        [text(9, i) for i in range(4)], lane=Lane.DOCUMENT, deadline=deadline()
    )
    assert model.batches == [(Lane.DOCUMENT, [0, 1, 2, 3]), (Lane.DOCUMENT, [2])]
    assert isinstance(results[2].result, BadVectorError)
    assert [marker_of(results[i]) for i in (0, 1, 3)] == [1, 2, 4]


async def test_a_text_that_breaks_its_batch_does_not_break_its_neighbors() -> None:
    model = Model()
    model.poison = {3}
    results = await make(model).submit(
        [text(9, i) for i in range(5)], lane=Lane.DOCUMENT, deadline=deadline()
    )
    outcomes = [isinstance(result.result, BackendError) for result in results]
    assert outcomes == [False, False, False, True, False]


async def test_an_unavailable_model_fails_the_batch_without_a_retry() -> None:
    model = Model()
    model.refuse = BackendUnavailableError("Triton is away")
    results = await make(model).submit(
        [text(9, i) for i in range(4)], lane=Lane.DOCUMENT, deadline=deadline()
    )
    assert all(isinstance(result.result, BackendUnavailableError) for result in results)
    assert len(model.batches) == 1


async def test_documents_age_while_queries_overtake_them_and_then_go_first() -> None:
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=1)
    lanes = [Lane.QUERY] * 60 + [Lane.DOCUMENT] * 9
    requests = [
        asyncio.create_task(scheduler.submit([text(9, i)], lane=lane, deadline=deadline()))
        for i, lane in enumerate(lanes)
    ]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(*requests)
    # The first left alone, before anything else waited.
    order = [lane for lane, _ in model.batches[1:]]
    assert order[: OLD_AGE + 1] == [Lane.QUERY] * OLD_AGE + [Lane.DOCUMENT]
    assert order.count(Lane.DOCUMENT) == 2


async def test_one_request_too_many_is_refused_before_its_texts_are_read() -> None:
    scheduler = make(Model(), max_queue_requests=2)
    admission = scheduler.admission
    admission.begin_request()
    admission.begin_request()
    with pytest.raises(QueueFullError, match="EMBED_MAX_QUEUE_REQUESTS") as caught:
        admission.begin_request()
    assert caught.value.retry_after_seconds == 1
    admission.end_request()
    assert scheduler.requests_under_way == 1
    admission.begin_request()


async def test_retry_after_is_the_time_in_which_the_excess_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)

    class Slow(Model):
        async def __call__(
            self, entries: Sequence[QueuedText], timeout_seconds: float
        ) -> Float32Matrix:
            nonlocal now
            now += 0.1
            return await super().__call__(entries, timeout_seconds)

    scheduler = make(Slow(), window=1, max_queue_tokens=1000)
    # A batch of 8 texts with 10 tokens each in a tenth of a second: 800 tokens a second.
    await scheduler.submit([text(10, i) for i in range(8)], lane=Lane.DOCUMENT, deadline=deadline())
    waiting = asyncio.create_task(
        scheduler.submit([text(10, i) for i in range(100)], lane=Lane.DOCUMENT, deadline=deadline())
    )
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError) as caught:
        await scheduler.submit([text(1000, 9)] * 2, lane=Lane.DOCUMENT, deadline=deadline())
    assert caught.value.retry_after_seconds is not None
    assert 2 <= caught.value.retry_after_seconds <= 5
    waiting.cancel()


async def test_waiting_texts_are_reported_per_lane() -> None:
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=1)
    tasks = [
        asyncio.create_task(scheduler.submit([text(9, i)], lane=lane, deadline=deadline()))
        for i, lane in enumerate([Lane.QUERY, Lane.QUERY, Lane.DOCUMENT])
    ]
    await asyncio.sleep(0)  # all three are queued before the clock counts
    await asyncio.sleep(0.01)
    states = {state.lane: state for state in scheduler.lane_states()}
    assert (states["query"].texts, states["query"].tokens) == (1, 9)
    assert (states["document"].texts, states["document"].tokens) == (1, 9)
    assert states["document"].oldest_seconds >= 0.01
    model.gate.set()
    await asyncio.gather(*tasks)
    assert [state.texts for state in scheduler.lane_states()] == [0, 0]


async def test_a_slow_event_loop_does_not_make_batches_smaller() -> None:
    """The model takes 10 ms, and its answers reach the scheduler after 200 ms."""

    class Late(Model):
        async def __call__(
            self, entries: Sequence[QueuedText], timeout_seconds: float
        ) -> Float32Matrix:
            await asyncio.sleep(0.2)
            for entry in entries:
                entry.model_seconds = 0.01
            return await super().__call__(entries, timeout_seconds)

    model = Late()
    texts = [text(400, number) for number in range(64)]
    await make(model, max_queue_tokens=10**9).submit(texts, lane=Lane.DOCUMENT, deadline=deadline())
    assert {len(markers) for _, markers in model.batches} == {8}


@pytest.mark.parametrize(
    ("every", "slowdown", "others"),
    [
        pytest.param(3, 50, 1, id="slow-for-once"),
        # As under a CPU limit: only each fifth batch shows what the model is able to do.
        pytest.param(5, 1, 3, id="mostly-paused"),
    ],
)
async def test_batches_that_are_slow_at_times_do_not_make_the_next_ones_smaller(
    every: int, slowdown: int, others: int
) -> None:
    class Uneven(Model):
        async def __call__(
            self, entries: Sequence[QueuedText], timeout_seconds: float
        ) -> Float32Matrix:
            seconds = sum(entry.text.length for entry in entries) / 32_000
            for entry in entries:
                entry.model_seconds = seconds * (others if len(self.batches) % every else slowdown)
            return await super().__call__(entries, timeout_seconds)

    model = Uneven()
    scheduler = make(model, window=1, max_queue_tokens=10**9)
    texts = [text(400, number) for number in range(300)]
    await scheduler.submit(texts, lane=Lane.DOCUMENT, deadline=deadline())
    sizes = [len(markers) for _, markers in model.batches]
    assert set(sizes[16:-1]) == {8}


async def test_texts_of_rare_lengths_do_not_wait_for_all_others() -> None:
    """Texts keep arriving; none is overtaken by many that came later."""
    model = Model()
    model.gate = asyncio.Event()
    scheduler = make(model, window=1, max_queue_tokens=10**9, max_queue_requests=1000)
    lengths = np.random.default_rng(3).integers(14, 22, size=400)
    requests = [
        asyncio.create_task(
            scheduler.submit([text(int(length), number)], lane=Lane.DOCUMENT, deadline=deadline())
        )
        for number, length in enumerate(lengths)
    ]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(*requests)
    order = [marker for _, markers in model.batches for marker in markers]
    delays = [position - marker for position, marker in enumerate(order)]
    assert max(delays) < 3 * LIMITS.max_batch_size
