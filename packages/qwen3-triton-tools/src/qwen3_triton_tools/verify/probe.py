"""What the checks of a served model share: the server to ask, comparisons, and findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from qwen3_triton_gateway.settings import MIN_DIMENSIONS

from ..findings import Finding
from .cards import Card
from .gateway_client import Answer, Float64Matrix, GatewayClient, ServedModel

# Two runs of one text. The same kernels give 1; others, which are chosen by a batch's shape, leave
# 1e-7 in float32 and up to 1e-3 in float16, bfloat16 and TF32. The mistakes to be found are beyond:
# 0.15 for a short text padded left and pooled as if right, 0.9 without the end token.
MIN_SAME_COSINE = 0.999
SAME = f"cosine >= {MIN_SAME_COSINE}"


@dataclass(slots=True)
class Probe:
    """A server, what it reports about itself, and the card that applies to its model."""

    client: GatewayClient
    served: ServedModel
    card: Card | None
    _alone: dict[str, Float64Matrix] = field(default_factory=dict[str, Float64Matrix])

    @property
    def no_card_reason(self) -> str:
        """Why there are no golden values to compare with."""
        if self.card is not None:
            return self.card.missing
        return f"no card for {self.served.model_id or 'a model without a name'}"

    def embed_alone(self, texts: Sequence[str]) -> Float64Matrix:
        """Embed each text in a request of its own, float64 `(n, dimensions)`; results are kept."""
        for text in texts:
            if text not in self._alone:
                self._alone[text] = self.client.embed([text]).vectors
        return np.concatenate([self._alone[text] for text in texts])

    def embed_together(self, texts: Sequence[str], *, shorter_by: int = 0) -> Answer:
        """Embed texts in one request, with fewer dimensions if `shorter_by` is given.

        Vectors of other dimensions are other entries of a server's cache: so they are computed in
        the batch of this request, and not taken from an earlier one.
        """
        dimensions = self.served.dimensions
        if not shorter_by or dimensions is None or dimensions - shorter_by < MIN_DIMENSIONS:
            return self.client.embed(texts)
        return self.client.embed(texts, dimensions=dimensions - shorter_by)


# The name of the finding is that of the check in `CHECKS`.
Check: TypeAlias = Callable[[Probe], Finding]


def passed(measured: str, expected: str) -> Finding:
    return Finding("", "ok", measured, expected)


def failed(measured: str, expected: str, *, cause: str, remedy: str) -> Finding:
    return Finding("", "error", measured, expected, cause, remedy)


def skipped(reason: str) -> Finding:
    return Finding("", "skipped", reason)


def compare(value: float, *, cause: str, remedy: str) -> Finding:
    """Return whether the lowest cosine of two runs is that of equal vectors."""
    measured = f"lowest cosine {value:.6f}"
    if value >= MIN_SAME_COSINE:
        return passed(measured, SAME)
    return failed(measured, SAME, cause=cause, remedy=remedy)


def quote_start(text: str) -> str:
    """Quote the beginning of a text."""
    length = 32
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def cosines(left: Float64Matrix, right: Float64Matrix) -> Float64Matrix:
    """Compute the cosine of each row of `left` and each of `right`; 0 for rows of zeros."""
    return np.nan_to_num(unit_rows(left) @ unit_rows(right).T)


def cosine(left: Float64Matrix, right: Float64Matrix) -> float:
    """Compute the cosine of the first rows of two matrices."""
    return float(cosines(left[:1], right[:1])[0, 0])


def unit_rows(vectors: Float64Matrix) -> Float64Matrix:
    """Scale rows to norm 1; components that are not finite count as 0, rows of zeros are kept."""
    finite = np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(finite, axis=1, keepdims=True)
    return finite / np.where(norms > 0, norms, 1.0)
