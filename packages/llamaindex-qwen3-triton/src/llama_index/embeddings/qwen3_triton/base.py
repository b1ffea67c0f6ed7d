"""The LlamaIndex face of the embedding client."""

from __future__ import annotations

import os
from typing import Any, Self

import httpx2
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, SkipValidation, model_validator

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    ClientSettings,
    ClientStats,
    EmbeddingClient,
)
from qwen3_triton_client.settings import (
    API_KEY_VARIABLE,
    BASE_URL_VARIABLE,
    DEFAULT_BASE_URL,
    DEFAULT_BATCH_SIZE,
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT_SECONDS,
    MAX_TEXTS_PER_REQUEST,
)

from .driver import arun, run

__all__ = ["Qwen3TritonEmbedding"]


def _base_url_from_environment() -> str:
    return os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL


def _api_key_from_environment() -> SecretStr | None:
    key = os.environ.get(API_KEY_VARIABLE)
    return SecretStr(key) if key else None


class Qwen3TritonEmbedding(BaseEmbedding):
    """Embed nodes and queries with Qwen3-Embedding on NVIDIA Triton.

    Queries carry the instruction of the model, documents do not. Batches run at the same time, up
    to `max_concurrency` of them, in synchronous calls too. No telemetry is sent anywhere.

    Only what changes vectors is serialized: `base_url`, `model_name`, `dimensions`, `instruction`
    and `truncate`. So an ingestion cache stays valid when a timeout or the batch size changes, and
    the key is in no dump.

    Examples:
        `pip install llama-index-embeddings-qwen3-triton`

        ```python
        from llama_index.core import Settings
        from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding

        Settings.embed_model = Qwen3TritonEmbedding(base_url="http://localhost:8101")
        ```
    """

    # A validation error would show its input, the key included.
    model_config = ConfigDict(
        protected_namespaces=("pydantic_model_",),
        arbitrary_types_allowed=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    base_url: str = Field(
        default_factory=_base_url_from_environment,
        description="Where the gateway listens, without `/embed`; default QWEN3_TRITON_URL.",
    )
    model_name: str = Field(
        default="", description="Name to ask for; empty takes whatever the gateway serves."
    )
    dimensions: int | None = Field(default=None, ge=1, description="Length of the vectors.")
    instruction: str | None = Field(default=None, description="What queries are for.")
    truncate: bool | None = Field(default=None, description="Whether too long texts are cut.")
    api_key: SecretStr | None = Field(
        default_factory=_api_key_from_environment,
        exclude=True,
        description="Key to present; default QWEN3_TRITON_API_KEY. Pickled, dumped nowhere.",
    )
    embed_batch_size: int = Field(
        default=DEFAULT_BATCH_SIZE,
        gt=0,
        le=MAX_TEXTS_PER_REQUEST,
        exclude=True,
        description="Most texts in one request.",
    )
    max_concurrency: int = Field(
        default=DEFAULT_MAX_CONCURRENCY,
        ge=1,
        exclude=True,
        description="Most requests in flight at once, over all threads or all tasks of a loop.",
    )
    num_workers: int | None = Field(
        default=None,
        ge=1,
        exclude=True,
        description="LlamaIndex's name for `max_concurrency`; where both are set, this one counts.",
    )
    timeout: float = Field(
        default=DEFAULT_TIMEOUT_SECONDS, gt=0, exclude=True, description="Seconds for one try."
    )
    max_retries: int = Field(
        default=DEFAULT_MAX_RETRIES,
        ge=0,
        exclude=True,
        description="Further tries after the first.",
    )
    embeddings_cache: Any = Field(
        default=None,
        exclude=True,
        description="Key-value store to keep vectors in, queries apart from documents.",
    )
    http_client: SkipValidation[httpx2.Client | None] = Field(
        default=None, exclude=True, repr=False, description="Your own client; never pickled."
    )
    http_async_client: SkipValidation[httpx2.AsyncClient | None] = Field(
        default=None, exclude=True, repr=False, description="Your own client; never pickled."
    )

    _client: EmbeddingClient | None = PrivateAttr(default=None)
    _async_client: AsyncEmbeddingClient | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        self._settings()
        return self

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the component is serialized."""
        return "Qwen3TritonEmbedding"

    def clients(self) -> tuple[EmbeddingClient, AsyncEmbeddingClient]:
        """Return the clients for the settings as they are now; components can be changed."""
        settings = self._settings()
        client, async_client = self._client, self._async_client
        if client is None or async_client is None or client.settings != settings:
            client = EmbeddingClient.from_settings(settings, http_client=self.http_client)
            async_client = client.as_async(http_client=self.http_async_client)
            self._client, self._async_client = client, async_client
        return client, async_client

    def fingerprint(self) -> str:
        """Return the digest that names the embedding space; name caches and tables by it.

        Raises:
            EmbeddingError: The gateway does not answer.
        """
        return self.clients()[0].fingerprint()

    async def afingerprint(self) -> str:
        """Return the digest that names the embedding space, without blocking.

        Raises:
            EmbeddingError: The gateway does not answer.
        """
        return await self.clients()[1].fingerprint()

    @property
    def stats(self) -> ClientStats:
        """Return what was done so far: requests, retries, texts, tokens and seconds."""
        return self.clients()[0].stats

    def close(self) -> None:
        """Close the connections of synchronous calls; a later call opens new ones."""
        self.clients()[0].close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; a later call opens new ones."""
        await self.clients()[1].aclose()

    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a text to search by, with the instruction before it.

        Raises:
            EmbeddingError: There is no vector for it.
        """
        return run(self, [query], "query")[0]

    async def aget_query_embedding(self, query: str) -> Embedding:
        """Embed a text to search by, without blocking the event loop."""
        return (await arun(self, [query], "query"))[0]

    def get_text_embedding(self, text: str) -> Embedding:
        """Embed a text to be found."""
        return run(self, [text], "document")[0]

    async def aget_text_embedding(self, text: str) -> Embedding:
        """Embed a text to be found, without blocking the event loop."""
        return (await arun(self, [text], "document"))[0]

    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,
    ) -> list[Embedding]:
        """Embed texts to be found, in their order, several batches at a time.

        Raises:
            EmbeddingError: Some text has no vector; `completed` holds those that were done.
        """
        return run(self, texts, "document", show_progress=show_progress)

    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,
    ) -> list[Embedding]:
        """Embed texts to be found; the first error or a cancellation ends all its requests.

        Raises:
            EmbeddingError: Some text has no vector; `completed` holds those that were done.
        """
        return await arun(self, texts, "document", show_progress=show_progress)

    def _get_query_embedding(self, query: str) -> Embedding:
        return self.clients()[0].embed_query(query)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await self.clients()[1].embed_query(query)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self.clients()[0].embed_documents([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self.clients()[1].embed_documents([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self.clients()[0].embed_documents(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self.clients()[1].embed_documents(texts)

    def _settings(self) -> ClientSettings:
        return ClientSettings(
            base_url=self.base_url,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            model=self.model_name or None,
            dimensions=self.dimensions,
            instruction=self.instruction,
            truncate=self.truncate,
            batch_size=self.embed_batch_size,
            max_concurrency=self.num_workers or self.max_concurrency,
            timeout=self.timeout,
            max_retries=self.max_retries,
        )
