"""Vectors, and what is returned with them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .errors import EmbeddingError

Vector: TypeAlias = "array[float]"
"""One embedding: an `array.array` of type code `f` (float32), `dimensions` long, of norm 1."""

FLOAT_BYTES = 4
# The byte of a float32 that holds the sign and the upper seven bits of the exponent, and its value
# for infinity and NaN of either sign (also for numbers from 2**127 on, which no embedding holds).
_HIGH_BYTE = FLOAT_BYTES - 1 if sys.byteorder == "little" else 0
_NOT_FINITE, _NEGATIVE_NOT_FINITE = 0x7F, 0xFF


def vector_defect(vector: Vector, dimensions: int | None = None) -> str | None:
    """Return why a vector cannot be stored or searched for, as a predicate; None if it can.

    The bytes are searched for the exponent of NaN and infinity, which is 20 times as fast as
    testing each number.

    Args:
        vector: An `array.array` of type code `f`.
        dimensions: The length that it must have; None accepts any but zero.

    Examples:
        >>> vector_defect(array("f", [0.6, float("nan")]))
        'holds NaN or infinity'
    """
    if dimensions is not None and len(vector) != dimensions:
        return f"has {len(vector):,} dimensions instead of {dimensions:,}"
    if not any(vector):  # stops at the first value, unless all are zeros
        return "is all zeros" if vector else "is empty"
    high_bytes = vector.tobytes()[_HIGH_BYTE::FLOAT_BYTES]
    if _NOT_FINITE in high_bytes or _NEGATIVE_NOT_FINITE in high_bytes:
        return "holds NaN or infinity"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats:
    """What requests did: all of a client's, those of one call, or those of one batch.

    Attributes:
        requests: Requests sent, retries included.
        retries: Retries among them.
        texts: Texts embedded, and documents scored.
        prompt_tokens: Tokens that the models read.
        request_seconds: Seconds spent in requests, summed over concurrent ones.
    """

    requests: int = 0
    retries: int = 0
    texts: int = 0
    prompt_tokens: int = 0
    request_seconds: float = 0.0

    def __add__(self, other: ClientStats) -> ClientStats:
        return ClientStats(
            requests=self.requests + other.requests,
            retries=self.retries + other.retries,
            texts=self.texts + other.texts,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            request_seconds=self.request_seconds + other.request_seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResult:
    """The vectors of one call, with the gateway's metadata.

    Attributes:
        count: Number of texts in the call.
        completed: Vector by index of its text, for every text that has one.
        failed: Error by index of its text; empty unless the call had `on_error="isolate"`.
        dimensions: Length of every vector; 0 if no text was sent.
        model: Name of the model that answered; empty if no text was sent.
        fingerprint: Digest that names the embedding space. Compare only vectors with equal
            fingerprints.
        prompt_tokens: Tokens that the model read, over all texts.
        truncated: Indices of the texts that were cut to the model's maximum length, ascending.
        stats: What the requests of this call did.
    """

    count: int
    completed: Mapping[int, Vector] = field(repr=False)  # asyncio logs the repr of results
    failed: Mapping[int, EmbeddingError] = field(default_factory=dict[int, "EmbeddingError"])
    dimensions: int
    model: str
    fingerprint: str
    prompt_tokens: int
    truncated: tuple[int, ...]
    stats: ClientStats = field(default_factory=ClientStats)

    @property
    def vectors(self) -> list[Vector]:
        """The float32 arrays, one per text, in the order of the texts.

        Raises:
            EmbeddingError: The error of the first text that has no vector.
        """
        if self.failed:
            raise self.failed[min(self.failed)]
        return [self.completed[index] for index in range(self.count)]

    def to_lists(self) -> list[list[float]]:
        """Return the vectors as lists of Python floats, in the order of the texts."""
        return [vector.tolist() for vector in self.vectors]

    def to_numpy(self) -> npt.NDArray[np.float32]:
        """Return the vectors as one float32 array of shape `(count, dimensions)`.

        Raises:
            ImportError: numpy is not installed.
        """
        try:
            import numpy as np
        except ImportError as error:
            msg = "`to_numpy` needs numpy: pip install 'qwen3-triton-client[numpy]'"
            raise ImportError(msg) from error
        flat = np.frombuffer(b"".join(self.vectors), dtype=np.float32)
        return flat.reshape(self.count, self.dimensions)
