"""Vectors, and what came with them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from .stats import ClientStats

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .errors import EmbeddingError

__all__ = ["EmbeddingResult", "Vector"]

Vector: TypeAlias = "array[float]"
"""One embedding: an `array.array` of type code `f` (float32), `dimensions` long, of norm 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResult:
    """Hold the vectors of one call, and what the gateway said about them."""

    count: int
    """Number of texts of the call."""
    completed: Mapping[int, Vector] = field(repr=False)  # asyncio writes results into its log
    """Vector by index of its text, for every text that has one."""
    failed: Mapping[int, EmbeddingError] = field(default_factory=dict[int, "EmbeddingError"])
    """Error by index of its text; never filled unless the call said `on_error="isolate"`."""
    dimensions: int
    """Length of every vector; 0 if no text was sent."""
    model: str
    """Name of the model that answered; empty if no text was sent."""
    fingerprint: str
    """Digest that names the embedding space. Compare vectors of equal fingerprints only."""
    prompt_tokens: int
    """Tokens that the model read, over all texts."""
    truncated: tuple[int, ...]
    """Indices of the texts that were cut to the model's maximum length, ascending."""
    stats: ClientStats = field(default_factory=ClientStats)
    """What the requests of this call did."""

    @property
    def vectors(self) -> list[Vector]:
        """Return one float32 array for each text, in the order of the texts.

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
