"""Vectors of texts seen before, within a bound of bytes."""

from __future__ import annotations

import hashlib

from cachetools import LRUCache

from .tensors import EmbeddedText

# A key, a record, an array's header and the cache's links, beside the array's own bytes.
ENTRY_OVERHEAD_BYTES = 600


class VectorCache:
    """Keep the vectors used last; `max_bytes` bounds what all of them take, 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self.enabled = max_bytes > 0
        self._entries: LRUCache[bytes, EmbeddedText] = LRUCache(max_bytes, getsizeof=_size_bytes)

    @property
    def used_bytes(self) -> int:
        return int(self._entries.currsize)

    def key(self, text: str, *scope: str) -> bytes:
        """Digest a text and all else that decides its vector."""
        digest = hashlib.blake2b(digest_size=32)
        for part in (*scope, text):
            data = part.encode()
            # The lengths keep neighbouring parts from running together.
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.digest()

    def get(self, key: bytes) -> EmbeddedText | None:
        return self._entries.get(key)

    def put(self, key: bytes, text: EmbeddedText) -> None:
        """Keep a vector; one larger than the whole cache is let go."""
        # A row of a matrix would keep the whole matrix alive.
        owned = EmbeddedText(text.vector.copy(), text.count)
        if _size_bytes(owned) <= self._entries.maxsize:
            self._entries[key] = owned


def _size_bytes(text: EmbeddedText) -> int:
    return text.vector.nbytes + ENTRY_OVERHEAD_BYTES
