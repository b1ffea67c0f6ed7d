"""The options of a search, and its hits. No I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from ..config import documented, option, option_of
from ..documents import Metadata
from ..layouts import Table
from .filters import Filter

SearchMode: TypeAlias = Literal["vector", "text", "hybrid"]
MODES: tuple[SearchMode, ...] = get_args(SearchMode)

MAX_EF_SEARCH = 1000  # pgvector's limit
MAX_ROWS = 10_000
# What is usually reranked. It is one request to the gateway.
_LEAST_FETCHED = 50
# pgvector's default of 40 costs recall, and saves a fraction of a millisecond.
_LEAST_EF_SEARCH = 100
_OVERSAMPLING = 4
_LEAST_CANDIDATES = {"vector": 40, "text": 0, "hybrid": 100}


class SearchKeywords(TypedDict, total=False):
    """The fields of `SearchOptions` as keyword arguments."""

    mode: SearchMode
    k: int
    filter: Filter | None
    candidates: int | None
    weights: tuple[float, float]
    ef_search: int | None
    exact: bool
    truncate: bool
    rerank: bool
    fetch_k: int | None
    rerank_instruction: str | None


@documented
@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """The options of a search.

    Raises:
        ValueError: An option is out of range.
    """

    mode: SearchMode = option(
        "hybrid",
        "Search by vector, by text, or by both with their ranks fused. `text` needs no gateway, "
        "unless its hits are reranked.",
    )
    k: int = option(10, "Chunks to return.", flag="-k, --k", minimum=1, maximum=MAX_ROWS)
    filter: Filter | None = field(default=None, repr=False)  # on the metadata: `compile_filter`
    candidates: int | None = option(
        None,
        "Rows that each of the two searches finds before their ranks are fused. Default: 4 x what "
        "is returned or reranked, at least 100, or 40 for a vector search alone.",
        minimum=1,
        maximum=10 * MAX_ROWS,
    )
    weights: tuple[float, float] = option(
        (1.0, 1.0), "Weights of the vector and the text rank in hybrid mode.", metavar="VECTOR TEXT"
    )
    ef_search: int | None = option(
        None,
        "Search width of the HNSW index. Default: the number of candidates, at least 100.",
        minimum=1,
        maximum=MAX_EF_SEARCH,
    )
    exact: bool = option(False, "Compare every row instead of using the vector index.")
    truncate: bool = option(
        True,
        "Refuse a question that is too long for the model, instead of truncating it.",
        flag="--no-truncate",
        is_inverted=True,
    )
    rerank: bool = option(
        False,
        "Score what the search finds with the gateway's reranker, and return the best by that "
        "score.",
    )
    fetch_k: int | None = option(
        None,
        "Hits of the search that are reranked. Default: 4 x k, at least 50.",
        minimum=1,
        maximum=MAX_ROWS,
    )
    rerank_instruction: str | None = option(
        None,
        "What makes a chunk relevant, as one English sentence for the reranker. Default: the "
        "gateway's.",
        metavar="TEXT",
    )

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            msg = f"`mode` must be one of {', '.join(MODES)}, not {self.mode!r}."
            raise ValueError(msg)
        _check_range("k", self.k)
        _check_range("fetch_k", self.fetch_k, low=self.k if self.rerank else 1)
        _check_range("candidates", self.candidates, low=self._least_rows)
        _check_range("ef_search", self.ef_search)
        vector, *text = self.weights  # checked for users without a type checker
        if len(text) != 1 or min(vector, *text) < 0 or not 0 < vector + text[0] < math.inf:
            msg = (
                "`weights` must be two numbers, for vector and text, not negative and not both 0, "
                f"not {self.weights!r}."
            )
            raise ValueError(msg)

    @property
    def rows(self) -> int:
        """How many rows the search finds: the hits, or what is reranked."""
        if not self.rerank or self.fetch_k is not None:
            return self._least_rows
        fetched = max(_OVERSAMPLING * self.k, _LEAST_FETCHED)
        return min(fetched, self.candidates or MAX_ROWS, MAX_ROWS)

    @property
    def _least_rows(self) -> int:
        return self.fetch_k if self.rerank and self.fetch_k is not None else self.k

    @property
    def arm_rows(self) -> int:
        """How many rows each arm finds."""
        if self.candidates is not None:
            return self.candidates
        return max(_OVERSAMPLING * self.rows, _LEAST_CANDIDATES[self.mode])

    @property
    def search_width(self) -> int:
        """The value of `hnsw.ef_search`."""
        if self.ef_search is not None:
            return self.ef_search
        return min(MAX_EF_SEARCH, max(_LEAST_EF_SEARCH, self.arm_rows))


def _check_range(name: str, value: int | None, *, low: int = 1) -> None:
    high = option_of(SearchOptions, name).maximum
    if value is not None and high is not None and not low <= value <= high:
        msg = f"`{name}` must be {low} to {high}, not {value!r}."
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found. Hits are ordered by `rerank_score` if there is one.

    Attributes:
        id: Of the chunk; for LlamaIndex, of the node.
        doc_id: Of its document; None if the row does not say.
        seq: Position in the document, from 0.
        text: The chunk.
        metadata: Of the document, without what the layout itself stores there.
        score: Higher is better: cosine similarity, text score, or the sum of
            `weight / (60 + rank)`, the weight of the text rank times the square of
            `text_coverage`.
        distance: Cosine distance, also of a chunk that only the text search found; None in mode
            `text`.
        vector_rank: Rank by vector, from 1.
        text_rank: Rank by text, from 1.
        text_score: Of the text backend; scores of different backends are not comparable.
        text_coverage: Part of the question that the chunk has, from 0 to 1: the sum of its words'
            weights, which are those of BM25, over that of all. Always 1 with ParadeDB.
        stored_metadata: Everything in the row's metadata column.
        rerank_score: How relevant the reranker finds it, from 0 to 1; 0 for a blank text, which
            comes last. None without reranking.
        search_rank: Rank in the search, from 1, before reranking; None without it.
        rerank_truncated: Whether the reranker read only the beginning of the text.
    """

    id: str
    doc_id: str | None
    seq: int | None
    text: str = field(repr=False)  # texts are never logged
    metadata: Metadata = field(repr=False)
    score: float
    distance: float | None
    vector_rank: int | None
    text_rank: int | None
    text_score: float | None
    text_coverage: float | None
    stored_metadata: Metadata = field(repr=False, compare=False)
    rerank_score: float | None = None
    search_rank: int | None = None
    rerank_truncated: bool = False

    @property
    def similarity(self) -> float | None:
        """Cosine similarity; None if there is no distance."""
        return None if self.distance is None else 1 - self.distance


def read_hits(table: Table, rows: Sequence[Sequence[Any]]) -> list[Hit]:
    """Return the hits in the rows of `search_statement`."""
    return [_hit(table, row) for row in rows]


def _hit(table: Table, row: Sequence[Any]) -> Hit:
    chunk_id, doc_id, seq, text, metadata, *ranks, _ = row
    stored: dict[str, Any] = json.loads(metadata) if metadata else {}
    place = int(seq) if seq is not None and seq.isdecimal() else None
    own = set(table.layout.own_metadata_keys)
    if place is None:
        own.discard("seq")  # another writer's, with another meaning
    return Hit(
        chunk_id,
        doc_id,
        place,
        text or "",
        {key: value for key, value in stored.items() if key not in own},
        *ranks,
        stored_metadata=stored,
    )
