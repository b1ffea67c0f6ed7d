"""Types that callers of the client see. Checked by pyright in `make lint`; never executed."""

from array import array
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, assert_type

import httpx2
import numpy as np
import numpy.typing as npt

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    Batch,
    ClientSettings,
    ClientStats,
    EmbeddingClient,
    EmbeddingConnectionError,
    EmbeddingError,
    EmbeddingResult,
    EmbeddingTimeoutError,
    Hooks,
    InputType,
    InvalidRequestError,
    OnVectors,
    PerEventLoop,
    RetryDetails,
    Vector,
    vector_defect,
)


def a_client_is_created_from_options_or_settings(http: httpx2.Client) -> None:
    assert_type(EmbeddingClient(), EmbeddingClient)
    assert_type(EmbeddingClient("http://localhost:8101", http_client=http), EmbeddingClient)
    client = EmbeddingClient.from_settings(ClientSettings(dimensions=1024), hooks=Hooks())
    assert_type(client, EmbeddingClient)
    assert_type(client.settings, ClientSettings)
    assert_type(client.stats, ClientStats)
    assert_type(client.as_async(), AsyncEmbeddingClient)
    with client as entered:
        assert_type(entered, EmbeddingClient)


def a_client_for_threads_takes_no_client_for_event_loops(http: httpx2.AsyncClient) -> None:
    EmbeddingClient(http_client=http)  # pyright: ignore[reportArgumentType]
    AsyncEmbeddingClient(http_client=http)


def the_client_returns_lists_arrays_or_pairs(client: EmbeddingClient) -> None:
    assert_type(client.embed_documents(["text"]), list[list[float]])
    assert_type(client.embed_documents(("text",)), list[list[float]])
    assert_type(client.embed_query("text"), list[float])
    assert_type(client.embed(["text"], input_type="query"), EmbeddingResult)
    assert_type(client.iter_embed(iter(["text"])), Iterator[tuple[int, Vector]])
    assert_type(client.fingerprint(), str)
    assert_type(client.tokenizer_json(), bytes)
    assert_type(client.info(), dict[str, Any])


async def the_asynchronous_client_returns_the_same(
    client: AsyncEmbeddingClient, texts: AsyncIterator[str]
) -> None:
    assert_type(await client.embed_documents(["text"]), list[list[float]])
    assert_type(await client.embed_query("text"), list[float])
    assert_type(await client.embed(["text"]), EmbeddingResult)
    assert_type(client.aiter_embed(texts), AsyncIterator[tuple[int, Vector]])
    assert_type(client.aiter_embed(["text"]), AsyncIterator[tuple[int, Vector]])
    assert_type(await client.fingerprint(), str)
    assert_type(await client.tokenizer_json(), bytes)
    assert_type(await client.info(), dict[str, Any])
    assert_type(await client.aclose(), None)
    async with client as entered:
        assert_type(entered, AsyncEmbeddingClient)


def options_are_checked(client: EmbeddingClient) -> None:
    client.embed(["text"], input_type="passage")  # pyright: ignore[reportArgumentType]
    client.embed(["text"], on_error="ignore")  # pyright: ignore[reportArgumentType]
    client.embed([1])  # pyright: ignore[reportArgumentType]
    client.embed_query(["text"])  # pyright: ignore[reportArgumentType]


def a_result_has_vectors_and_metadata(result: EmbeddingResult) -> None:
    assert_type(result.vectors, list[array[float]])
    assert_type(result.to_lists(), list[list[float]])
    assert_type(result.to_numpy(), npt.NDArray[np.float32])
    assert_type(result.completed, Mapping[int, Vector])
    assert_type(result.failed, Mapping[int, EmbeddingError])
    assert_type(result.truncated, tuple[int, ...])
    assert_type(result.stats, ClientStats)


def callbacks_have_typed_arguments(client: EmbeddingClient, texts: Iterable[str]) -> None:
    def on_failure(index: int, error: EmbeddingError) -> None:
        assert_type(error.failed_indices, tuple[int, ...])

    def on_progress(done: int, total: int | None) -> None: ...

    def on_retry(details: RetryDetails) -> None:
        assert_type(details.error, EmbeddingError)

    def observe(batch: Batch) -> AbstractContextManager[OnVectors]:
        assert_type(batch.texts, tuple[str, ...])
        return nullcontext(lambda vectors: None)

    client.iter_embed(texts, on_failure=on_failure, progress=on_progress)
    client.embed(["text"], observe=observe)
    EmbeddingClient(on_retry=on_retry)


def errors_are_also_errors_of_the_standard_library() -> None:
    errors: list[ValueError | OSError] = [InvalidRequestError("why")]
    connection_error: ConnectionError = EmbeddingConnectionError("why")
    timeout_error: TimeoutError = EmbeddingTimeoutError("why")
    errors.extend([connection_error, timeout_error])


async def the_helpers_keep_the_types_of_what_they_are_given(vector: Vector) -> None:
    async def close(pool: list[bytes]) -> None:
        pool.clear()

    pools = PerEventLoop(list[bytes], close)
    assert_type(await pools.get(), list[bytes])
    assert_type(vector_defect(vector, 1024), str | None)
    input_type: InputType = "query"
    assert_type(input_type, Literal["query"])
