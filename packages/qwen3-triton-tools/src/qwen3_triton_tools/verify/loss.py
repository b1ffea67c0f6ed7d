"""What a served model loses against the float32 graph: cosines, and neighbors that change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..findings import Finding
from .cards import Float64Matrix
from .probe import Check, GatewayClient, Probe, cosines, failed, passed, unit_rows

# The documents of the demo: a paragraph each, on a dozen subjects.
CORPUS = Path(__file__).with_name("documents.jsonl")
NEIGHBORS = 10
REQUEST_TEXTS = 16
# A neighbor of ten changes where its distance and the next one's are within rounding: in bfloat16,
# one of a hundred. Beyond one of twenty, people see other results.
MIN_OVERLAP = 0.95
# The lowest of some hundred texts; bfloat16 has 0.9999.
MIN_COSINE = 0.99


@dataclass(frozen=True, slots=True)
class Loss:
    """The difference of two models' vectors of the same texts.

    Attributes:
        texts: How many were compared.
        lowest_cosine: Of all texts.
        mean_cosine: Of all texts.
        overlap: The mean share of a text's ten nearest neighbors that are the same.
    """

    texts: int
    lowest_cosine: float
    mean_cosine: float
    overlap: float

    @property
    def is_safe(self) -> bool:
        """Whether searches have the same results, but for a few near ties."""
        return self.lowest_cosine >= MIN_COSINE and self.overlap >= MIN_OVERLAP

    def __str__(self) -> str:
        return (
            f"cosine {self.lowest_cosine:.5f} at least, {self.mean_cosine:.5f} in the mean; "
            f"{self.overlap:.1%} of {NEIGHBORS} neighbors"
        )


def corpus() -> list[str]:
    """Return the texts to compare with."""
    return [document["text"] for document in corpus_documents()]


def corpus_documents() -> list[dict[str, str]]:
    """Return the bundled documents: each has a `text`, and a `question` that it answers."""
    return [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]


def embed_corpus(client: GatewayClient, texts: Sequence[str]) -> Float64Matrix:
    """Embed texts through a gateway, some per request.

    Raises:
        HttpError: It does not answer.
    """
    parts = [texts[i : i + REQUEST_TEXTS] for i in range(0, len(texts), REQUEST_TEXTS)]
    return np.concatenate([client.embed(part).vectors for part in parts])


def compare(reference: Float64Matrix, vectors: Float64Matrix) -> Loss:
    """Compare the vectors of the same texts by two models."""
    agreement = cosines(reference, vectors).diagonal()
    pairs = zip(_neighbors(reference), _neighbors(vectors), strict=True)
    shared = [len(left & right) / len(left) for left, right in pairs]
    return Loss(
        texts=len(reference),
        lowest_cosine=float(agreement.min()),
        mean_cosine=float(agreement.mean()),
        overlap=float(np.mean(shared)),
    )


def check_loss(probe: Probe) -> Finding:
    """Check that texts have nearly the vectors and the neighbors of the reference model."""
    assert probe.reference is not None, "without one, this check is not run"
    texts = corpus()
    loss = compare(embed_corpus(probe.reference, texts), embed_corpus(probe.client, texts))
    allowed = f"cosine >= {MIN_COSINE}, neighbors >= {MIN_OVERLAP:.0%}"
    return judge(str(loss), allowed, is_safe=loss.is_safe)


def judge(measured: str, allowed: str, *, is_safe: bool) -> Finding:
    """Report a loss, and what to do if it is not safe."""
    if is_safe:
        return passed(measured, allowed)
    return failed(
        measured,
        allowed,
        cause="The weights differ, or the precision is too low for this model.",
        remedy="Serve it in bfloat16 or float32 (EMBED_PRECISION), or not quantized.",
    )


def _neighbors(vectors: Float64Matrix) -> list[set[int]]:
    """Return the nearest texts of each, itself excluded."""
    units = unit_rows(vectors)
    similarity = units @ units.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1)[:, : min(NEIGHBORS, len(units) - 1)]
    return [set(row) for row in nearest.tolist()]


CHECKS: dict[str, Check] = {"loss": check_loss}
