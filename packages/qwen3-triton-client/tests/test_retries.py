"""Which errors are retried, how often, and after which waits."""

from collections.abc import Callable
from email.utils import formatdate

import pytest
from fake_gateway import FakeGateway, Fault, busy, expected_vector, expected_vectors

from qwen3_triton_client import ClientSettings, EmbeddingError, EmbeddingResult, RetryDetails
from qwen3_triton_client.exchange import wait_seconds
from qwen3_triton_client.wire import parse_retry_after

Embed = Callable[..., EmbeddingResult]
SETTINGS = ClientSettings(backoff_seconds=0.5)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_a_transient_error_is_retried(embed: Embed, fake: FakeGateway, status: int) -> None:
    fake.then(busy(status), busy(status))
    assert embed(["x"]).to_lists() == expected_vectors(["x"])
    assert len(fake.requests) == 3


@pytest.mark.parametrize("kind", ["reset", "cut_body", "not_json"])
def test_a_broken_answer_is_retried(embed: Embed, fake: FakeGateway, kind: str) -> None:
    fake.then(Fault(kind=kind))  # pyright: ignore[reportArgumentType] - parametrized
    assert embed(["x"], backoff_seconds=0).to_lists() == expected_vectors(["x"])
    assert len(fake.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501])
def test_a_permanent_error_is_not_retried(embed: Embed, fake: FakeGateway, status: int) -> None:
    fake.rule = lambda _: busy(status)
    with pytest.raises(EmbeddingError, match=f"answered {status}"):
        embed(["x"])
    assert len(fake.requests) == 1


@pytest.mark.parametrize("max_retries", [0, 1, 4])
def test_there_are_exactly_max_retries_plus_one_tries(
    embed: Embed, fake: FakeGateway, max_retries: int
) -> None:
    fake.rule = lambda _: busy()
    with pytest.raises(EmbeddingError, match="answered 503") as caught:
        embed(["x"], max_retries=max_retries)
    assert len(fake.requests) == caught.value.tries == max_retries + 1


def test_only_the_failed_batch_is_sent_again(embed: Embed, fake: FakeGateway) -> None:
    fake.then(busy())
    texts = [f"text {i}" for i in range(10)]
    assert embed(texts, batch_size=2, max_concurrency=1).to_lists() == expected_vectors(texts)
    sent = [tuple(request.texts) for request in fake.requests]
    assert (len(sent), len(set(sent))) == (6, 5)


@pytest.mark.parametrize(
    ("headers", "least"),
    [({"Retry-After-Ms": "20"}, 0.02), ({"Retry-After": "0.03"}, 0.03)],
    ids=["milliseconds", "seconds"],
)
def test_retry_after_is_respected(
    embed: Embed, fake: FakeGateway, headers: dict[str, str], least: float
) -> None:
    seen: list[RetryDetails] = []
    fake.then(Fault(status=429, headers=headers))
    embed(["x", "y"], backoff_seconds=1000, on_retry=seen.append)
    [details] = seen
    assert least <= details.wait_seconds <= 1.25 * least
    assert (details.retry_number, details.texts, details.error.status) == (1, 2, 429)


def test_a_wait_beyond_the_deadline_ends_the_tries(embed: Embed, fake: FakeGateway) -> None:
    fake.rule = lambda _: Fault(status=429, headers={"Retry-After": "3600"})
    with pytest.raises(EmbeddingError, match="answered 429"):
        embed(["x"], deadline_seconds=30)
    assert len(fake.requests) == 1


def test_statistics_count_requests_retries_and_texts(embed: Embed, fake: FakeGateway) -> None:
    from qwen3_triton_client import EmbeddingClient

    fake.then(busy())
    with EmbeddingClient(fake.url, batch_size=1) as client:
        client.embed(["one two", "three"])
        stats = client.stats
    assert (stats.requests, stats.retries, stats.texts, stats.prompt_tokens) == (3, 1, 2, 3)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": formatdate(1_000_030, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(999_000, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_retry_after_is_parsed_in_every_form(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert parse_retry_after(headers, clock=lambda: 1_000_000.0) == seconds


def test_waits_double_up_to_a_bound_with_full_jitter() -> None:
    longest = [wait_seconds(SETTINGS, n, None, uniform=lambda _, high: high) for n in range(1, 9)]
    assert longest == [0.5, 1, 2, 4, 8, 16, 16, 16]
    assert wait_seconds(SETTINGS, 5, None, uniform=lambda low, _: low) == 0


def test_a_repeated_retry_after_is_doubled() -> None:
    waits = [wait_seconds(ClientSettings(), attempt, 1.0, min) for attempt in range(1, 11)]
    assert waits == [1, 1, 1, 1, 2, 4, 8, 16, 16, 16]
    assert wait_seconds(ClientSettings(), 9, 30.0, min) == 30


def test_retry_after_is_capped() -> None:
    assert wait_seconds(SETTINGS, 1, 86_400, uniform=lambda low, _: low) == 60


def test_a_retry_is_logged_without_the_text(
    embed: Embed, fake: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    fake.then(busy())
    assert embed(["very private"]).to_lists() == [expected_vector("very private")]
    assert "Retry 1 of 10 in 0.00 s (texts in the request: 1)" in caplog.text
    assert "private" not in caplog.text
