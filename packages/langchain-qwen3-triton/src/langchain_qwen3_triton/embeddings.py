"""The LangChain face of the embedding client."""

from __future__ import annotations

from typing import Any, Self

import httpx2
from langchain_core.embeddings import Embeddings
from langchain_core.utils import from_env, secret_from_env
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    SkipValidation,
    model_validator,
)

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


class Qwen3TritonEmbeddings(BaseModel, Embeddings):
    """Embed documents and queries with Qwen3-Embedding on NVIDIA Triton.

    Queries carry the instruction of the model, documents do not. No telemetry is sent anywhere.

    Setup:
        Install the package and point it at a running gateway.

        .. code-block:: bash

            pip install -U langchain-qwen3-triton
            export QWEN3_TRITON_URL="http://localhost:8101"
            export QWEN3_TRITON_API_KEY="..."  # only where the gateway asks for one

    Key init args - embedding params:
        model: Optional[str]
            Name to ask for. The gateway refuses any other than the one it serves.
        dimensions: Optional[int]
            Length of the vectors. Default: the gateway's, 1024.
        instruction: Optional[str]
            What queries are for, as one English sentence. Default: the gateway's, web search.
        truncate: Optional[bool]
            Whether texts that are too long are cut (True) or refused (False).

    Key init args - client params:
        base_url: str
            Where the gateway listens. Default: `QWEN3_TRITON_URL`, else `http://localhost:8101`.
        api_key: Optional[SecretStr]
            Key to present. Default: `QWEN3_TRITON_API_KEY`, else none.
        batch_size: int
            Most texts in one request.
        max_concurrency: int
            Most requests in flight at once, over all threads or all tasks of an event loop.
        timeout: float
            Seconds for one try.
        max_retries: int
            Further tries after the first.
        show_progress_bar: bool
            Whether documents are counted on a bar; needs `langchain-qwen3-triton[progress]`.

    Instantiate:
        .. code-block:: python

            from langchain_qwen3_triton import Qwen3TritonEmbeddings

            embeddings = Qwen3TritonEmbeddings(base_url="http://localhost:8101", dimensions=1024)

    Embed single text:
        .. code-block:: python

            vector = embeddings.embed_query("What is lava made of when it cools?")

    Embed multiple texts:
        .. code-block:: python

            vectors = embeddings.embed_documents(["Basalt is a volcanic rock.", "Ice is frozen."])

    Async:
        .. code-block:: python

            vector = await embeddings.aembed_query("What is lava made of when it cools?")
            vectors = await embeddings.aembed_documents(["Basalt is a volcanic rock."])
    """

    # A validation error would show its input, the key included.
    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    base_url: str = Field(
        default_factory=from_env(BASE_URL_VARIABLE, default=DEFAULT_BASE_URL),
        description="Where the gateway listens, without `/embed`.",
    )
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env(API_KEY_VARIABLE, default=None),
        description="Key to present; None for a gateway that asks for none.",
    )
    model: str | None = Field(default=None, description="Name to ask for.")
    dimensions: int | None = Field(default=None, ge=1, description="Length of the vectors.")
    instruction: str | None = Field(default=None, description="What queries are for.")
    truncate: bool | None = Field(default=None, description="Whether too long texts are cut.")
    batch_size: int = Field(
        default=DEFAULT_BATCH_SIZE,
        ge=1,
        le=MAX_TEXTS_PER_REQUEST,
        description="Most texts in one request.",
    )
    max_concurrency: int = Field(
        default=DEFAULT_MAX_CONCURRENCY, ge=1, description="Most requests in flight at once."
    )
    timeout: float = Field(
        default=DEFAULT_TIMEOUT_SECONDS, gt=0, description="Seconds for one try."
    )
    max_retries: int = Field(
        default=DEFAULT_MAX_RETRIES, ge=0, description="Further tries after the first."
    )
    show_progress_bar: bool = Field(
        default=False, description="Whether documents are counted on a bar."
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

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts to be found, in their order.

        Raises:
            EmbeddingError: Some text has no vector; `completed` holds those that were done.
        """
        return self.clients()[0].embed_documents(texts, progress=self.show_progress_bar)

    def embed_query(self, text: str) -> list[float]:
        """Embed a text to search by, with the instruction before it.

        Raises:
            EmbeddingError: There is no vector for it.
        """
        return self.clients()[0].embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts to be found, in their order, without blocking the event loop.

        Raises:
            EmbeddingError: Some text has no vector; `completed` holds those that were done.
        """
        return await self.clients()[1].embed_documents(texts, progress=self.show_progress_bar)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a text to search by, with the instruction before it, without blocking.

        Raises:
            EmbeddingError: There is no vector for it.
        """
        return await self.clients()[1].embed_query(text)

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

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        kept = {**state["__dict__"], "http_client": None, "http_async_client": None}
        return {**state, "__dict__": kept}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # Connections cannot be copied; the copy uses the same ones.
        memo = {} if memo is None else memo
        for http in (self.http_client, self.http_async_client):
            memo[id(http)] = http
        return super().__deepcopy__(memo)

    def clients(self) -> tuple[EmbeddingClient, AsyncEmbeddingClient]:
        """Return the clients that do the work: their `embed` gives float32 arrays.

        They are made anew after a change of the settings, so ask each time.
        """
        settings = self._settings()
        client, async_client = self._client, self._async_client
        if client is None or async_client is None or client.settings != settings:
            client = EmbeddingClient.from_settings(settings, http_client=self.http_client)
            async_client = client.as_async(http_client=self.http_async_client)
            self._client, self._async_client = client, async_client
        return client, async_client

    def _settings(self) -> ClientSettings:
        return ClientSettings(
            base_url=self.base_url,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            model=self.model,
            dimensions=self.dimensions,
            instruction=self.instruction,
            truncate=self.truncate,
            batch_size=self.batch_size,
            max_concurrency=self.max_concurrency,
            timeout=self.timeout,
            max_retries=self.max_retries,
        )
