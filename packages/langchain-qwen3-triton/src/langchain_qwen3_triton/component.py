"""What the embeddings and the reranker have in common: the gateway's clients."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import httpx2
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


class GatewayComponent(BaseModel):
    """A component with a synchronous and an asynchronous client of the gateway."""

    # Validation errors would otherwise show their input, including the key.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    base_url: str = Field(default_factory=from_env(BASE_URL_VARIABLE, default=DEFAULT_BASE_URL))
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env(API_KEY_VARIABLE, default=None)
    )
    batch_size: int = Field(default=ClientSettings.batch_size, ge=1, le=MAX_TEXTS_PER_REQUEST)
    max_concurrency: int = Field(default=ClientSettings.max_concurrency, ge=1)
    timeout: float = Field(default=ClientSettings.timeout, gt=0)
    max_retries: int = Field(default=ClientSettings.max_retries, ge=0)
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
            "batch_size": self.batch_size,
            "max_concurrency": self.max_concurrency,
            "timeout": self.timeout,
            "max_retries": self.max_retries,
        }
