"""Clients that are copied, pickled, forked and closed."""

import asyncio
import copy
import gc
import multiprocessing
import pickle
import threading
import weakref
from collections.abc import Callable

import httpx
import httpx2
import pytest
from fake_gateway import FakeGateway, expected_vector, expected_vectors

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    ClientSettings,
    EmbeddingClient,
    FingerprintChangedError,
)


def through_pickle(client: EmbeddingClient) -> EmbeddingClient:
    return pickle.loads(pickle.dumps(client))


def through_deepcopy(client: EmbeddingClient) -> EmbeddingClient:
    return copy.deepcopy(client)


@pytest.mark.parametrize("duplicate", [through_pickle, through_deepcopy, copy.copy])
def test_a_used_client_can_be_duplicated(
    fake: FakeGateway, duplicate: Callable[[EmbeddingClient], EmbeddingClient]
) -> None:
    with EmbeddingClient(fake.url, api_key="secret-key", dimensions=16) as client:
        client.embed_query("x")
        with duplicate(client) as again:
            assert again.settings == client.settings
            assert again.embed_documents(["x"]) == [expected_vector("x", dimensions=16)]
    assert fake.requests[1].headers["authorization"] == "Bearer secret-key"


async def test_a_used_asynchronous_client_can_be_pickled(fake: FakeGateway) -> None:
    async with AsyncEmbeddingClient(fake.url) as client:
        await client.embed_query("x")
        async with pickle.loads(pickle.dumps(client)) as again:
            assert await again.embed_documents(["x"]) == expected_vectors(["x"])


def test_a_pickled_client_remembers_the_fingerprint(fake: FakeGateway) -> None:
    with EmbeddingClient(fake.url) as client:
        client.embed_query("x")
        fake.fingerprint = "other"
        with (
            pickle.loads(pickle.dumps(client)) as again,
            pytest.raises(FingerprintChangedError, match="'fake-0001' to 'other'"),
        ):
            again.embed_query("x")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_used_client_works_on_both_sides_of_a_fork(fake: FakeGateway) -> None:
    with EmbeddingClient(fake.url, batch_size=1) as client:
        client.embed_documents(["a", "b"])
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(client.embed_documents, (["c", "d"],)) == expected_vectors(["c", "d"])
            pool.close()
            pool.join()
        assert client.embed_documents(["e", "f"]) == expected_vectors(["e", "f"])


def test_a_closed_client_reopens_when_it_is_used(fake: FakeGateway) -> None:
    client = EmbeddingClient(fake.url)
    for _ in range(2):
        assert client.embed_documents(["x"]) == expected_vectors(["x"])
        client.close()
        client.close()


def test_a_client_that_is_never_closed_leaves_no_open_connection(fake: FakeGateway) -> None:
    """An open socket would be a ResourceWarning, which is an error in these tests."""
    EmbeddingClient(fake.url).embed_query("x")
    asyncio.run(AsyncEmbeddingClient(fake.url).embed_query("x"))
    gc.collect()


def test_a_client_collected_in_another_thread_leaves_no_open_connection(
    fake: FakeGateway,
) -> None:
    """As in langchain-postgres, whose event loop runs in a separate thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    client = AsyncEmbeddingClient(fake.url)
    asyncio.run_coroutine_threadsafe(client.embed_query("x"), loop).result()
    del client
    gc.collect()
    fake.wait_until(lambda g: g.open_connections == 0)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    gc.collect()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_vectors_are_freed_with_their_last_reference(fake: FakeGateway, kind: str) -> None:
    """Waiting for a garbage collection would account for most of a stream's memory."""
    gc.collect()
    gc.disable()
    try:
        if kind == "sync":
            result = EmbeddingClient(fake.url, batch_size=1).embed(["a", "b"])
        else:
            result = asyncio.run(AsyncEmbeddingClient(fake.url, batch_size=1).embed(["a", "b"]))
        vectors = [weakref.ref(vector) for vector in result.vectors]
        del result
        assert [vector() for vector in vectors] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [EmbeddingClient, AsyncEmbeddingClient])
def test_a_client_of_another_library_is_refused_by_name(
    kind: type[EmbeddingClient | AsyncEmbeddingClient],
) -> None:
    other = httpx.Client()
    with pytest.raises(TypeError, match=r"`http_client` must be an httpx2\.\w+, not httpx\.Client"):
        kind(http_client=other)  # type: ignore[arg-type]
    other.close()


def test_the_users_own_http_client_is_used_and_left_open(fake: FakeGateway) -> None:
    with httpx2.Client(headers={"X-Tenant": "blue"}) as http:
        with EmbeddingClient(fake.url, http_client=http) as client:
            client.embed_query("x")
            copy.deepcopy(client).embed_query("x")
            copy.copy(client).embed_query("x")
        assert not http.is_closed
    assert [request.headers["x-tenant"] for request in fake.requests] == ["blue"] * 3


async def test_the_users_own_asynchronous_http_client_is_used_and_left_open(
    fake: FakeGateway,
) -> None:
    async with httpx2.AsyncClient(headers={"X-Tenant": "blue"}) as http:
        async with AsyncEmbeddingClient(fake.url, http_client=http) as client:
            await client.embed_query("x")
        assert not http.is_closed
    assert fake.requests[0].headers["x-tenant"] == "blue"


async def test_the_asynchronous_twin_shares_fingerprint_and_statistics(
    fake: FakeGateway,
) -> None:
    with EmbeddingClient(fake.url) as client:
        client.embed_query("x")
        twin = client.as_async()
        await twin.embed_query("x")
        assert (client.stats.requests, twin.settings) == (2, client.settings)
        fake.fingerprint = "other"
        with pytest.raises(FingerprintChangedError, match="other"):
            await twin.embed_query("x")


def test_the_key_is_not_in_the_repr(fake: FakeGateway) -> None:
    client = EmbeddingClient(fake.url, api_key="secret-key")
    assert "secret-key" not in f"{client} {client!r} {client.settings} {client.settings!r}"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3_TRITON_URL", "https://gateway.example/prefix/")
    monkeypatch.setenv("QWEN3_TRITON_API_KEY", " from-a-file\n")
    settings = EmbeddingClient().settings
    assert (settings.base_url, settings.api_key) == (
        "https://gateway.example/prefix",
        "from-a-file",
    )


def test_settings_have_defaults_without_an_environment() -> None:
    settings = EmbeddingClient().settings
    assert (settings.base_url, settings.api_key) == ("http://localhost:8101", None)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"base_url": "localhost:8101"}, "`base_url` must look like"),
        ({"base_url": "http://host:port"}, "`base_url` must look like"),
        ({"base_url": "ftp://host"}, "`base_url` must look like"),
        ({"base_url": "http://user:hidden@host"}, "must not contain a user name"),
        ({"api_key": "hidden key"}, "`api_key` must consist of printable ASCII"),
        ({"batch_size": 0}, "`batch_size` must be between 1 and 2048, not 0"),
        ({"batch_size": 2049}, "`batch_size` must be between 1 and 2048, not 2049"),
        ({"max_batch_bytes": 0}, "`max_batch_bytes` must be at least 1"),
        ({"max_concurrency": 0}, "`max_concurrency` must be at least 1"),
        ({"max_retries": -1}, "`max_retries` must be at least 0"),
        ({"timeout": 0}, "`timeout` must be above 0 seconds"),
        ({"deadline_seconds": -1}, "`deadline_seconds` must be above 0"),
        ({"backoff_seconds": -1}, "`backoff_seconds` must be at least 0"),
        ({"dimensions": 0}, "`dimensions` must be at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(options: dict[str, str], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        ClientSettings(**options)  # pyright: ignore[reportArgumentType] - wrong on purpose
    assert "hidden" not in str(caught.value)
