"""Checks that need no knowledge of the model: what holds for the vectors of any of the family."""

from __future__ import annotations

import numpy as np

from qwen3_triton_gateway.pooling import MIN_NORM
from qwen3_triton_gateway.settings import MIN_DIMENSIONS

from .checks import MIN_SAME_COSINE, Outcome, Probe, failed, passed, shown
from .gateway_client import Float64Matrix, RefusedError, cosine, cosines, unit_rows
from .golden import OVERFLOWING_TEXTS

# CONTRACT of `POST /embed`, and what float32 leaves of a unit vector.
MAX_NORM_ERROR = 1e-5
DEFAULT_DIMENSIONS = 1024
# Two vectors of a head that is scaled by itself differ by rounding only.
MAX_HEAD_ERROR = 1e-3

_LONG = "The river carried sand and clay to the sea for thousands of years, grain by grain. "
# A short text between long ones, since a wrong padding changes the short ones.
MIXED_LENGTHS = (
    "Sediments. " + _LONG * 8,
    "tea",
    "Deltas. " + _LONG * 6,
    "It rained all day.",
    "A sentence of middling length about the weather in the mountains.",
    "Estuaries. " + _LONG * 3,
    "42",
)
SAME = f"cosine >= {MIN_SAME_COSINE}"


def check_norm(probe: Probe) -> Outcome:
    """Every vector has norm 1."""
    vectors = probe.together(MIXED_LENGTHS, shorter_by=1).vectors
    error = np.abs(np.linalg.norm(vectors, axis=1) - 1)
    measured = f"norms within {np.max(error):.1e} of 1"
    allowed = f"within {MAX_NORM_ERROR:.0e} of 1"
    if np.max(error) <= MAX_NORM_ERROR:
        return passed(measured, allowed)
    norms = np.linalg.norm(vectors, axis=1)
    return failed(
        f"norms from {np.min(norms):.4g} to {np.max(norms):.4g}",
        allowed,
        cause="the vectors are not normalized, or are cut to their dimensions afterwards",
        remedy="normalize to length 1 as the last step: pool, cut, then normalize",
    )


def check_dimensions(probe: Probe) -> Outcome:
    """A vector is as long as is said, and a shorter one is the head of the longer (Matryoshka)."""
    expected = probe.served.dimensions or DEFAULT_DIMENSIONS
    text = MIXED_LENGTHS[4]
    full = probe.alone([text])
    allowed = f"{expected}; a shorter one is the head, scaled to norm 1"
    if full.shape[1] != expected:
        return failed(
            f"{full.shape[1]} dimensions",
            allowed,
            cause="vectors are not cut to the dimensions that the server names",
            remedy="set EMBED_OUTPUT_DIM, and pool, cut and normalize in this order",
        )
    short = max(MIN_DIMENSIONS, expected // 4)
    if short >= expected:
        return passed(f"{expected}; too few to cut", allowed)
    head = unit_rows(full[:, :short])
    cut = probe.client.embed([text], dimensions=short).vectors
    if cut.shape != head.shape:
        return failed(
            f"{cut.shape[1]} dimensions where {short} were asked for",
            allowed,
            cause="the server ignores `dimensions`",
            remedy="cut the pooled vector to `dimensions` before it is normalized",
        )
    error = float(np.max(np.abs(cut - head)))
    measured = f"{expected}; {short} differ from the head by {error:.1e}"
    if error <= MAX_HEAD_ERROR:
        return passed(measured, allowed)
    return failed(
        measured,
        allowed,
        cause="a shorter vector is no head of the longer, or is not scaled again after the cut",
        remedy="pool, keep the first `dimensions` components, then normalize",
    )


def check_batch_invariance(probe: Probe) -> Outcome:
    """A text has the same vector alone and among longer ones, whatever their order."""
    alone = probe.alone(MIXED_LENGTHS)
    backwards = MIXED_LENGTHS[::-1]
    # The best over all rows, so that a wrong order is another check's finding.
    best = np.minimum(
        _head_cosines(alone, probe.together(MIXED_LENGTHS, shorter_by=2).vectors).max(axis=1),
        _head_cosines(alone, probe.together(backwards, shorter_by=3).vectors).max(axis=1),
    )
    worst = int(np.argmin(best))
    measured = f"cosine {best[worst]:.6f} at worst, {shown(MIXED_LENGTHS[worst])}"
    if best[worst] >= MIN_SAME_COSINE:
        return passed(measured, SAME)
    return failed(
        measured,
        SAME,
        cause=(
            "padding changes the vector: padded left and pooled by the index of right padding, "
            "positions not counted from the mask, or a mask that is not heeded "
            "(dynamically quantized int8 models depend on their batch by themselves)"
        ),
        remedy="pad right and pool the last position whose attention_mask is 1",
    )


def check_order(probe: Probe) -> Outcome:
    """The i-th vector belongs to the i-th text, in whatever order texts come."""
    alone = probe.alone(MIXED_LENGTHS)
    rotated = [*range(3, len(MIXED_LENGTHS)), *range(3)]
    misplaced = 0
    for order in (range(len(MIXED_LENGTHS)), rotated):
        texts = [MIXED_LENGTHS[index] for index in order]
        table = cosines(probe.together(texts).vectors, alone)
        nearest = table.argmax(axis=1)
        sure = table.max(axis=1) >= MIN_SAME_COSINE
        misplaced += int(np.sum(sure & (nearest != np.array(list(order)))))
    total = 2 * len(MIXED_LENGTHS)
    allowed = "n texts in, n vectors out, each at its text's place"
    if misplaced == 0:
        return passed(f"{total} of {total} vectors at their place", allowed)
    return failed(
        f"{misplaced} of {total} vectors at another text's place",
        allowed,
        cause="vectors come back in another order than the texts, as sorted by length or finished",
        remedy="put the vectors back into the order of the texts after batching",
    )


def check_duplicates(probe: Probe) -> Outcome:
    """Equal texts of a request get equal vectors."""
    twice = probe.together([*MIXED_LENGTHS[:4], MIXED_LENGTHS[1], MIXED_LENGTHS[0]]).vectors
    pairs = min(cosine(twice[1:2], twice[4:5]), cosine(twice[0:1], twice[5:6]))
    return _same(
        pairs,
        cause="two equal texts of one request get different vectors",
        remedy="check the order of the vectors, and what the row of a batch changes",
    )


def check_determinism(probe: Probe) -> Outcome:
    """The same request gives the same vectors again."""
    first, second = (probe.together(MIXED_LENGTHS[3:]).vectors for _ in range(2))
    return _same(
        float(cosines(first, second).diagonal().min()),
        cause="a repeated request gives other vectors: replicas with different models, or dropout",
        remedy="compare the models and their versions on every replica",
    )


def check_overflow(probe: Probe) -> Outcome:
    """Texts on which float16 is known to overflow have finite vectors with a direction."""
    problems = [
        f"{shown(text)} {problem}"
        for text in OVERFLOWING_TEXTS
        if (problem := _overflow_of(probe, text))
    ]
    allowed = "a finite vector for each"
    if not problems:
        return passed(f"{len(OVERFLOWING_TEXTS)} of {len(OVERFLOWING_TEXTS)} finite", allowed)
    more = f" and {len(problems) - 1} more" if problems[1:] else ""
    return failed(
        problems[0] + more,
        allowed,
        cause="the model overflows float16 on these texts (known of the 8B model)",
        remedy=(
            "serve a float32 or bfloat16 export; rows of zeros on a GPU are mended by a newer ONNX "
            "Runtime, or its option enable_skip_layer_norm_strict_mode=1 (onnxruntime issue 29034)"
        ),
    )


def _overflow_of(probe: Probe, text: str) -> str:
    """Say what is wrong with a text's vector, if anything."""
    try:
        vector = probe.alone([text])
    except RefusedError as error:
        return f"is refused, {error}"
    return _no_direction(vector)


def _no_direction(vector: Float64Matrix) -> str:
    if not np.isfinite(vector).all():
        return "has a component that is not finite"
    return "has a vector of zeros" if np.linalg.norm(vector) < MIN_NORM else ""


def _head_cosines(left: Float64Matrix, right: Float64Matrix) -> Float64Matrix:
    """Compare rows over the dimensions that both have."""
    shared = min(left.shape[1], right.shape[1])
    return cosines(left[:, :shared], right[:, :shared])


def _same(value: float, *, cause: str, remedy: str) -> Outcome:
    measured = f"cosine {value:.6f} at worst"
    if value >= MIN_SAME_COSINE:
        return passed(measured, SAME)
    return failed(measured, SAME, cause=cause, remedy=remedy)
