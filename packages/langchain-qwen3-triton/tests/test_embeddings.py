import asyncio
import copy
import pickle

import httpx2
import pytest
from fake_gateway import (
    FakeGateway,
    Fault,
    busy,
    expected_vector,
    expected_vectors,
    files_entered,
)
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import SecretStr, ValidationError

import langchain_qwen3_triton
from langchain_qwen3_triton import Qwen3TritonEmbeddings
from qwen3_triton_client import EmbeddingError, InvalidRequestError

TEXTS = [f"text {i} " * (i % 7 + 1) for i in range(40)]


def test_public_names_are_complete() -> None:
    names = ["Qwen3TritonEmbeddings", "Qwen3TritonRerank", "__version__"]
    assert langchain_qwen3_triton.__all__ == names


def test_documents_are_embedded_in_order_without_an_instruction(fake: FakeGateway) -> None:
    embeddings = Qwen3TritonEmbeddings(
        base_url=fake.url, batch_size=3, instruction="Find duplicates"
    )
    assert embeddings.embed_documents(TEXTS) == expected_vectors(TEXTS)
    assert {request.body["input_type"] for request in fake.requests} == {"document"}
    assert not any("instruction" in request.body for request in fake.requests)


def test_a_query_is_embedded_with_the_instruction(fake: FakeGateway) -> None:
    embeddings = Qwen3TritonEmbeddings(base_url=fake.url, instruction="Find duplicates")
    assert embeddings.embed_query("x") == expected_vector(
        "x", input_type="query", instruction="Find duplicates"
    )


async def test_asynchronous_methods_return_the_same(fake: FakeGateway) -> None:
    embeddings = Qwen3TritonEmbeddings(base_url=fake.url, batch_size=3)
    assert await embeddings.aembed_documents(TEXTS) == embeddings.embed_documents(TEXTS)
    assert await embeddings.aembed_query("x") == embeddings.embed_query("x")


async def test_concurrent_calls_stay_within_the_limit(fake: FakeGateway) -> None:
    fake.answer_in_reverse(2)
    embeddings = Qwen3TritonEmbeddings(base_url=fake.url, batch_size=5, max_concurrency=2)
    results = await asyncio.gather(*(embeddings.aembed_documents(TEXTS) for _ in range(4)))
    assert results == [expected_vectors(TEXTS)] * 4
    assert fake.most_in_flight == 2


def test_several_event_loops_can_be_used(fake: FakeGateway) -> None:
    embeddings = Qwen3TritonEmbeddings(base_url=fake.url)
    for text in "abc":
        assert asyncio.run(embeddings.aembed_documents([text])) == expected_vectors([text])


def test_texts_are_sent_byte_for_byte(fake: FakeGateway) -> None:
    texts = [" with\nnewlines \t", "Query: "]
    Qwen3TritonEmbeddings(base_url=fake.url).embed_documents(texts)
    assert fake.requests[0].texts == texts


def test_no_texts_send_no_request(fake: FakeGateway) -> None:
    assert Qwen3TritonEmbeddings(base_url=fake.url).embed_documents([]) == []
    assert fake.requests == []


def test_there_are_exactly_max_retries_plus_one_tries(fake: FakeGateway) -> None:
    fake.rule = lambda _: busy()
    embeddings = Qwen3TritonEmbeddings(base_url=fake.url, max_retries=2)
    with pytest.raises(EmbeddingError, match="answered 503"):
        embeddings.embed_query("x")
    assert len(fake.requests) == 3


def test_an_error_names_the_text_and_keeps_completed_vectors(fake: FakeGateway) -> None:
    fake.rule = lambda request: Fault(status=400) if "b" in request.texts else None
    embeddings = Qwen3TritonEmbeddings(base_url=fake.url, batch_size=1, max_concurrency=1)
    with pytest.raises(InvalidRequestError, match="texts: 1") as caught:
        embeddings.embed_documents(["aaa", "b"])
    assert list(caught.value.completed) == [0]


def test_settings_are_sent(fake: FakeGateway) -> None:
    embeddings = Qwen3TritonEmbeddings(
        base_url=fake.url, api_key=SecretStr("secret-key"), model="m", dimensions=16, truncate=False
    )
    assert embeddings.embed_documents(["x"]) == [expected_vector("x", dimensions=16)]
    body = fake.requests[0].body
    assert (body["model"], body["dimensions"], body["truncate"]) == ("m", 16, False)
    assert fake.requests[0].headers["authorization"] == "Bearer secret-key"


def test_a_changed_setting_is_used(fake: FakeGateway) -> None:
    embeddings = Qwen3TritonEmbeddings(base_url=fake.url)
    embeddings.embed_query("x")
    embeddings.instruction = "Find duplicates"
    embeddings.model_copy(update={"dimensions": 16}).embed_query("x")
    body = fake.requests[1].body
    assert (body["instruction"], body["dimensions"]) == ("Find duplicates", 16)


def test_the_key_is_never_shown() -> None:
    embeddings = Qwen3TritonEmbeddings(api_key=SecretStr("secret-key"))
    shown = f"{embeddings} {embeddings!r} {embeddings.model_dump()} {embeddings.model_dump_json()}"
    assert "secret-key" not in shown
    with pytest.raises(ValidationError, match="`base_url` must look like") as caught:
        Qwen3TritonEmbeddings(base_url="nowhere", api_key=SecretStr("secret-key"))
    assert "secret-key" not in str(caught.value)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Qwen3TritonEmbeddings(chunk_size=3)  # pyright: ignore[reportCallIssue] - wrong on purpose


def test_used_embeddings_can_be_pickled_and_copied(fake: FakeGateway) -> None:
    with httpx2.Client() as http:
        embeddings = Qwen3TritonEmbeddings(
            base_url=fake.url, api_key=SecretStr("secret-key"), http_client=http
        )
        asyncio.run(embeddings.aembed_query("x"))
        embeddings.embed_query("x")
        for again in (pickle.loads(pickle.dumps(embeddings)), copy.deepcopy(embeddings)):
            assert again.embed_documents(["x"]) == expected_vectors(["x"])
    assert fake.requests[3].headers["authorization"] == "Bearer secret-key"


def test_the_users_own_http_client_is_used(fake: FakeGateway) -> None:
    with httpx2.Client(headers={"X-Tenant": "blue"}) as http:
        Qwen3TritonEmbeddings(base_url=fake.url, http_client=http).embed_query("x")
    assert fake.requests[0].headers["x-tenant"] == "blue"


def test_a_vector_store_stores_documents_and_searches_with_a_query(fake: FakeGateway) -> None:
    store = InMemoryVectorStore(Qwen3TritonEmbeddings(base_url=fake.url, batch_size=4))
    store.add_documents([Document(page_content=text) for text in TEXTS])
    hits = store.similarity_search("anything", k=3)
    assert len(hits) == 3
    assert fake.requests[-1].body["input_type"] == "query"


def test_a_call_enters_at_most_ten_files(fake: FakeGateway) -> None:
    embeddings = Qwen3TritonEmbeddings(base_url=fake.url)
    embeddings.embed_documents(TEXTS)  # opens the connection
    assert 0 < len(files_entered(lambda: embeddings.embed_documents(TEXTS))) <= 10
