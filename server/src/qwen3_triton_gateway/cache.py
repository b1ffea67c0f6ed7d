"""A cache of vectors, bounded in bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cachetools import LRUCache

from .tensors import EmbeddedText

# The key, the record, the array's header and the cache's links, in addition to the array's bytes.
ENTRY_OVERHEAD_BYTES = 600


class VectorCache:
    """The vectors that were used most recently."""

    def __init__(self, max_bytes: int) -> None:
        """Create an empty cache of at most `max_bytes`; 0 disables it."""
        self.enabled: bool = max_bytes > 0
        self._entries: LRUCache[bytes, EmbeddedText] = LRUCache(max_bytes, getsizeof=_size_bytes)

    @property
    def used_bytes(self) -> int:
        return int(self._entries.currsize)

    def keys(self, texts: Sequence[str], *scope: str) -> list[bytes]:
        """Compute the keys of texts.

        Args:
            texts: The texts.
            *scope: Everything else that decides their vectors.
        """
        common = hashlib.blake2b(digest_size=32)
        for part in scope:
            _update(common, part)
        keys: list[bytes] = []
        for text in texts:
            digest = common.copy()
            _update(digest, text)
            keys.append(digest.digest())
        return keys

    def get(self, key: bytes) -> EmbeddedText | None:
        return self._entries.get(key)

    def clear(self) -> None:
        """Forget everything, because some of it may be wrong."""
        self._entries.clear()

    def put(self, key: bytes, text: EmbeddedText) -> None:
        """Store a vector, unless it is larger than the whole cache."""
        # A copy: a row of a matrix keeps the whole matrix alive.
        copy = EmbeddedText(text.vector.copy(), text.count)
        if _size_bytes(copy) <= self._entries.maxsize:
            self._entries[key] = copy


def _update(digest: hashlib.blake2b, part: str) -> None:
    data = part.encode()
    # With its length, a part cannot run into the next one.
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def _size_bytes(text: EmbeddedText) -> int:
    return text.vector.nbytes + ENTRY_OVERHEAD_BYTES
