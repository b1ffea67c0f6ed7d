"""Checks of the vectors themselves, for any model of the family."""

from __future__ import annotations

import numpy as np

from qwen3_triton_gateway.pooling import MIN_NORM
from qwen3_triton_gateway.settings import MIN_DIMENSIONS

from ..errors import RefusedError
from ..findings import Finding
from .cards import OVERFLOWING_TEXTS, Float64Matrix
from .probe import (
    MIN_SAME_COSINE,
    SAME,
    Check,
    Probe,
    compare,
    cosine,
    cosines,
    failed,
    passed,
    quote_start,
    skipped,
    unit_rows,
)

# Promised by `POST /embed`: what float32 leaves of a unit vector.
MAX_NORM_ERROR = 1e-5
DEFAULT_DIMENSIONS = 1024
# The head of a vector, scaled on its own, differs by rounding only.
MAX_HEAD_ERROR = 1e-3

_LONG = "The river carried sand and clay to the sea for thousands of years, grain by grain. "
# Short texts between long ones, since wrong padding changes the short ones.
MIXED_LENGTHS = (
    "Sediments. " + _LONG * 8,
    "tea",
    "Deltas. " + _LONG * 6,
    "It rained all day.",
    "A sentence of middling length about the weather in the mountains.",
    "Estuaries. " + _LONG * 3,
    "42",
)


SAME_START = (
    "The river carried sand and clay to the sea for thousands of years.",
    "The invoice from May is still unpaid",
    "The square root of two cannot be written as a fraction, as was known early on!",
)


def check_hidden_size(probe: Probe) -> Finding:
    """Check that the served model is as wide as the one that its name promises."""
    if probe.card is None:
        return skipped(probe.no_card_reason)
    size, expected = probe.served.hidden_size, probe.card.hidden_size
    if size is None:
        return skipped("the server does not report its hidden size")
    if size == expected:
        return passed(str(size), f"{expected}, by card {probe.card.name}")
    return failed(
        str(size),
        f"{expected}, by card {probe.card.name}",
        cause=f"{probe.served.model_id!r} is served from another model's file.",
        remedy="Correct EMBED_MODEL_ID, or serve the model that it names.",
    )


def check_norm(probe: Probe) -> Finding:
    """Check that every vector has norm 1."""
    vectors = probe.embed_together(MIXED_LENGTHS, shorter_by=1).vectors
    error = np.abs(np.linalg.norm(vectors, axis=1) - 1)
    measured = f"norms within {np.max(error):.1e} of 1"
    allowed = f"within {MAX_NORM_ERROR:.0e} of 1"
    if np.max(error) <= MAX_NORM_ERROR:
        return passed(measured, allowed)
    norms = np.linalg.norm(vectors, axis=1)
    return failed(
        f"norms from {np.min(norms):.4g} to {np.max(norms):.4g}",
        allowed,
        cause="The vectors are not normalized, or are cut after normalization.",
        remedy="Normalize to length 1 as the last step: pool, cut, then normalize.",
    )


def check_dimensions(probe: Probe) -> Finding:
    """Check that a vector has the reported dimensions, and a shorter one is its head."""
    expected = probe.served.dimensions or DEFAULT_DIMENSIONS
    text = MIXED_LENGTHS[4]
    full = probe.embed_alone([text])
    allowed = f"{expected}; a shorter one is the head, scaled to norm 1"
    if full.shape[1] != expected:
        return failed(
            f"{full.shape[1]} dimensions",
            allowed,
            cause="Vectors are not cut to the dimensions that the server reports.",
            remedy="Set EMBED_OUTPUT_DIM; pool, cut and normalize in this order.",
        )
    short = max(MIN_DIMENSIONS, expected // 4)
    if short >= expected:
        return passed(f"{expected}; too few to cut", allowed)
    head = unit_rows(full[:, :short])
    cut = probe.client.embed([text], dimensions=short).vectors
    if cut.shape != head.shape:
        return failed(
            f"{cut.shape[1]} dimensions where {short} were requested",
            allowed,
            cause="The server ignores `dimensions`.",
            remedy="Cut the pooled vector to `dimensions` before it is normalized.",
        )
    error = float(np.max(np.abs(cut - head)))
    measured = f"{expected}; {short} differ from the head by {error:.1e}"
    if error <= MAX_HEAD_ERROR:
        return passed(measured, allowed)
    return failed(
        measured,
        allowed,
        cause="A shorter vector is not the head of the longer, or not normalized after the cut.",
        remedy="Pool, keep the first `dimensions` components, then normalize.",
    )


def check_batch_invariance(probe: Probe) -> Finding:
    """Check that a text has the same vector alone and among longer ones, in any order."""
    alone = probe.embed_alone(MIXED_LENGTHS)
    backwards = MIXED_LENGTHS[::-1]
    # The best over all rows: a wrong order is for another check to find.
    best = np.minimum(
        _head_cosines(alone, probe.embed_together(MIXED_LENGTHS, shorter_by=2).vectors).max(axis=1),
        _head_cosines(alone, probe.embed_together(backwards, shorter_by=3).vectors).max(axis=1),
    )
    worst = int(np.argmin(best))
    measured = f"lowest cosine {best[worst]:.6f}, for {quote_start(MIXED_LENGTHS[worst])}"
    if best[worst] >= MIN_SAME_COSINE:
        return passed(measured, SAME)
    return failed(
        measured,
        SAME,
        cause=(
            "Padding changes the vector: texts are padded left and pooled as if right, positions "
            "do not follow the mask, or the mask is ignored. (Dynamically quantized int8 models "
            "always depend on their batch.)"
        ),
        remedy="Pad right, and pool the last position whose attention_mask is 1.",
    )


def check_pooling(probe: Probe) -> Finding:
    """Check that the vector depends on a text's end, and not on its first token only.

    From outside, a mean cannot be told from the last token's state, which depends on all tokens
    too; the gateway's own probe can, and reports it in `/info`.
    """
    vectors = probe.embed_alone(SAME_START)
    value = float(cosines(vectors[:1], vectors[1:]).max())
    measured = f"cosine {value:.6f} for texts with nothing but their first word in common"
    allowed = f"< {MIN_SAME_COSINE}"
    found = probe.served.pooling
    if value < MIN_SAME_COSINE and found in (None, "last_token"):
        return passed(f"{measured}; {found or 'not reported'}", allowed)
    if value < MIN_SAME_COSINE:
        return failed(
            f"the server pools {found!r}",
            "last_token",
            cause="The model does not pool the last token, or EMBED_POOLING says so.",
            remedy="Serve an export that does; `qwen3-triton model pool` adds it to one without.",
        )
    return failed(
        measured,
        allowed,
        cause="The first token is pooled, or every text has the same vector.",
        remedy="Pool the last position whose attention_mask is 1.",
    )


def check_order(probe: Probe) -> Finding:
    """Check that the i-th vector belongs to the i-th text, whatever their order."""
    alone = probe.embed_alone(MIXED_LENGTHS)
    rotated = [*range(3, len(MIXED_LENGTHS)), *range(3)]
    misplaced = 0
    for order in (range(len(MIXED_LENGTHS)), rotated):
        texts = [MIXED_LENGTHS[index] for index in order]
        table = cosines(probe.embed_together(texts).vectors, alone)
        nearest = table.argmax(axis=1)
        sure = table.max(axis=1) >= MIN_SAME_COSINE
        misplaced += int(np.sum(sure & (nearest != np.array(list(order)))))
    total = 2 * len(MIXED_LENGTHS)
    allowed = "n vectors for n texts, in their order"
    if misplaced == 0:
        return passed(f"{total} of {total} vectors in place", allowed)
    return failed(
        f"{misplaced} of {total} vectors in another text's place",
        allowed,
        cause="Vectors come back sorted by length, or in the order they were finished.",
        remedy="Restore the order of the texts after batching.",
    )


def check_duplicates(probe: Probe) -> Finding:
    """Check that equal texts in one request get equal vectors."""
    twice = probe.embed_together([*MIXED_LENGTHS[:4], MIXED_LENGTHS[1], MIXED_LENGTHS[0]]).vectors
    pairs = min(cosine(twice[1:2], twice[4:5]), cosine(twice[0:1], twice[5:6]))
    return compare(
        pairs,
        cause="Two equal texts in one request get different vectors.",
        remedy="Check the order of the vectors, and what depends on the row in the batch.",
    )


def check_determinism(probe: Probe) -> Finding:
    """Check that a repeated request gives the same vectors."""
    first, second = (probe.embed_together(MIXED_LENGTHS[3:]).vectors for _ in range(2))
    return compare(
        float(cosines(first, second).diagonal().min()),
        cause="A repeated request gives other vectors: replicas with different models, or dropout.",
        remedy="Compare the models and their versions on every replica.",
    )


def check_overflow(probe: Probe) -> Finding:
    """Check that texts known to overflow float16 have finite vectors with a direction."""
    problems = [
        f"{quote_start(text)} {problem}"
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
        cause="The model overflows float16 on these texts (known for the 8B model).",
        remedy=(
            "Serve a float32 or bfloat16 export. For rows of zeros on a GPU, update ONNX Runtime "
            "or set its option enable_skip_layer_norm_strict_mode=1 "
            "(microsoft/onnxruntime#29034)."
        ),
    )


def _overflow_of(probe: Probe, text: str) -> str:
    """Describe what is wrong with a text's vector, if anything."""
    try:
        vector = probe.embed_alone([text])
    except RefusedError as error:
        return f"is rejected, {error}"
    return _no_direction(vector)


def _no_direction(vector: Float64Matrix) -> str:
    if not np.isfinite(vector).all():
        return "has a component that is not finite"
    return "has a vector of zeros" if np.linalg.norm(vector) < MIN_NORM else ""


def _head_cosines(left: Float64Matrix, right: Float64Matrix) -> Float64Matrix:
    """Compute cosines over the dimensions that both have."""
    shared = min(left.shape[1], right.shape[1])
    return cosines(left[:, :shared], right[:, :shared])


CHECKS: dict[str, Check] = {
    "hidden size": check_hidden_size,
    "norm": check_norm,
    "dimensions": check_dimensions,
    "pooling": check_pooling,
    "order": check_order,
    "batch invariance": check_batch_invariance,
    "duplicates": check_duplicates,
    "determinism": check_determinism,
    "float16 overflow": check_overflow,
}
