"""A reranker under test: its requests, and what the checks of its scores share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import InvalidAnswerError
from ..findings import Finding
from ..model.pairs import GraphScorer, Tokens
from .cards import DOCUMENTS, QUERIES
from .probe import GatewayClient, failed, passed

# Two runs of one pair, of scores from 0 to 1: float16 kernels chosen by a batch's shape leave some
# thousandths where a score is near 0.5. The mistakes to be found move scores by tenths.
MAX_SAME_DIFFERENCE = 0.01
SAME = f"scores within {MAX_SAME_DIFFERENCE}"


class RerankClient:
    """A server of `POST /v1/rerank`, as Cohere, Jina and vLLM have it."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client

    def score(
        self, query: str, documents: Sequence[str], instruction: str | None = None
    ) -> list[float]:
        """Score documents, in their order.

        Raises:
            HttpError: The server does not answer, or not with a score for each document.
        """
        body: dict[str, Any] = {"query": query, "documents": list(documents)}
        if instruction is not None:
            body["instruction"] = instruction
        answer = self._client.call("/v1/rerank", body)
        try:
            by_index = {
                int(result["index"]): _number(result["relevance_score"])
                for result in answer["results"]
            }
            return [by_index[index] for index in range(len(documents))]
        except (KeyError, TypeError, ValueError):
            msg = (
                "POST /v1/rerank did not answer with `results`, an `index` and a "
                "`relevance_score` for each document."
            )
            raise InvalidAnswerError(msg) from None

    def score_cut(self, query: str, document: str, max_tokens: int) -> float:
        """Score a pair that is cut to `max_tokens`, by `POST /score`, which vLLM has too.

        Raises:
            HttpError: The server does not answer, or its answer has no score.
        """
        body = {"text_1": query, "text_2": document, "truncate_prompt_tokens": max_tokens}
        answer = self._client.call("/score", body)
        try:
            return _number(answer["data"][0]["score"])
        except (KeyError, IndexError, TypeError, ValueError):
            msg = "POST /score did not answer with `data`, and a `score` for the pair."
            raise InvalidAnswerError(msg) from None


@dataclass(slots=True)
class RerankProbe:
    """A server, and the graph that it should serve.

    Attributes:
        server: The server under test.
        graph: The same model in this process, to compare with; None if that is not at hand.
        max_length: Tokens of the longest pair that the server takes, None if that is not known.
        has_card: Whether the model should know the examples of Qwen3-Reranker's card.
    """

    server: RerankClient
    graph: GraphScorer | None = None
    max_length: int | None = None
    has_card: bool = True
    _alone: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])

    def alone(self, query: str, documents: Sequence[str]) -> list[float]:
        """Score each document in a request of its own; results are kept."""
        for document in documents:
            if (query, document) not in self._alone:
                [self._alone[query, document]] = self.server.score(query, [document])
        return [self._alone[query, document] for document in documents]

    def examples(self) -> list[float]:
        """Score the card's two queries, each with both of its documents."""
        return [score for query in QUERIES for score in self.alone(query, DOCUMENTS)]


# The name of the finding is that of the check in `CHECKS`.
RerankCheck: TypeAlias = Callable[[RerankProbe], Finding]
# How a prompt is written wrongly: its tokens for a query and a document.
Variant: TypeAlias = Callable[[str, str], Tokens]


def compare_scores(
    scores: Sequence[float], expected: Sequence[float], *, cause: str, remedy: str
) -> Finding:
    """Return whether two runs have the same scores."""
    difference = largest_difference(scores, expected)
    measured = f"largest difference {difference:.4f} of {len(scores)} scores"
    if difference <= MAX_SAME_DIFFERENCE:
        return passed(measured, SAME)
    return failed(measured, SAME, cause=cause, remedy=remedy)


def largest_difference(scores: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest difference, infinite where a score is not a number."""
    differences = [abs(s - e) for s, e in zip(scores, expected, strict=True)]
    return max((d if math.isfinite(d) else math.inf for d in differences), default=0.0)


def _number(value: object) -> float:
    """Return a number; None, which some servers write for NaN, becomes NaN."""
    return math.nan if value is None else float(str(value))
