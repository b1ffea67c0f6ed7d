"""Texts in, vectors out."""

import random
from collections.abc import Callable, Iterator

import pytest
from fake_gateway import DIMENSIONS, FakeGateway, expected_vector, expected_vectors

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    EmbeddingClient,
    EmbeddingResult,
    InvalidRequestError,
)

Embed = Callable[..., EmbeddingResult]
TEXTS = [f"{'word ' * (7 * i % 23)}{i}" for i in range(50)]


class Column:
    """Texts with labels that are not their positions, as a sorted pandas Series has them."""

    def __init__(self, by_label: dict[int, str]) -> None:
        self._by_label = by_label

    def __len__(self) -> int:
        return len(self._by_label)

    def __getitem__(self, label: int) -> str:
        return self._by_label[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_label.values())


def test_order_is_kept_across_batches(embed: Embed) -> None:
    assert embed(TEXTS, batch_size=4).to_lists() == expected_vectors(TEXTS)


def test_order_is_kept_when_answers_arrive_in_reverse(embed: Embed, fake: FakeGateway) -> None:
    fake.answer_in_reverse(5)
    assert embed(TEXTS, batch_size=10, max_concurrency=5).to_lists() == expected_vectors(TEXTS)


def test_texts_of_similar_length_share_a_batch(embed: Embed, fake: FakeGateway) -> None:
    embed(random.Random(1).sample(TEXTS, 50), batch_size=10, max_concurrency=1)
    lengths = [len(text) for request in fake.requests for text in request.texts]
    assert lengths == sorted(lengths, reverse=True)


def test_a_single_batch_keeps_its_order(embed: Embed, fake: FakeGateway) -> None:
    embed(["a", "ccc", "bb"])
    assert fake.requests[0].texts == ["a", "ccc", "bb"]


def test_batches_respect_the_byte_limit(embed: Embed, fake: FakeGateway) -> None:
    texts = ["é" * n for n in (10, 40, 60, 5, 30)]
    assert embed(texts, max_batch_bytes=100).to_lists() == expected_vectors(texts)
    sizes = [[len(text.encode()) for text in request.texts] for request in fake.requests]
    assert all(sum(size) <= 100 or len(size) == 1 for size in sizes)


def test_texts_are_sent_byte_for_byte(embed: Embed, fake: FakeGateway) -> None:
    texts = [" leading\n\nand\ttrailing  ", "\u2028 emoji 🪨\r\n", "Query: none\x00"]
    assert embed(texts).to_lists() == expected_vectors(texts)
    assert fake.requests[0].texts == texts


@pytest.mark.parametrize("input_type", ["document", "query"])
def test_input_type_is_sent(embed: Embed, fake: FakeGateway, input_type: str) -> None:
    embed(["x"], {"input_type": input_type})
    assert fake.requests[0].body["input_type"] == input_type


def test_an_instruction_is_sent_with_queries_only(embed: Embed, fake: FakeGateway) -> None:
    embed(["x"], {"input_type": "query"}, instruction="Find duplicates")
    embed(["x"], {"input_type": "document"}, instruction="Find duplicates")
    assert fake.requests[0].body["instruction"] == "Find duplicates"
    assert "instruction" not in fake.requests[1].body


def test_an_instruction_for_documents_is_refused(embed: Embed) -> None:
    with pytest.raises(ValueError, match="`instruction` is for queries only"):
        embed(["x"], {"instruction": "Find duplicates"})


def test_options_that_are_not_set_are_not_sent(embed: Embed, fake: FakeGateway) -> None:
    embed(["x"])
    assert set(fake.requests[0].body) == {"texts", "input_type", "encoding_format"}


def test_settings_are_sent(embed: Embed, fake: FakeGateway) -> None:
    result = embed(["x"], model="m", dimensions=16, truncate=False)
    body = fake.requests[0].body
    assert (body["model"], body["dimensions"], body["truncate"]) == ("m", 16, False)
    assert result.to_lists() == [expected_vector("x", dimensions=16)]


def test_headers_carry_the_key_and_the_version(embed: Embed, fake: FakeGateway) -> None:
    embed(["x"], api_key="secret-key")
    headers = fake.requests[0].headers
    assert headers["authorization"] == "Bearer secret-key"
    assert headers["user-agent"].startswith("qwen3-triton-client/")


def test_no_texts_send_no_request(embed: Embed, fake: FakeGateway) -> None:
    assert embed([]).to_lists() == []
    assert embed([]).to_numpy().shape == (0, 0)
    assert fake.requests == []


def test_a_result_holds_the_gateways_metadata(embed: Embed) -> None:
    texts = ["one two", "long text", *TEXTS, "long too"]
    result = embed(texts, batch_size=3)
    assert result.truncated == (1, 52)
    assert (result.model, result.dimensions, result.fingerprint) == (
        "fake-model",
        DIMENSIONS,
        "fake-0001",
    )
    assert result.prompt_tokens == sum(len(text.split()) for text in texts)


def test_the_repr_of_a_result_has_no_vectors(embed: Embed) -> None:
    assert len(repr(embed([f"text {i}" for i in range(100)]))) < 500


def test_numpy_output_is_float32_in_order(embed: Embed) -> None:
    array = embed(TEXTS, batch_size=4).to_numpy()
    assert (array.dtype, array.shape) == ("float32", (50, DIMENSIONS))
    assert array.tolist() == expected_vectors(TEXTS)


def test_an_answer_of_floats_is_understood(embed: Embed, fake: FakeGateway) -> None:
    fake.answer_floats = True
    assert embed(["x"]).to_lists() == expected_vectors(["x"])


@pytest.mark.parametrize("text", ["", " \n\t"], ids=["empty", "white"])
def test_a_blank_text_is_refused_by_index(embed: Embed, fake: FakeGateway, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"`texts\[1\]` is blank") as caught:
        embed(["x", text, "y", text])
    assert caught.value.failed_indices == (1, 3)
    assert fake.requests == []


def test_an_unpaired_surrogate_is_refused_by_index(embed: Embed) -> None:
    with pytest.raises(InvalidRequestError, match=r"`texts\[0\]` contains an unpaired surrogate"):
        embed(["\ud800"])


def test_a_string_instead_of_a_list_is_refused(embed: Embed) -> None:
    with pytest.raises(TypeError, match="must be a list of strings, not a string"):
        embed("text")


def test_labels_do_not_change_the_order_of_texts(embed: Embed, fake: FakeGateway) -> None:
    embed(Column({2: "a", 1: "b", 0: "c"}))
    assert fake.requests[0].texts == ["a", "b", "c"]


def test_a_number_instead_of_a_text_is_refused(embed: Embed) -> None:
    with pytest.raises(TypeError, match=r"`texts\[1\]` must be a string, not int"):
        embed(["a", 1])


def test_frameworks_get_python_floats(fake: FakeGateway) -> None:
    with EmbeddingClient(fake.url) as client:
        [vector] = client.embed_documents(["x"])
        assert [vector, type(vector), type(vector[0])] == [expected_vector("x"), list, float]
        assert client.embed_query("x") == expected_vector("x", input_type="query")


async def test_frameworks_get_python_floats_asynchronously(fake: FakeGateway) -> None:
    async with AsyncEmbeddingClient(fake.url) as client:
        [vector] = await client.embed_documents(["x"])
        assert [vector, type(vector), type(vector[0])] == [expected_vector("x"), list, float]
        assert await client.embed_query("x") == expected_vector("x", input_type="query")
