"""What a reranker loses against the float32 graph: scores, and what comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..findings import Finding
from ..model.pairs import GraphScorer
from .loss import corpus_documents, judge
from .rerank_probe import RerankCheck, RerankProbe

# Documents per question: its own, and those that follow, which share its subject.
CANDIDATES = 5
# A search shows scores with two digits, and thresholds on them are set by hand.
MAX_DIFFERENCE = 0.05
# Share of pairs of candidates. Which one is first says less: it is one number per query, and a near
# tie of the best two changes it.
MIN_SAME_ORDER = 0.95
# Pairs that run together; each has the prompt's hundred tokens too.
BATCH_PAIRS = 8
# For `verify`: this many take a large model a minute on a CPU.
CHECKED_PAIRS = 100


@dataclass(frozen=True, slots=True)
class RerankLoss:
    """The difference of two models' scores of the same pairs.

    Attributes:
        pairs: How many were compared.
        largest_difference: Of all scores, which are between 0 and 1.
        mean_difference: Of all scores.
        same_first: The share of queries whose best document is the same.
        same_order: The share of two documents of a query whose order is the same.
    """

    pairs: int
    largest_difference: float
    mean_difference: float
    same_first: float
    same_order: float

    @property
    def is_safe(self) -> bool:
        """Whether searches have the same results, but for a few near ties."""
        return self.largest_difference <= MAX_DIFFERENCE and self.same_order >= MIN_SAME_ORDER

    def __str__(self) -> str:
        return (
            f"scores differ by {self.largest_difference:.4f} at most, {self.mean_difference:.4f} "
            f"in the mean; the same document is first for {self.same_first:.1%} of queries, and "
            f"{self.same_order:.1%} of two documents have the same order"
        )


def pairs_of(count: int) -> list[tuple[str, str]]:
    """Return about this many pairs of a question with its document and with others."""
    documents = corpus_documents()
    return [
        (document["question"], documents[(index + step) % len(documents)]["text"])
        for index, document in enumerate(documents[: count // CANDIDATES])
        for step in range(CANDIDATES)
    ]


def score_pairs(scorer: GraphScorer, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Score pairs, those of similar length together.

    Raises:
        ModelError: The model refuses a batch.
    """
    rows = [scorer.pairs.encode(query, document) for query, document in pairs]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    scores = [0.0] * len(rows)
    for start in range(0, len(order), BATCH_PAIRS):
        group = order[start : start + BATCH_PAIRS]
        for index, score in zip(group, scorer.score([rows[i] for i in group]), strict=True):
            scores[index] = score
    return scores


def compare_scores(reference: Sequence[float], scores: Sequence[float]) -> RerankLoss:
    """Compare the scores that two models give the pairs of `pairs_of`."""
    differences = np.abs(np.array(reference) - np.array(scores))
    lists = [np.array(s).reshape(-1, CANDIDATES) for s in (reference, scores)]
    first, other = (candidates.argmax(axis=1) for candidates in lists)
    left, right = np.triu_indices(CANDIDATES, k=1)
    order, changed = (np.sign(candidates[:, left] - candidates[:, right]) for candidates in lists)
    return RerankLoss(
        pairs=len(differences),
        largest_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        same_first=float((first == other).mean()),
        same_order=float((order == changed).mean()),
    )


def check_loss(probe: RerankProbe) -> Finding:
    """Check that pairs have nearly the scores of the reference model."""
    assert probe.graph is not None, "without one, this check is not run"
    pairs = pairs_of(CHECKED_PAIRS)
    scores: list[float] = []
    for start in range(0, len(pairs), CANDIDATES):
        group = pairs[start : start + CANDIDATES]
        scores += probe.server.score(group[0][0], [document for _, document in group])
    loss = compare_scores(score_pairs(probe.graph, pairs), scores)
    allowed = f"scores within {MAX_DIFFERENCE}, the same order >= {MIN_SAME_ORDER:.0%}"
    return judge(str(loss), allowed, is_safe=loss.is_safe)


CHECKS: dict[str, RerankCheck] = {"loss": check_loss}
