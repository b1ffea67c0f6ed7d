"""A cache of vectors in a key-value store of LlamaIndex."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

_FIELD = "embedding"


class KeyValueStore(Protocol):
    """The part of LlamaIndex's `BaseKVStore` used here; its own types are incomplete."""

    def get(self, key: str, collection: str) -> dict[str, list[float]] | None: ...

    async def aget(self, key: str, collection: str) -> dict[str, list[float]] | None: ...

    def put(self, key: str, val: dict[str, list[float]], collection: str) -> None: ...

    async def aput(self, key: str, val: dict[str, list[float]], collection: str) -> None: ...


@dataclass(frozen=True)
class EmbeddingCache:
    """A cache whose keys include everything that affects a vector.

    LlamaIndex's own methods use the bare text as the key, in one collection for queries and
    documents, and so return a document's vector for a query with the same words
    (https://github.com/run-llama/llama_index/pull/23181).

    Attributes:
        store: Where the vectors are stored.
        identity: Everything but the text that affects a vector.
        collection: The name of the collection in the store.
    """

    store: KeyValueStore
    identity: dict[str, Any]
    collection: Literal["query_embeddings", "text_embeddings"]

    def get(self, texts: Sequence[str]) -> dict[int, list[float]]:
        """Return the cached vectors by index of their text."""
        found = ((i, self.store.get(self._key(t), self.collection)) for i, t in enumerate(texts))
        return {index: value[_FIELD] for index, value in found if value}

    async def aget(self, texts: Sequence[str]) -> dict[int, list[float]]:
        """Return the cached vectors by index of their text."""
        cached: dict[int, list[float]] = {}
        for index, text in enumerate(texts):
            value = await self.store.aget(self._key(text), self.collection)
            if value:
                cached[index] = value[_FIELD]
        return cached

    def put(self, items: Iterable[tuple[str, list[float]]]) -> None:
        """Store the vectors of texts."""
        for text, vector in items:
            self.store.put(self._key(text), {_FIELD: vector}, self.collection)

    async def aput(self, items: Iterable[tuple[str, list[float]]]) -> None:
        """Store the vectors of texts."""
        for text, vector in items:
            await self.store.aput(self._key(text), {_FIELD: vector}, self.collection)

    def _key(self, text: str) -> str:
        described = json.dumps([self.identity, text], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()
