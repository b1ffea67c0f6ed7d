"""Limits on concurrency, and clean ends."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_gateway import FakeGateway, Fault, busy, expected_vector, expected_vectors

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    EmbeddingClient,
    EmbeddingResult,
    InvalidRequestError,
)

Embed = Callable[..., EmbeddingResult]
TEXTS = [f"text {i}" for i in range(60)]


@pytest.mark.parametrize("bound", [1, 3])
def test_requests_in_flight_reach_the_limit_and_never_exceed_it(
    embed: Embed, fake: FakeGateway, bound: int
) -> None:
    fake.answer_in_reverse(bound)
    embed(TEXTS, batch_size=2, max_concurrency=bound)
    assert fake.most_in_flight == bound


def test_the_limit_applies_to_all_threads_of_a_client(fake: FakeGateway) -> None:
    fake.answer_in_reverse(3)
    with (
        EmbeddingClient(fake.url, batch_size=2, max_concurrency=3) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        results = list(pool.map(client.embed_documents, [TEXTS[i::8] for i in range(8)]))
    assert results == [expected_vectors(TEXTS[i::8]) for i in range(8)]
    assert fake.most_in_flight == 3


async def test_the_limit_applies_to_all_tasks_of_a_loop(fake: FakeGateway) -> None:
    fake.answer_in_reverse(3)
    async with AsyncEmbeddingClient(fake.url, batch_size=2, max_concurrency=3) as client:
        calls = [client.embed_documents(TEXTS[i::8]) for i in range(8)]
        results = await asyncio.gather(*calls)
    assert results == [expected_vectors(TEXTS[i::8]) for i in range(8)]
    assert fake.most_in_flight == 3


def test_connections_are_reused(embed: Embed, fake: FakeGateway) -> None:
    fake.answer_in_reverse(2)  # so both connections are needed
    embed(TEXTS, batch_size=1, max_concurrency=2)
    assert fake.connections == 2


async def test_the_first_error_cancels_the_requests_in_flight(fake: FakeGateway) -> None:
    fake.hold(lambda request: "bad" not in request.texts[0])
    fake.rule = lambda request: Fault(status=400) if "bad" in request.texts[0] else None
    async with AsyncEmbeddingClient(fake.url, batch_size=1, max_concurrency=4) as client:
        before = asyncio.all_tasks()
        with pytest.raises(InvalidRequestError, match="texts: 0"):
            await client.embed(["bad" * 9, *TEXTS])
        assert asyncio.all_tasks() == before
    fake.release()
    assert len(fake.requests) <= 4


def test_after_the_first_error_threads_end_and_no_more_batches_are_sent(fake: FakeGateway) -> None:
    fake.rule = lambda request: Fault(status=400) if "bad" in request.texts[0] else None
    with EmbeddingClient(fake.url, batch_size=1, max_concurrency=4) as client:
        with pytest.raises(InvalidRequestError, match="texts: 0"):
            client.embed(["bad" * 9, *(f"text {i}" for i in range(400))])
        names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("qwen3-triton-client")]
    assert len(fake.requests) < 200


def test_the_first_error_wakes_workers_that_wait_to_retry(fake: FakeGateway) -> None:
    """A wait of a minute would exceed the timeout of the test."""
    waits = threading.Event()
    fake.hold(lambda request: "bad" in request.texts[0])
    fake.rule = lambda request: (
        Fault(status=400)
        if "bad" in request.texts[0]
        else Fault(status=503, headers={"Retry-After": "60"})
    )

    def on_retry(_: object) -> None:
        waits.set()
        fake.release()

    options = {"batch_size": 1, "max_concurrency": 2, "on_retry": on_retry}
    with (
        EmbeddingClient(fake.url, **options) as client,  # pyright: ignore[reportArgumentType]
        pytest.raises(InvalidRequestError, match="texts: 0"),
    ):
        client.embed(["bad" * 9, "text"])
    assert waits.is_set()


async def test_a_canceled_call_leaves_nothing_running(fake: FakeGateway) -> None:
    fake.hold(lambda _: True)
    async with AsyncEmbeddingClient(fake.url, batch_size=1, max_concurrency=4) as client:
        before = asyncio.all_tasks()
        call = asyncio.create_task(client.embed(TEXTS))
        await asyncio.to_thread(fake.wait_until, lambda g: g.in_flight == 4)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert asyncio.all_tasks() == before
        fake.release()
        assert await client.embed_documents(["x"]) == expected_vectors(["x"])
    assert len(fake.requests) == 5


def test_one_client_serves_several_event_loops(fake: FakeGateway) -> None:
    client = AsyncEmbeddingClient(fake.url)
    for text in ("first", "second", "third"):
        assert asyncio.run(client.embed_documents([text])) == expected_vectors([text])


def test_one_client_serves_event_loops_in_several_threads(fake: FakeGateway) -> None:
    client = AsyncEmbeddingClient(fake.url, batch_size=2)

    def in_a_loop(text: str) -> list[list[float]]:
        return asyncio.run(client.embed_documents([text, *TEXTS]))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(in_a_loop, "abcd"))
    assert results == [expected_vectors([text, *TEXTS]) for text in "abcd"]


def test_faults_and_reordering_never_mix_up_vectors(embed: Embed, fake: FakeGateway) -> None:
    fake.answer_in_reverse(4)
    fake.then(busy(), Fault(kind="reset"), busy(429), Fault(kind="cut_body"))
    result = embed(TEXTS, batch_size=3, max_concurrency=4, backoff_seconds=0)
    assert result.to_lists() == [expected_vector(text) for text in TEXTS]
