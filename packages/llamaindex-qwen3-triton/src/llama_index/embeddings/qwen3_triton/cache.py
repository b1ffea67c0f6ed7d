"""Vectors kept between calls, queries apart from documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = ["EmbeddingCache"]

_FIELD = "embedding"


class KeyValueStore(Protocol):
    """What is needed of LlamaIndex's `BaseKVStore`, whose own types are incomplete."""

    def get(self, key: str, collection: str) -> dict[str, list[float]] | None: ...

    async def aget(self, key: str, collection: str) -> dict[str, list[float]] | None: ...

    def put(self, key: str, val: dict[str, list[float]], collection: str) -> None: ...

    async def aput(self, key: str, val: dict[str, list[float]], collection: str) -> None: ...


@dataclass(frozen=True)
class EmbeddingCache:
    """Read and write a key-value store under names that say how a vector was made.

    LlamaIndex's own drivers use the bare text as the key, in one collection for queries and
    documents, which returns a document's vector for a query of the same words
    (https://github.com/run-llama/llama_index/pull/23181).
    """

    store: KeyValueStore
    identity: dict[str, Any]
    """What changes a vector besides its text."""
    collection: Literal["query_embeddings", "text_embeddings"]

    def get(self, texts: Sequence[str]) -> dict[int, list[float]]:
        """Return the known vectors by index of their text."""
        found = ((i, self.store.get(self._key(t), self.collection)) for i, t in enumerate(texts))
        return {index: value[_FIELD] for index, value in found if value}

    async def aget(self, texts: Sequence[str]) -> dict[int, list[float]]:
        """Return the known vectors by index of their text."""
        known: dict[int, list[float]] = {}
        for index, text in enumerate(texts):
            value = await self.store.aget(self._key(text), self.collection)
            if value:
                known[index] = value[_FIELD]
        return known

    def put(self, items: Iterable[tuple[str, list[float]]]) -> None:
        """Keep the vectors of texts."""
        for text, vector in items:
            self.store.put(self._key(text), {_FIELD: vector}, self.collection)

    async def aput(self, items: Iterable[tuple[str, list[float]]]) -> None:
        """Keep the vectors of texts."""
        for text, vector in items:
            await self.store.aput(self._key(text), {_FIELD: vector}, self.collection)

    def _key(self, text: str) -> str:
        described = json.dumps([self.identity, text], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()
