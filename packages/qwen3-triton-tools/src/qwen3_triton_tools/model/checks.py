"""What a check is: a question to a server, what came out, and what to do where it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from qwen3_triton_gateway.settings import MIN_DIMENSIONS

from .cards import Card
from .gateway_client import Answer, Float64Matrix, GatewayClient, ServedModel

Status: TypeAlias = Literal["pass", "fail", "skipped"]

# Two runs of one text. The same kernels give 1; others, which are chosen by a batch's shape, leave
# 1e-7 in float32 and up to 1e-3 in float16, bfloat16 and TF32. The mistakes looked for are beyond:
# 0.15 for a short text padded left and pooled as if right, 0.9 without the end token.
MIN_SAME_COSINE = 0.999


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one question brought; `cause` and `remedy` are filled where it failed."""

    status: Status
    measured: str
    allowed: str = ""
    cause: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A line of the report."""

    name: str
    outcome: Outcome


@dataclass(slots=True)
class Probe:
    """The server, what it says of itself, the card that applies, and what was asked already."""

    client: GatewayClient
    served: ServedModel
    card: Card | None
    _alone: dict[str, Float64Matrix] = field(default_factory=dict[str, Float64Matrix])

    def alone(self, texts: Sequence[str]) -> Float64Matrix:
        """Embed each text in a request of its own, float64 `(n, dimensions)`; asked once."""
        for text in texts:
            if text not in self._alone:
                self._alone[text] = self.client.embed([text]).vectors
        return np.concatenate([self._alone[text] for text in texts])

    def together(self, texts: Sequence[str], *, shorter_by: int = 0) -> Answer:
        """Embed texts in one request, with a few dimensions fewer where that is wanted.

        Vectors of other dimensions are other entries of a server's cache: so they are computed, in
        this request's batch, and not what another request left there.
        """
        served = self.served.dimensions
        if not shorter_by or served is None or served - shorter_by < MIN_DIMENSIONS:
            return self.client.embed(texts)
        return self.client.embed(texts, dimensions=served - shorter_by)


Question: TypeAlias = Callable[[Probe], Outcome]


def passed(measured: str, allowed: str) -> Outcome:
    return Outcome("pass", measured, allowed)


def skipped(reason: str) -> Outcome:
    return Outcome("skipped", reason)


def failed(measured: str, allowed: str, *, cause: str, remedy: str) -> Outcome:
    return Outcome("fail", measured, allowed, cause, remedy)


def shown(text: str) -> str:
    """Quote the beginning of a text."""
    length = 32
    return repr(text if len(text) <= length else text[: length - 1] + "…")
