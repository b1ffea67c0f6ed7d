"""LangChain's standard suites, run by `test_packaging.py` with only the built wheels installed."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

import langchain_qwen3_triton
from langchain_qwen3_triton import Qwen3TritonEmbeddings


def test_the_adapter_is_the_installed_one() -> None:
    assert "site-packages" in langchain_qwen3_triton.__file__


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

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": os.environ["GATEWAY_URL"], "dimensions": 1024}
