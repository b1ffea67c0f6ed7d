"""Progress, statistics, fingerprints and time limits."""

from collections.abc import Callable
from typing import Any

import pytest
from fake_gateway import FakeGateway, Fault, busy

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    ClientStats,
    EmbeddingClient,
    EmbeddingResult,
    EmbeddingTimeoutError,
)

TEXTS = [f"text {i}" for i in range(20)]
Embed = Callable[..., EmbeddingResult]


def test_progress_counts_up_to_all_texts(embed: Embed) -> None:
    seen: list[tuple[int, int | None]] = []
    embed(TEXTS, {"progress": lambda *numbers: seen.append(numbers)}, batch_size=4)
    assert seen == [(4, 20), (8, 20), (12, 20), (16, 20), (20, 20)]


def test_progress_counts_texts_that_cannot_be_embedded(embed: Embed, fake: FakeGateway) -> None:
    fake.rule = lambda r: Fault(status=400) if "text 3" in r.texts else None
    seen: list[tuple[int, int | None]] = []
    call: dict[str, Any] = {
        "progress": lambda *numbers: seen.append(numbers),
        "on_error": "isolate",
    }
    embed([*TEXTS, ""], call, batch_size=4)
    assert seen[-1] == (21, 21)
    assert seen == sorted(seen)


def test_progress_knows_the_length_of_a_sized_stream(fake: FakeGateway) -> None:
    seen: list[tuple[int, int | None]] = []
    with EmbeddingClient(fake.url) as client:
        list(client.iter_embed(TEXTS, progress=lambda *numbers: seen.append(numbers)))
        list(client.iter_embed(iter(TEXTS), progress=lambda *numbers: seen.append(numbers)))
    assert seen == [(20, 20), (20, None)]


def test_an_error_of_the_callback_ends_the_call(embed: Embed) -> None:
    def broken(done: int, total: int | None) -> None:
        raise RuntimeError("the callback broke")

    with pytest.raises(RuntimeError, match="the callback broke"):
        embed(TEXTS, {"progress": broken}, batch_size=4)


def test_a_progress_bar_is_shown_on_request(
    embed: Embed, capsys: pytest.CaptureFixture[str]
) -> None:
    embed(TEXTS, {"progress": True}, batch_size=4)
    assert "20/20" in capsys.readouterr().err
    embed(TEXTS, batch_size=4)
    assert capsys.readouterr().err == ""


def test_a_result_holds_the_statistics_of_its_call(embed: Embed, fake: FakeGateway) -> None:
    fake.then(busy())
    result = embed(TEXTS, batch_size=4)
    stats = result.stats
    assert (stats.requests, stats.retries, stats.texts, stats.prompt_tokens) == (6, 1, 20, 40)
    assert stats.request_seconds > 0


@pytest.mark.parametrize("kind", [EmbeddingClient, AsyncEmbeddingClient])
async def test_the_hook_gets_the_statistics_of_every_batch(
    fake: FakeGateway, kind: type[EmbeddingClient | AsyncEmbeddingClient]
) -> None:
    fake.rule = lambda r: Fault(status=400) if "text 3" in r.texts else None
    seen: list[ClientStats] = []
    client = kind(fake.url, batch_size=4, on_stats=seen.append)
    if isinstance(client, AsyncEmbeddingClient):
        await client.embed(TEXTS, on_error="isolate")
        await client.aclose()
    else:
        client.embed(TEXTS, on_error="isolate")
        client.close()
    assert sum(seen, ClientStats()) == client.stats
    assert (client.stats.texts, client.stats.requests) == (19, len(fake.requests))


def test_the_fingerprint_is_requested_once(fake: FakeGateway) -> None:
    with EmbeddingClient(fake.url) as client:
        assert client.fingerprint() == client.fingerprint() == fake.fingerprint
    assert len(fake.requests) == 1


async def test_the_fingerprint_can_be_requested_asynchronously(fake: FakeGateway) -> None:
    async with AsyncEmbeddingClient(fake.url) as client:
        assert await client.fingerprint() == fake.fingerprint


def test_an_answer_that_trickles_in_times_out(embed: Embed, fake: FakeGateway) -> None:
    """A limit on the time between two bytes would never end it."""
    fake.rule = lambda _: Fault(kind="drip")
    with pytest.raises(EmbeddingTimeoutError, match="in time"):
        embed(["x"], timeout=0.2, max_retries=0)


def test_the_deadline_ends_a_running_try(embed: Embed, fake: FakeGateway) -> None:
    fake.hold(lambda _: True)
    with pytest.raises(EmbeddingTimeoutError, match="in time") as caught:
        embed(["x"], deadline_seconds=0.5, timeout=1000)  # longer than a test may take
    fake.wait_until(lambda g: len(g.requests) == 1)
    fake.release()
    assert caught.value.tries == 1
