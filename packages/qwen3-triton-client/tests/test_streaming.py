"""Streams of any length, yielded in order or as vectors arrive."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest
from fake_gateway import FakeGateway, Fault, expected_vector

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    EmbeddingClient,
    EmbeddingConnectionError,
    EmbeddingError,
)

SMALL = {"batch_size": 5, "max_concurrency": 2, "max_retries": 0}
WINDOW = 20
TEXTS = [f"text {i}" for i in range(100)]
EXPECTED = {i: expected_vector(text) for i, text in enumerate(TEXTS)}

Streamed = Callable[..., list[tuple[int, list[float]]]]


@pytest.fixture(name="streamed", params=["sync", "async"])
def _streamed(request: pytest.FixtureRequest, fake: FakeGateway) -> Streamed:
    """Collect the pairs of a stream from a new synchronous or asynchronous client."""

    def run(texts: Iterable[str], **options: Any) -> list[tuple[int, list[float]]]:
        with EmbeddingClient(fake.url, **SMALL) as client:
            return [(i, vector.tolist()) for i, vector in client.iter_embed(texts, **options)]

    def run_async(texts: Iterable[str], **options: Any) -> list[tuple[int, list[float]]]:
        async def collect() -> list[tuple[int, list[float]]]:
            async with AsyncEmbeddingClient(fake.url, **SMALL) as client:
                stream = client.aiter_embed(texts, **options)
                return [(i, vector.tolist()) async for i, vector in stream]

        return asyncio.run(collect())

    return run if request.param == "sync" else run_async


def test_a_stream_is_yielded_in_order(streamed: Streamed) -> None:
    assert streamed(iter(TEXTS)) == list(EXPECTED.items())


def test_a_stream_can_be_yielded_as_vectors_arrive(streamed: Streamed, fake: FakeGateway) -> None:
    fake.answer_in_reverse(2)
    got = streamed(iter(TEXTS), in_order=False)
    assert dict(got) == EXPECTED
    assert len(got) == len(TEXTS)
    assert [index for index, _ in got] != sorted(EXPECTED)


def test_an_empty_stream_yields_nothing(streamed: Streamed, fake: FakeGateway) -> None:
    assert streamed(iter([])) == []
    assert fake.requests == []


def test_a_stream_can_consist_of_queries(streamed: Streamed) -> None:
    options: dict[str, Any] = {"input_type": "query", "instruction": "Find it", "dimensions": 16}
    assert streamed(["a"], **options) == [(0, expected_vector("a", **options))]


def test_a_stream_stays_within_the_concurrency_limit(streamed: Streamed, fake: FakeGateway) -> None:
    fake.answer_in_reverse(2)
    streamed(iter(TEXTS))
    assert fake.most_in_flight == 2


@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "as they come"])
def test_a_stream_continues_after_texts_that_cannot_be_embedded(
    streamed: Streamed, fake: FakeGateway, in_order: bool
) -> None:
    fake.rule = lambda r: Fault(status=400) if {"text 7", "text 45"} & set(r.texts) else None
    failed: dict[int, EmbeddingError] = {}
    texts = [*TEXTS[:60], " ", *TEXTS[61:]]
    got = streamed(texts, in_order=in_order, on_failure=failed.__setitem__)
    assert sorted(failed) == [7, 45, 60]
    assert [failed[i].failed_indices for i in (7, 45, 60)] == [(7,), (45,), (60,)]
    assert dict(got) == {i: vector for i, vector in EXPECTED.items() if i not in failed}
    assert not in_order or got == sorted(got)


def test_an_error_in_a_stream_counts_from_its_start(streamed: Streamed, fake: FakeGateway) -> None:
    fake.rule = lambda r: Fault(status=400) if "text 45" in r.texts else None
    with pytest.raises(EmbeddingError, match="texts: 45-49") as caught:
        streamed(TEXTS)
    completed = caught.value.completed
    # The window of 20 texts before the one that fails may still be in flight.
    assert min(completed, default=20) >= 20
    assert all(completed[i].tolist() == EXPECTED[i] for i in completed)


@pytest.mark.parametrize("skip", [False, True], ids=["ends the stream", "is skipped"])
def test_a_text_that_cannot_be_sent_is_named_by_its_place_in_the_stream(
    streamed: Streamed, skip: bool
) -> None:
    failed: list[EmbeddingError] = []
    texts = [*TEXTS[:50], " ", *TEXTS[51:]]
    if skip:
        streamed(texts, on_failure=lambda _, error: failed.append(error))
    else:
        with pytest.raises(EmbeddingError) as caught:
            streamed(texts)
        failed.append(caught.value)
    [error] = failed
    assert error.failed_indices == (50,)
    assert "`texts[50]` is blank" in str(error)


def test_an_error_in_a_stream_keeps_the_vectors_of_later_windows(fake: FakeGateway) -> None:
    fake.rule = lambda r: Fault(status=400) if "text 0" in r.texts else None
    later = [f"text {i}" for i in range(WINDOW, 2 * WINDOW)]
    fake.hold(lambda r: "text 0" in r.texts)
    release = threading.Thread(target=_release_after, args=(fake, set(later)))
    release.start()
    with (
        EmbeddingClient(fake.url, **{**SMALL, "max_concurrency": 2}) as client,
        pytest.raises(EmbeddingError, match="texts: 0-4") as caught,
    ):
        list(client.iter_embed(TEXTS))
    release.join()
    assert set(range(WINDOW, 2 * WINDOW)) <= set(caught.value.completed)


def _release_after(fake: FakeGateway, texts: set[str]) -> None:
    fake.wait_until(lambda g: texts <= {text for r in g.requests for text in r.texts})
    fake.wait_until(lambda g: g.in_flight == 1)
    fake.release()


def test_exactly_one_window_is_read_ahead(fake: FakeGateway) -> None:
    read = iter(TEXTS)
    with EmbeddingClient(fake.url, **SMALL) as client:
        stream = client.iter_embed(read)
        assert next(stream)[0] == 0
        fake.wait_until(lambda g: len(g.requests) == 2 * WINDOW // SMALL["batch_size"])
        assert next(read) == f"text {2 * WINDOW}"


def test_long_texts_make_short_windows(fake: FakeGateway) -> None:
    texts = iter(["x" * 100] * 50)
    with EmbeddingClient(fake.url, **SMALL, max_batch_bytes=100) as client:
        next(client.iter_embed(texts))
    assert len(list(texts)) == 50 - 2 * 4


def test_a_closed_stream_leaves_nothing_running(fake: FakeGateway) -> None:
    with EmbeddingClient(fake.url, **SMALL) as client:
        stream = client.iter_embed(iter(TEXTS))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert not [t for t in threading.enumerate() if t.name.startswith("qwen3-triton-client")]
    assert fake.in_flight == 0
    assert len({text for r in fake.requests for text in r.texts}) <= 2 * WINDOW


async def test_a_canceled_asynchronous_stream_leaves_nothing_running(
    fake: FakeGateway,
) -> None:
    fake.hold(lambda _: True)
    client = AsyncEmbeddingClient(fake.url, **SMALL)

    async def consume() -> list[int]:
        return [i async for i, _ in client.aiter_embed(TEXTS)]

    task = asyncio.create_task(consume())
    await asyncio.to_thread(fake.wait_until, lambda g: g.in_flight == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}
    fake.release()
    await client.aclose()


async def test_the_texts_of_a_stream_can_be_asynchronous(fake: FakeGateway) -> None:
    async def texts() -> AsyncIterator[str]:
        for text in TEXTS:
            yield text

    async with AsyncEmbeddingClient(fake.url, **SMALL) as client:
        got = [(i, vector.tolist()) async for i, vector in client.aiter_embed(texts())]
    assert got == list(EXPECTED.items())


def test_an_error_of_the_source_of_texts_ends_the_stream(streamed: Streamed) -> None:
    def broken() -> Iterator[str]:
        yield from TEXTS[:50]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        streamed(broken())


def test_a_gateway_that_goes_down_ends_the_stream(streamed: Streamed, fake: FakeGateway) -> None:
    fake.rule = lambda r: Fault(kind="reset") if "text 60" in r.texts else None
    with pytest.raises(EmbeddingConnectionError, match="was interrupted") as caught:
        streamed(TEXTS, on_failure=lambda *_: None)
    assert caught.value.failed_indices == tuple(range(60, 65))


def test_options_of_a_stream_are_checked_before_it_is_read(fake: FakeGateway) -> None:
    with (
        EmbeddingClient(fake.url) as client,
        pytest.raises(ValueError, match="`instruction` is for queries only"),
    ):
        client.iter_embed([], instruction="Find it")
