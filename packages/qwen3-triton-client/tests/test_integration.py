"""Tests against a running gateway that serves the nano model."""

import math
from operator import mul

import pytest

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    EmbeddingClient,
    InvalidRequestError,
    ModelNotFoundError,
)

QUESTION = "What animal barks?"
DOG = "A dog is a domesticated animal that barks and guards the house."
TAX = "Income tax is a levy on the earnings of persons and companies."


def test_vectors_have_1024_dimensions_and_norm_1(gateway_url: str) -> None:
    with EmbeddingClient(gateway_url) as client:
        vectors = client.embed_documents([DOG, TAX])
    assert [len(vector) for vector in vectors] == [1024, 1024]
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-5)


def test_the_answer_is_closer_than_another_text(gateway_url: str) -> None:
    with EmbeddingClient(gateway_url) as client:
        query = client.embed_query(QUESTION)
        dog, tax = client.embed_documents([DOG, TAX])
    assert sum(map(mul, query, dog)) > sum(map(mul, query, tax))


def test_a_query_is_not_embedded_as_a_document(gateway_url: str) -> None:
    with EmbeddingClient(gateway_url) as client:
        assert client.embed_query(DOG) != client.embed_documents([DOG])[0]


def test_many_batches_are_returned_in_order(gateway_url: str) -> None:
    texts = [f"{'many ' * (i % 17)}words, number {i}" for i in range(100)]
    with EmbeddingClient(gateway_url, batch_size=7) as client:
        together = client.embed(texts)
        for index in (0, 16, 50, 99):
            alone = client.embed([texts[index]]).vectors[0]
            assert together.vectors[index].tolist() == pytest.approx(alone.tolist(), abs=1e-5)
    assert together.fingerprint
    assert together.prompt_tokens > 100


async def test_both_clients_return_the_same_vectors(gateway_url: str) -> None:
    with EmbeddingClient(gateway_url, dimensions=256) as client:
        expected = client.embed_documents([DOG, TAX])
    async with AsyncEmbeddingClient(gateway_url, dimensions=256) as client:
        vectors = await client.embed_documents([DOG, TAX])
    assert vectors[0] == pytest.approx(expected[0], abs=1e-5)
    assert vectors[1] == pytest.approx(expected[1], abs=1e-5)


def test_a_truncated_text_is_reported_by_index(gateway_url: str) -> None:
    with EmbeddingClient(gateway_url) as client:
        assert client.embed([DOG, "word " * 5000, TAX]).truncated == (1,)


def test_a_text_that_is_too_long_is_refused_by_index(gateway_url: str) -> None:
    with (
        EmbeddingClient(gateway_url, truncate=False) as client,
        pytest.raises(InvalidRequestError, match="1") as caught,
    ):
        client.embed([DOG, "word " * 5000, TAX])
    assert 1 in caught.value.failed_indices
    assert caught.value.request_id


def test_an_unknown_model_is_refused(gateway_url: str) -> None:
    with (
        EmbeddingClient(gateway_url, model="no-such-model") as client,
        pytest.raises(ModelNotFoundError, match="no-such-model"),
    ):
        client.embed_query(QUESTION)
