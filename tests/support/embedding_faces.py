"""The client and the two framework adapters behind one interface."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from langchain_qwen3_triton import Qwen3TritonEmbeddings
from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding
from qwen3_triton_client import EmbeddingClient

Vectors = list[list[float]]


class Face(ABC):
    """One of the three; can be pickled and shared among threads and event loops like its model."""

    model: Any

    @abstractmethod
    def embed(self, texts: list[str]) -> Vectors: ...

    @abstractmethod
    async def aembed(self, texts: list[str]) -> Vectors: ...

    @abstractmethod
    def query(self, text: str) -> list[float]: ...

    @abstractmethod
    async def aquery(self, text: str) -> list[float]: ...

    def run(self, texts: list[str], *, asynchronous: bool) -> Vectors:
        """Embed in this thread, or in an event loop of its own."""
        return asyncio.run(self.aembed(texts)) if asynchronous else self.embed(texts)


class ClientFace(Face):
    """The client, which retries without a backoff; the adapters have no option for that."""

    def __init__(self, url: str, **options: Any) -> None:
        self.model = EmbeddingClient(url, **{"backoff_seconds": 0.0, **options})
        self._async = self.model.as_async()

    def embed(self, texts: list[str]) -> Vectors:
        return self.model.embed_documents(texts)

    async def aembed(self, texts: list[str]) -> Vectors:
        return await self._async.embed_documents(texts)

    def query(self, text: str) -> list[float]:
        return self.model.embed_query(text)

    async def aquery(self, text: str) -> list[float]:
        return await self._async.embed_query(text)


class LangChainFace(Face):
    def __init__(self, url: str, **options: Any) -> None:
        self.model = Qwen3TritonEmbeddings(base_url=url, **options)

    def embed(self, texts: list[str]) -> Vectors:
        return self.model.embed_documents(texts)

    async def aembed(self, texts: list[str]) -> Vectors:
        return await self.model.aembed_documents(texts)

    def query(self, text: str) -> list[float]:
        return self.model.embed_query(text)

    async def aquery(self, text: str) -> list[float]:
        return await self.model.aembed_query(text)


class LlamaIndexFace(Face):
    def __init__(self, url: str, batch_size: int = 32, **options: Any) -> None:
        self.model = Qwen3TritonEmbedding(base_url=url, embed_batch_size=batch_size, **options)

    def embed(self, texts: list[str]) -> Vectors:
        return self.model.get_text_embedding_batch(texts)

    async def aembed(self, texts: list[str]) -> Vectors:
        return await self.model.aget_text_embedding_batch(texts)

    def query(self, text: str) -> list[float]:
        return self.model.get_query_embedding(text)

    async def aquery(self, text: str) -> list[float]:
        return await self.model.aget_query_embedding(text)


FACES: dict[str, Callable[..., Face]] = {
    "client": ClientFace,
    "langchain": LangChainFace,
    "llamaindex": LlamaIndexFace,
}
