"""LangChain's `Embeddings` interface for the embedding client."""

from __future__ import annotations

from typing import Any, ClassVar, Self

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
    API_KEY_VARIABLE,
    BASE_URL_VARIABLE,
    DEFAULT_BASE_URL,
    MAX_TEXTS_PER_REQUEST,
    AsyncEmbeddingClient,
    ClientSettings,
    ClientStats,
    EmbeddingClient,
)


class Qwen3TritonEmbeddings(BaseModel, Embeddings):
    """LangChain embeddings from Qwen3-Embedding on NVIDIA Triton.

    Queries are embedded with the instruction that the model expects, documents without one. No
    telemetry is sent.

    Attributes:
        base_url: Address of the gateway, without `/embed`. Default: `QWEN3_TRITON_URL`, else
            `http://localhost:8101`.
        api_key: Key to send. Default: `QWEN3_TRITON_API_KEY`, else none.
        model: Model name to request. The gateway refuses any other than the one it serves.
        dimensions: Length of the vectors. Default: the gateway's, 1024.
        instruction: The task that queries are for, as one English sentence. Default: the
            gateway's, which is web search.
        truncate: Whether texts that are too long are cut (True) or refused (False). Default: the
            gateway's.
        batch_size: Maximum number of texts per request.
        max_concurrency: Maximum number of requests in flight, over all threads or over all tasks
            of an event loop.
        timeout: Seconds for one try.
        max_retries: Retries after the first try.
        show_progress_bar: Whether to show a progress bar for documents; needs
            `langchain-qwen3-triton[progress]`.
        http_client: Your own HTTP client for synchronous calls; not pickled.
        http_async_client: Your own HTTP client for asynchronous calls; not pickled.

    Examples:
        ```python
        from langchain_qwen3_triton import Qwen3TritonEmbeddings

        embeddings = Qwen3TritonEmbeddings(base_url="http://localhost:8101", dimensions=1024)
        vectors = embeddings.embed_documents(["Basalt is a volcanic rock.", "Ice is frozen."])
        vector = embeddings.embed_query("What is lava made of when it cools?")
        ```

        Without blocking the event loop:

        ```python
        vectors = await embeddings.aembed_documents(["Basalt is a volcanic rock."])
        vector = await embeddings.aembed_query("What is lava made of when it cools?")
        ```
    """

    # Validation errors would otherwise show their input, including the key.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    base_url: str = Field(default_factory=from_env(BASE_URL_VARIABLE, default=DEFAULT_BASE_URL))
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env(API_KEY_VARIABLE, default=None)
    )
    model: str | None = None
    dimensions: int | None = Field(default=None, ge=1)
    instruction: str | None = None
    truncate: bool | None = None
    batch_size: int = Field(default=ClientSettings.batch_size, ge=1, le=MAX_TEXTS_PER_REQUEST)
    max_concurrency: int = Field(default=ClientSettings.max_concurrency, ge=1)
    timeout: float = Field(default=ClientSettings.timeout, gt=0)
    max_retries: int = Field(default=ClientSettings.max_retries, ge=0)
    show_progress_bar: bool = False
    http_client: SkipValidation[httpx2.Client | None] = Field(
        default=None, exclude=True, repr=False
    )
    http_async_client: SkipValidation[httpx2.AsyncClient | None] = Field(
        default=None, exclude=True, repr=False
    )

    # The clients, after the arguments that their settings were made from.
    _clients: tuple[dict[str, Any], EmbeddingClient, AsyncEmbeddingClient] | None = PrivateAttr(
        default=None
    )

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        ClientSettings(**self._arguments())
        return self

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, in the order of the texts.

        Raises:
            EmbeddingError: A text has no vector; `completed` holds the vectors that did arrive.
        """
        return self.clients()[0].embed_documents(texts, progress=self.show_progress_bar)

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, with the instruction in front of it.

        Raises:
            EmbeddingError: The query has no vector.
        """
        return self.clients()[0].embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, in the order of the texts, without blocking the event loop.

        Raises:
            EmbeddingError: A text has no vector; `completed` holds the vectors that did arrive.
        """
        return await self.clients()[1].embed_documents(texts, progress=self.show_progress_bar)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query, with the instruction in front of it, without blocking the event loop.

        Raises:
            EmbeddingError: The query has no vector.
        """
        return await self.clients()[1].embed_query(text)

    def fingerprint(self) -> str:
        """Return the digest that names the embedding space, for the names of caches and tables.

        Raises:
            EmbeddingError: The gateway does not answer.
        """
        return self.clients()[0].fingerprint()

    async def afingerprint(self) -> str:
        """Return the digest that names the embedding space, without blocking the event loop.

        Raises:
            EmbeddingError: The gateway does not answer.
        """
        return await self.clients()[1].fingerprint()

    @property
    def stats(self) -> ClientStats:
        """What was done so far: requests, retries, texts, tokens and seconds."""
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
        # Connections cannot be copied, so the copy uses the same ones.
        memo = {} if memo is None else memo
        for http in (self.http_client, self.http_async_client):
            memo[id(http)] = http
        return super().__deepcopy__(memo)

    def clients(self) -> tuple[EmbeddingClient, AsyncEmbeddingClient]:
        """Return the underlying clients, whose `embed` returns float32 arrays.

        They are replaced when a setting changes, so call this each time.
        """
        arguments = self._arguments()
        if self._clients is None or self._clients[0] != arguments:
            settings = ClientSettings(**arguments)
            client = EmbeddingClient.from_settings(settings, http_client=self.http_client)
            async_client = client.as_async(http_client=self.http_async_client)
            self._clients = arguments, client, async_client
        return self._clients[1:]

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of `ClientSettings`, whose values are checked there."""
        return {
            "base_url": self.base_url,
            "api_key": self.api_key.get_secret_value() if self.api_key else None,
            "model": self.model,
            "dimensions": self.dimensions,
            "instruction": self.instruction,
            "truncate": self.truncate,
            "batch_size": self.batch_size,
            "max_concurrency": self.max_concurrency,
            "timeout": self.timeout,
            "max_retries": self.max_retries,
        }
