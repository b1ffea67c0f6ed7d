"""LangChain's own suites for embeddings, and a vector store, with a running gateway."""

from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_qwen3_triton import Qwen3TritonEmbeddings


class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return Qwen3TritonEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"dimensions": 512}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"QWEN3_TRITON_URL": "http://gateway:8101", "QWEN3_TRITON_API_KEY": "secret-key"},
            {},
            {"base_url": "http://gateway:8101", "api_key": "secret-key"},
        )


class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return Qwen3TritonEmbeddings

    @pytest.fixture
    def model(self, gateway_url: str) -> Embeddings:
        return Qwen3TritonEmbeddings(base_url=gateway_url, dimensions=1024)


async def test_a_question_finds_its_answer_in_a_vector_store(gateway_url: str) -> None:
    texts = [
        "A dog is a domesticated animal that barks and guards the house.",
        "Income tax is a levy on the earnings of persons and companies.",
        "A violin is a musical instrument with four strings played with a bow.",
    ]
    store = InMemoryVectorStore(Qwen3TritonEmbeddings(base_url=gateway_url, batch_size=2))
    await store.aadd_texts(texts)
    assert store.similarity_search("What animal barks?", k=1)[0].page_content == texts[0]
    hits = await store.asimilarity_search("Which instrument has strings?", k=1)
    assert hits[0].page_content == texts[2]
