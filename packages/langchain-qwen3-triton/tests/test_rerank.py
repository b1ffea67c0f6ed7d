"""Documents in, the most relevant out."""

import copy
import pickle
from typing import Any

import pytest
from fake_gateway import FakeGateway
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import SecretStr, ValidationError

from langchain_qwen3_triton import Qwen3TritonRerank

QUERY = "What carries sand?"
DOCUMENTS = [
    Document(f"score {score}", id=str(number), metadata={"source": number})
    for number, score in enumerate([-3, 2, 0, 5, -1])
]


class Everything(BaseRetriever):
    """A retriever that finds all documents."""

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return DOCUMENTS


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


@pytest.fixture(name="retriever")
def _retriever(fake: FakeGateway) -> ContextualCompressionRetriever:
    return ContextualCompressionRetriever(
        base_compressor=Qwen3TritonRerank(base_url=fake.url, top_n=3, batch_size=2),
        base_retriever=Everything(),
    )


def test_a_compression_retriever_returns_the_best(
    retriever: ContextualCompressionRetriever,
) -> None:
    assert ids(retriever.invoke(QUERY)) == ["3", "1", "2"]


async def test_a_compression_retriever_returns_the_best_asynchronously(
    retriever: ContextualCompressionRetriever,
) -> None:
    assert ids(await retriever.ainvoke(QUERY)) == ["3", "1", "2"]


def test_documents_are_copied_with_their_score(fake: FakeGateway) -> None:
    found = Qwen3TritonRerank(base_url=fake.url).compress_documents(DOCUMENTS, QUERY)
    assert found[2].metadata == {"source": 2, "relevance_score": 0.5}
    assert DOCUMENTS[2].metadata == {"source": 2}


def test_all_documents_are_returned_without_a_limit(fake: FakeGateway) -> None:
    documents = DOCUMENTS * 3
    rerank = Qwen3TritonRerank(base_url=fake.url, top_n=None)
    assert len(rerank.compress_documents(documents, QUERY)) == 15


def test_no_documents_send_no_request(fake: FakeGateway) -> None:
    assert Qwen3TritonRerank(base_url=fake.url).compress_documents([], QUERY) == []
    assert fake.requests == []


async def test_options_and_the_key_are_sent(fake: FakeGateway) -> None:
    options: dict[str, Any] = {"model": "m", "instruction": "Find laws.", "truncate": False}
    rerank = Qwen3TritonRerank(base_url=fake.url, api_key=SecretStr("secret-key"), **options)
    rerank.compress_documents(DOCUMENTS, QUERY)
    await rerank.acompress_documents(DOCUMENTS, QUERY)
    for request in fake.requests:
        assert options.items() <= request.body.items()
        assert request.headers["authorization"] == "Bearer secret-key"
    assert "secret-key" not in repr(rerank)
    rerank.close()
    await rerank.aclose()


async def test_blank_documents_come_last_with_a_score_of_0(fake: FakeGateway) -> None:
    documents = [Document(" ", id="blank"), *DOCUMENTS, Document("", id="empty")]
    rerank = Qwen3TritonRerank(base_url=fake.url, top_n=None)
    for ranked in (
        rerank.compress_documents(documents, QUERY),
        await rerank.acompress_documents(documents, QUERY),
        rerank.compress_documents([documents[0], documents[-1]], QUERY),
    ):
        assert ids(ranked)[-2:] == ["blank", "empty"]
        assert [document.metadata["relevance_score"] for document in ranked[-2:]] == [0.0, 0.0]
    assert len(fake.requests) == 2  # none for blank documents alone


def test_it_has_a_json_schema_without_the_clients_of_a_process() -> None:
    names = Qwen3TritonRerank.model_json_schema()["properties"].keys()
    assert {"top_n", "api_key"} <= names
    assert not names & {"http_client", "http_async_client"}


def test_it_can_be_pickled_and_copied(fake: FakeGateway) -> None:
    rerank = Qwen3TritonRerank(base_url=fake.url, top_n=1)
    for twin in (pickle.loads(pickle.dumps(rerank)), copy.deepcopy(rerank)):
        assert ids(twin.compress_documents(DOCUMENTS, QUERY)) == ["3"]


@pytest.mark.parametrize("option", [{"top_n": 0}, {"batch_size": 0}, {"unknown": 1}])
def test_invalid_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Qwen3TritonRerank(**option)
