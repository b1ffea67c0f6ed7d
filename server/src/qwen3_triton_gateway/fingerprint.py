"""The name of an embedding space: vectors with different fingerprints must not be compared."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import lru_cache

import orjson


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """What decides a vector. Two gateways with equal fields give comparable vectors."""

    model_id: str
    weights_digest: str
    tokenizer_digest: str
    pooling: str
    prompt_version: str
    dtype: str

    def fingerprint(self, dimensions: int) -> str:
        """Digest the space and the number of dimensions into 16 hexadecimal digits."""
        return _digest(self, dimensions)


@lru_cache
def _digest(space: EmbeddingSpace, dimensions: int) -> str:
    fields = asdict(space) | {"dimensions": dimensions}
    canonical = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:16]
