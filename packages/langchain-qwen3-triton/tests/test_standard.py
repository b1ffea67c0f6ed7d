"""LangChain's own suite for embeddings, against the fake gateway."""

from typing import Any

import pytest
from fake_gateway import FakeGateway
from langchain_core.embeddings import Embeddings
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


class TestOnTheWire(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return Qwen3TritonEmbeddings

    @pytest.fixture
    def model(self, fake: FakeGateway) -> Embeddings:
        return Qwen3TritonEmbeddings(base_url=fake.url)
