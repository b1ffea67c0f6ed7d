"""The client and the two framework adapters behind one interface, embedding and reranking."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from langchain_qwen3_triton import Qwen3TritonEmbeddings
from langchain_qwen3_triton import Qwen3TritonRerank as LangChainRerank
from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding
from llama_index.embeddings.qwen3_triton import Qwen3TritonRerank as LlamaIndexRerank
from qwen3_triton_client import EmbeddingClient, RerankResult
from traffic import QUERY

Rows = list[list[float]]


class Caller(ABC):
    """The client or an adapter; can be pickled and shared by threads and event loops, as it can."""

    model: Any

    @abstractmethod
    def rows(self, texts: list[str]) -> Rows:
        """Return the vector of each text, or a row with its raw score."""

    @abstractmethod
    async def arows(self, texts: list[str]) -> Rows: ...

    def run(self, texts: list[str], *, asynchronous: bool) -> Rows:
        """Call it in this thread, or in an event loop of its own."""
        return asyncio.run(self.arows(texts)) if asynchronous else self.rows(texts)


class EmbeddingCaller(Caller):
    @abstractmethod
    def query(self, text: str) -> list[float]: ...

    @abstractmethod
    async def aquery(self, text: str) -> list[float]: ...


class _Client(Caller):
    """The client, which retries without a backoff; the adapters have no option for that."""

    def __init__(self, url: str, **options: Any) -> None:
        self.model = EmbeddingClient(url, **{"backoff_seconds": 0.0, **options})
        self._async = self.model.as_async()


class ClientCaller(_Client, EmbeddingCaller):
    def rows(self, texts: list[str]) -> Rows:
        return self.model.embed_documents(texts)

    async def arows(self, texts: list[str]) -> Rows:
        return await self._async.embed_documents(texts)

    def query(self, text: str) -> list[float]:
        return self.model.embed_query(text)

    async def aquery(self, text: str) -> list[float]:
        return await self._async.embed_query(text)


class LangChainCaller(EmbeddingCaller):
    def __init__(self, url: str, **options: Any) -> None:
        self.model = Qwen3TritonEmbeddings(base_url=url, **options)

    def rows(self, texts: list[str]) -> Rows:
        return self.model.embed_documents(texts)

    async def arows(self, texts: list[str]) -> Rows:
        return await self.model.aembed_documents(texts)

    def query(self, text: str) -> list[float]:
        return self.model.embed_query(text)

    async def aquery(self, text: str) -> list[float]:
        return await self.model.aembed_query(text)


class LlamaIndexCaller(EmbeddingCaller):
    def __init__(self, url: str, batch_size: int = 32, **options: Any) -> None:
        self.model = Qwen3TritonEmbedding(base_url=url, embed_batch_size=batch_size, **options)

    def rows(self, texts: list[str]) -> Rows:
        return self.model.get_text_embedding_batch(texts)

    async def arows(self, texts: list[str]) -> Rows:
        return await self.model.aget_text_embedding_batch(texts)

    def query(self, text: str) -> list[float]:
        return self.model.get_query_embedding(text)

    async def aquery(self, text: str) -> list[float]:
        return await self.model.aget_query_embedding(text)


class ClientRerankCaller(_Client):
    def rows(self, texts: list[str]) -> Rows:
        return self._rows(self.model.rerank(QUERY, texts))

    async def arows(self, texts: list[str]) -> Rows:
        return self._rows(await self._async.rerank(QUERY, texts))

    def _rows(self, result: RerankResult) -> Rows:
        ranked = [(document.index, document.score) for document in result.documents]
        return _in_order(ranked, range(len(ranked)))


class LangChainRerankCaller(Caller):
    def __init__(self, url: str, **options: Any) -> None:
        self.model = LangChainRerank(base_url=url, top_n=None, **options)

    def rows(self, texts: list[str]) -> Rows:
        documents = [Document(text) for text in texts]
        return self._rows(texts, self.model.compress_documents(documents, QUERY))

    async def arows(self, texts: list[str]) -> Rows:
        documents = [Document(text) for text in texts]
        return self._rows(texts, await self.model.acompress_documents(documents, QUERY))

    def _rows(self, texts: list[str], ranked: list[Document]) -> Rows:
        scores = ((each.page_content, each.metadata["relevance_score"]) for each in ranked)
        return _in_order(scores, texts)


class LlamaIndexRerankCaller(Caller):
    def __init__(self, url: str, **options: Any) -> None:
        self.model = LlamaIndexRerank(base_url=url, top_n=None, **options)

    def rows(self, texts: list[str]) -> Rows:
        found = self.model.postprocess_nodes(self._nodes(texts), query_str=QUERY)
        return self._rows(texts, found)

    async def arows(self, texts: list[str]) -> Rows:
        found = await self.model.apostprocess_nodes(self._nodes(texts), query_str=QUERY)
        return self._rows(texts, found)

    def _nodes(self, texts: list[str]) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=text)) for text in texts]

    def _rows(self, texts: list[str], ranked: list[NodeWithScore]) -> Rows:
        return _in_order(((each.text, each.score or 0.0) for each in ranked), texts)


def _in_order(ranked: Iterable[tuple[Any, float]], keys: Iterable[Any]) -> Rows:
    """Return the raw score of each key as a row; every key is ranked once, best first."""
    pairs = list(ranked)
    assert pairs == sorted(pairs, key=lambda pair: -pair[1])
    scores = dict(pairs)
    expected = list(keys)
    assert len(pairs) == len(expected)
    return [[math.log(scores[key] / (1.0 - scores[key]))] for key in expected]


CALLERS: dict[str, Callable[..., Caller]] = {
    "client": ClientCaller,
    "langchain": LangChainCaller,
    "llamaindex": LlamaIndexCaller,
}
RERANK_CALLERS: dict[str, Callable[..., Caller]] = {
    "client-rerank": ClientRerankCaller,
    "langchain-rerank": LangChainRerankCaller,
    "llamaindex-rerank": LlamaIndexRerankCaller,
}
