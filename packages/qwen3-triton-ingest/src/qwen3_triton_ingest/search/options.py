"""What is asked of a search, checked once. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict

from .filters import Filter

__all__ = ["MODES", "SearchKeywords", "SearchMode", "SearchOptions"]

SearchMode: TypeAlias = Literal["vector", "text", "hybrid"]
MODES: tuple[SearchMode, ...] = ("vector", "text", "hybrid")

MAX_EF_SEARCH = 1000  # of pgvector
MAX_ROWS = 10_000
_LEAST_EF_SEARCH = (
    100  # pgvector's default of 40 costs recall and saves a fraction of a millisecond
)
_OVERSAMPLING = 4
_LEAST_CANDIDATES = {"vector": 40, "text": 0, "hybrid": 100}


class SearchKeywords(TypedDict, total=False):
    """Name the options of a search, as keyword arguments."""

    mode: SearchMode
    k: int
    filter: Filter | None
    candidates: int | None
    weights: tuple[float, float]
    ef_search: int | None
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Say what is asked of a search.

    Raises:
        ValueError: An option is out of range.
    """

    mode: SearchMode = "hybrid"
    """By meaning, by words, or by both, fused by rank."""
    k: int = 10
    """Rows to return."""
    filter: Filter | None = field(default=None, repr=False)
    """Of the metadata; see `compile_filter`."""
    candidates: int | None = None
    """Rows that each arm finds before they are ranked anew; None: 4 x k and at least 100, or 40
    where there is one arm."""
    weights: tuple[float, float] = (1.0, 1.0)
    """Of the vector's rank and the words', for `hybrid`."""
    ef_search: int | None = None
    """How far an HNSW index looks, 1 to 1000; None: at the candidates, and at least at 100."""
    exact: bool = False
    """Whether every row is compared, without an index on the vectors."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            msg = f"`mode` is {self.mode!r}; allowed are {', '.join(MODES)}"
            raise ValueError(msg)
        _check_range("k", self.k, 1, MAX_ROWS)
        if self.candidates is not None:
            _check_range("candidates", self.candidates, self.k, 10 * MAX_ROWS)
        if self.ef_search is not None:
            _check_range("ef_search", self.ef_search, 1, MAX_EF_SEARCH)
        vector, *words = self.weights  # checked, for users without a type checker
        if len(words) != 1 or min(vector, *words) < 0 or not 0 < vector + words[0] < math.inf:
            msg = (
                f"`weights` is {self.weights!r}; allowed are two numbers, of the vector and of the "
                "words, not below 0 and not both 0"
            )
            raise ValueError(msg)

    @property
    def arm_rows(self) -> int:
        """Return how many rows each arm finds."""
        if self.candidates is not None:
            return self.candidates
        return max(_OVERSAMPLING * self.k, _LEAST_CANDIDATES[self.mode])

    @property
    def search_width(self) -> int:
        """Return the value of `hnsw.ef_search`."""
        if self.ef_search is not None:
            return self.ef_search
        return min(MAX_EF_SEARCH, max(_LEAST_EF_SEARCH, self.arm_rows))


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        msg = f"`{name}` is {value!r}; allowed are {low} to {high}"
        raise ValueError(msg)
