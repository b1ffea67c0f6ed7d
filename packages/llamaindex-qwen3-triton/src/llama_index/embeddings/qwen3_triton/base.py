"""LlamaIndex's `BaseEmbedding` interface for the embedding client, and what rerankers share."""

from __future__ import annotations

import logging
import os
import pickle
from functools import partial
from typing import Any, ClassVar, Self

import httpx2
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.rate_limiter import SlidingWindowRateLimiter, TokenBucketRateLimiter
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    SkipValidation,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

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

from .calls import aembed, embed


def _base_url_from_environment() -> str:
    return os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL


def _api_key_from_environment() -> SecretStr | None:
    key = os.environ.get(API_KEY_VARIABLE)
    return SecretStr(key) if key else None


_SHARED = ("http_client", "http_async_client", "rate_limiter", "embeddings_cache")
_log = logging.getLogger(__name__)


def _can_be_pickled(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True


class _NewLimiter:
    """Unpickled as a limiter with the settings of another one, whose lock stays behind."""

    def __init__(self, limiter: TokenBucketRateLimiter | SlidingWindowRateLimiter) -> None:
        self._create = partial(type(limiter), **limiter.model_dump())

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return self._create, ()


class GatewayComponent(BaseModel):
    """A component with a synchronous and an asynchronous client of the gateway."""

    # Validation errors would otherwise show their input, including the key.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        protected_namespaces=("pydantic_model_",),
        arbitrary_types_allowed=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    base_url: str = Field(default_factory=_base_url_from_environment)
    api_key: SecretStr | None = Field(default_factory=_api_key_from_environment, exclude=True)
    max_concurrency: int = Field(default=ClientSettings.max_concurrency, ge=1, exclude=True)
    timeout: float = Field(default=ClientSettings.timeout, gt=0, exclude=True)
    max_retries: int = Field(default=ClientSettings.max_retries, ge=0, exclude=True)
    http_client: SkipJsonSchema[SkipValidation[httpx2.Client | None]] = Field(
        default=None, exclude=True, repr=False
    )
    http_async_client: SkipJsonSchema[SkipValidation[httpx2.AsyncClient | None]] = Field(
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

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's own method deletes what cannot be pickled from this object, too. What is left
        # out here has its default in the copy.
        values = dict(vars(self))
        del values["http_client"], values["http_async_client"]
        for name, value in list(values.items()):
            if _can_be_pickled(value):
                continue
            if isinstance(value, TokenBucketRateLimiter | SlidingWindowRateLimiter):
                values[name] = _NewLimiter(value)
                continue
            del values[name]
            _log.warning("`%s` cannot be pickled, so the copy has its default.", name)
        return {
            "__dict__": values,
            "__pydantic_extra__": None,
            "__pydantic_fields_set__": set(values),
            "__pydantic_private__": {"_clients": None},
        }

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # A copy uses the same connections, cache and limit of requests: they cannot be copied, and
        # belong to the gateway rather than to this object.
        memo = {} if memo is None else memo
        for name in _SHARED:
            value = getattr(self, name, None)
            memo[id(value)] = value
        return super().__deepcopy__(memo)

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of `ClientSettings`, whose values are checked there."""
        return {
            "base_url": self.base_url,
            "api_key": self.api_key.get_secret_value() if self.api_key else None,
            "max_concurrency": self.max_concurrency,
            "timeout": self.timeout,
            "max_retries": self.max_retries,
        }


class Qwen3TritonEmbedding(GatewayComponent, BaseEmbedding):
    """LlamaIndex embeddings from Qwen3-Embedding on NVIDIA Triton.

    Queries are embedded with the instruction that the model expects, nodes without one. Up to
    `max_concurrency` batches run at the same time, in synchronous calls, too. No telemetry is sent.

    Only the settings that affect vectors are serialized: `base_url`, `model_name`, `dimensions`,
    `instruction` and `truncate`. So an ingestion cache stays valid when a timeout or the batch size
    changes, and the key is never part of a dump.

    Attributes:
        base_url: Address of the gateway, without `/embed`. Default: `QWEN3_TRITON_URL`, else
            `http://localhost:8101`.
        model_name: Model name to request; empty accepts whatever the gateway serves.
        dimensions: Length of the vectors. Default: the gateway's, 1024.
        instruction: The task that queries are for, as one English sentence. Default: the
            gateway's, which is web search.
        truncate: Whether texts that are too long are cut (True) or refused (False). Default: the
            gateway's.
        api_key: Key to send. Default: `QWEN3_TRITON_API_KEY`, else none. It is pickled, but never
            serialized.
        embed_batch_size: Maximum number of texts per request.
        max_concurrency: Maximum number of requests in flight, over all threads or over all tasks
            of an event loop.
        num_workers: LlamaIndex's name for `max_concurrency`, which it overrides.
        timeout: Seconds for one try.
        max_retries: Retries after the first try.
        embeddings_cache: Key-value store for vectors; queries and documents are stored separately.
        rate_limiter: As in LlamaIndex. A pickle has a limiter of its own with the same settings.
        http_client: Your own HTTP client for synchronous calls; not pickled.
        http_async_client: Your own HTTP client for asynchronous calls; not pickled.

    Examples:
        `pip install llama-index-embeddings-qwen3-triton`

        ```python
        from llama_index.core import Settings
        from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding

        Settings.embed_model = Qwen3TritonEmbedding(base_url="http://localhost:8101")
        ```
    """

    model_name: str = ""
    dimensions: int | None = Field(default=None, ge=1)
    instruction: str | None = None
    truncate: bool | None = None
    embed_batch_size: int = Field(
        default=ClientSettings.batch_size, gt=0, le=MAX_TEXTS_PER_REQUEST, exclude=True
    )
    num_workers: int | None = Field(default=None, ge=1, exclude=True)
    embeddings_cache: Any = Field(default=None, exclude=True)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the component is serialized."""
        return "Qwen3TritonEmbedding"

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

    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a query, with the instruction in front of it.

        Raises:
            EmbeddingError: The query has no vector.
        """
        return embed(self, [query], "query")[0]

    async def aget_query_embedding(self, query: str) -> Embedding:
        """Embed a query, without blocking the event loop."""
        return (await aembed(self, [query], "query"))[0]

    def get_text_embedding(self, text: str) -> Embedding:
        """Embed a document."""
        return embed(self, [text], "document")[0]

    async def aget_text_embedding(self, text: str) -> Embedding:
        """Embed a document, without blocking the event loop."""
        return (await aembed(self, [text], "document"))[0]

    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,
    ) -> list[Embedding]:
        """Embed documents, in the order of the texts, several batches at a time.

        Raises:
            EmbeddingError: A text has no vector; `completed` holds the vectors that did arrive.
        """
        return embed(self, texts, "document", show_progress=show_progress)

    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,
    ) -> list[Embedding]:
        """Embed documents; the first error, or a cancellation, cancels the requests in flight.

        Raises:
            EmbeddingError: A text has no vector; `completed` holds the vectors that did arrive.
        """
        return await aembed(self, texts, "document", show_progress=show_progress)

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

    def _arguments(self) -> dict[str, Any]:
        return {
            **super()._arguments(),
            "model": self.model_name or None,
            "dimensions": self.dimensions,
            "instruction": self.instruction,
            "truncate": self.truncate,
            "batch_size": self.embed_batch_size,
            "max_concurrency": self.num_workers or self.max_concurrency,
        }
