"""The served model's tokenizer and limits, for callers that count tokens themselves."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fake_gateway import TOKENIZER_JSON, FakeGateway, Fault, busy

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    AuthenticationError,
    EmbeddingClient,
    ModelNotFoundError,
    OverloadedError,
)

Download = Callable[..., bytes]


@pytest.fixture(params=["sync", "async"])
def download(request: pytest.FixtureRequest, fake: FakeGateway) -> Download:
    def run(**options: Any) -> bytes:
        if request.param == "sync":
            with EmbeddingClient(fake.url, **options) as client:
                return client.tokenizer_json()

        async def run_async() -> bytes:
            async with AsyncEmbeddingClient(fake.url, **options) as client:
                return await client.tokenizer_json()

        return asyncio.run(run_async())

    return run


def test_the_tokenizer_is_downloaded_with_the_key(download: Download, fake: FakeGateway) -> None:
    assert download(api_key="secret-key") == TOKENIZER_JSON
    (request,) = fake.requests
    assert request.path == "/tokenizer"
    assert request.headers["authorization"] == "Bearer secret-key"


def test_the_download_is_retried_while_the_gateway_is_not_ready(
    download: Download, fake: FakeGateway
) -> None:
    fake.then(busy(), Fault(kind="reset"))
    assert download(backoff_seconds=0) == TOKENIZER_JSON
    assert len(fake.requests) == 3


def test_the_download_gives_up_after_max_retries(download: Download, fake: FakeGateway) -> None:
    fake.rule = lambda _: busy()
    with pytest.raises(OverloadedError, match="answered 503") as caught:
        download(max_retries=2)
    assert len(fake.requests) == caught.value.tries == 3


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthenticationError), (404, ModelNotFoundError)]
)
def test_a_refused_download_says_why(
    download: Download, fake: FakeGateway, status: int, kind: type[Exception]
) -> None:
    fake.then(Fault(status=status))
    with pytest.raises(kind, match=f"answered {status}"):
        download()


def test_a_download_is_counted_among_the_requests(fake: FakeGateway) -> None:
    with EmbeddingClient(fake.url) as client:
        client.tokenizer_json()
        assert (client.stats.requests, client.stats.texts) == (1, 0)


def test_the_limits_are_asked_for_with_the_key(fake: FakeGateway) -> None:
    with EmbeddingClient(fake.url, api_key="secret-key") as client:
        assert client.info()["max_length"] == 1024

    async def ask() -> object:
        async with AsyncEmbeddingClient(fake.url, api_key="secret-key") as client:
            return (await client.info())["max_length"]

    assert asyncio.run(ask()) == 1024
    assert {request.headers["authorization"] for request in fake.requests} == {"Bearer secret-key"}
