"""LangChain's `Embeddings` interface for the embedding client."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings
from pydantic import Field

from .component import GatewayComponent


class Qwen3TritonEmbeddings(GatewayComponent, Embeddings):
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

    model: str | None = None
    dimensions: int | None = Field(default=None, ge=1)
    instruction: str | None = None
    truncate: bool | None = None
    show_progress_bar: bool = False

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

    def _arguments(self) -> dict[str, Any]:
        return {
            **super()._arguments(),
            "model": self.model,
            "dimensions": self.dimensions,
            "instruction": self.instruction,
            "truncate": self.truncate,
        }
