"""Reranking what a search found: what the reranker reads, and the order of its scores. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from qwen3_triton_client import EmbeddingError, ModelNotFoundError, RerankResult

from ..config import Context
from ..places import HEADINGS, context_of, with_context
from .options import Hit, SearchOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rerank:
    """A request for the scores of texts, as `RerankResult`; the ends of long ones are cut."""

    query: str = field(repr=False)
    texts: Sequence[str] = field(repr=False)
    instruction: str | None


def rerank(
    question: str, hits: Sequence[Hit], options: SearchOptions, context: Context
) -> Generator[Rerank, RerankResult, list[Hit]]:
    """Yield the request for scores, and return the best hits by them.

    Hits without text come last with a score of 0, in the order of the search.

    Args:
        question: What the hits are scored against.
        hits: All that the search found, best first.
        options: How many are returned, and what makes them relevant.
        context: What preceded the table's chunks when they were embedded.

    Raises:
        EmbeddingError: The gateway returns no scores.
    """
    hits = [replace(hit, search_rank=place) for place, hit in enumerate(hits, 1)]
    scored = [hit for hit in hits if hit.text.strip()]
    blank = [replace(hit, rerank_score=0.0) for hit in hits if not hit.text.strip()]
    texts = [text_to_rerank(hit, context) for hit in scored]
    try:
        result = yield Rerank(question, texts, options.rerank_instruction)
    except EmbeddingError as error:
        _explain(error, scored)
        raise
    truncated = set(result.truncated)
    if truncated:
        _log.warning(
            "The reranker read only the beginning of %d of %d chunks, which are too long for it. "
            "Raise RERANK_MAX_LENGTH, or load with smaller --chunk-tokens.",
            len(truncated),
            len(scored),
        )
    ranked = [
        replace(
            scored[each.index],
            rerank_score=each.score,
            rerank_truncated=each.index in truncated,
        )
        for each in result.documents
    ]
    return [*ranked, *blank][: options.k]


def text_to_rerank(hit: Hit, context: Context) -> str:
    """Return what the reranker reads of a hit: what was embedded, its headings included."""
    stored: Any = hit.metadata.get(HEADINGS)
    if context == "none" or not isinstance(stored, list):
        return hit.text
    headings = [each for each in cast("list[Any]", stored) if isinstance(each, str)]
    return with_context(context_of(headings), hit.text)


def _explain(error: EmbeddingError, scored: Sequence[Hit]) -> None:
    """Add to an error what only the search knows."""
    if isinstance(error, ModelNotFoundError):
        error.message += " A search without `rerank` needs no reranker."
    elif error.positions and len(error.failed_indices) == 1:  # about one text, not about all
        hit = scored[error.failed_indices[0]]
        error.message += f" That is chunk {hit.id} of the document {hit.doc_id!r}."
