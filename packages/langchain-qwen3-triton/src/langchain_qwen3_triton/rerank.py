"""LangChain's `BaseDocumentCompressor` interface for the gateway's reranker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field

from qwen3_triton_client import RerankResult

from .component import GatewayComponent

SCORE_KEY = "relevance_score"


class Qwen3TritonRerank(GatewayComponent, BaseDocumentCompressor):
    """LangChain reranking with Qwen3-Reranker on NVIDIA Triton.

    Returns copies of the most relevant documents, the best first, with `relevance_score` in their
    metadata: a number from 0 to 1. Blank documents come last, with a score of 0. No telemetry is
    sent.

    Attributes:
        top_n: Number of documents to return; None returns all.
        base_url: Address of the gateway. Default: `QWEN3_TRITON_URL`, else
            `http://localhost:8101`.
        api_key: Key to send. Default: `QWEN3_TRITON_API_KEY`, else none.
        model: Name of the reranker to request. The gateway refuses any other than the one it
            serves.
        instruction: What makes a document relevant, as one English sentence. Default: the
            gateway's, which is web search.
        truncate: Whether the end of a document that is too long is cut (True) or the call refused
            (False). Default: the gateway's.
        batch_size: Maximum number of documents per request; no more than 100 are sent.
        max_concurrency: Maximum number of requests in flight, over all threads or over all tasks
            of an event loop.
        timeout: Seconds for one try.
        max_retries: Retries after the first try.
        http_client: Your own HTTP client for synchronous calls; not pickled.
        http_async_client: Your own HTTP client for asynchronous calls; not pickled.

    Examples:
        ```python
        from langchain_classic.retrievers import ContextualCompressionRetriever
        from langchain_qwen3_triton import Qwen3TritonRerank

        retriever = ContextualCompressionRetriever(
            base_compressor=Qwen3TritonRerank(top_n=5),
            base_retriever=store.as_retriever(search_kwargs={"k": 50}),
        )
        ```
    """

    top_n: int | None = Field(default=5, ge=1)
    model: str | None = None
    instruction: str | None = None
    truncate: bool | None = None

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return the documents that are most relevant to a query, the best first.

        Raises:
            EmbeddingError: A document has no score; `failed_indices` names it.
        """
        texts = [document.page_content for document in documents]
        return _scored(documents, self.clients()[0].rerank(query, texts, **self._options()))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return the most relevant documents, without blocking the event loop.

        Raises:
            EmbeddingError: A document has no score; `failed_indices` names it.
        """
        texts = [document.page_content for document in documents]
        return _scored(documents, await self.clients()[1].rerank(query, texts, **self._options()))

    def _options(self) -> dict[str, Any]:
        return {
            "top_n": self.top_n,
            "instruction": self.instruction,
            "model": self.model,
            "truncate": self.truncate,
            "on_blank": "last",
        }


def _scored(documents: Sequence[Document], result: RerankResult) -> list[Document]:
    """Copy the documents of a result; the caller's keep their metadata."""
    return [
        documents[ranked.index].model_copy(
            update={"metadata": {**documents[ranked.index].metadata, SCORE_KEY: ranked.score}}
        )
        for ranked in result.documents
    ]
