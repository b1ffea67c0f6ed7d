"""Checks against published values of the same model."""

from __future__ import annotations

import numpy as np

from qwen3_triton_gateway.tokenization import END_TOKEN, format_inputs

from ..findings import Finding
from .cards import (
    DOCUMENTS,
    QUERIES,
    TEI_COSINE,
    TEI_HEAD,
    TEI_NEIGHBOR,
    TEI_TEXT,
    Float64Matrix,
    GoldenVectors,
)
from .probe import Check, Probe, cosines, failed, passed, skipped

# How far an engine in bfloat16 or float16 drifts from the cards: vLLM's README has [[0.7620,
# 0.1408], [0.1358, 0.6014]] for the 0.6B model, 0.0026 off its card. A wrong prompt, end token or
# padding moves scores by hundredths.
MAX_SCORE_ERROR = 3e-3
# Components of unit vectors: 6e-4 from float32 in float16, 3.7e-3 in bfloat16 (omlx pull request
# 3640); other vectors differ by some 0.03.
MAX_COMPONENT_ERROR = 4e-3
# A float16 output rounds each component by 5e-4 of its value; float16 kernels are within 1e-3.
MIN_GOLDEN_COSINE = 0.999
# Longer texts cost more than they reveal.
MAX_GOLDEN_TOKENS = 1024
REQUEST_TEXTS = 16

CAUSE = "The vectors are those of another model, or of weights quantized to int8 or int4."
REMEDY = (
    "Fix the other failures first. Else compare the weights with the card, or pass --card none for "
    "a model without golden values."
)


def check_scores(probe: Probe) -> Finding:
    """Check that queries and documents of the model card have its similarities."""
    card = probe.card
    if card is None or (card.scores is None and card.vectors is None):
        return skipped(probe.no_card_reason)
    if card.scores is None:
        return skipped(f"card {card.name} has golden vectors, not scores")
    expected = np.array(card.scores)
    queries = probe.client.embed(QUERIES, input_type="query", dimensions=card.hidden_size)
    documents = probe.client.embed(DOCUMENTS, dimensions=card.hidden_size)
    scores = cosines(queries.vectors, documents.vectors)
    error = float(np.abs(scores - expected).max())
    measured = f"{np.round(scores, 4).tolist()}, off by {error:.4f}"
    allowed = f"{expected.tolist()} within {MAX_SCORE_ERROR}"
    if error <= MAX_SCORE_ERROR:
        return passed(measured, allowed)
    scores_with_end_token = cosines(
        _embed_ended(probe, format_inputs(QUERIES, input_type="query"), card.hidden_size),
        _embed_ended(probe, DOCUMENTS, card.hidden_size),
    )
    if np.abs(scores_with_end_token - expected).max() <= MAX_SCORE_ERROR:
        return _end_token_missing(measured, allowed)
    return failed(measured, allowed, cause=CAUSE, remedy=REMEDY)


def check_tei_vector(probe: Probe) -> Finding:
    """Check that a sentence has the 0.6B model's vector in text-embeddings-inference."""
    if probe.card is None:
        return skipped(probe.no_card_reason)
    if probe.card.name != "0.6b":
        return skipped("known for the 0.6B model only")
    answer = probe.client.embed([TEI_TEXT, TEI_NEIGHBOR], dimensions=probe.card.hidden_size)
    error = float(np.abs(answer.vectors[0, : len(TEI_HEAD)] - np.array(TEI_HEAD)).max())
    similarity = float(cosines(answer.vectors, answer.vectors)[0, 1])
    measured = f"components off by {error:.1e}, cosine with a second text {similarity:.4f}"
    allowed = f"{MAX_COMPONENT_ERROR:.0e}; {TEI_COSINE:.4f} within {MAX_SCORE_ERROR}"
    if error <= MAX_COMPONENT_ERROR and abs(similarity - TEI_COSINE) <= MAX_SCORE_ERROR:
        return passed(measured, allowed)
    return failed(measured, allowed, cause=CAUSE, remedy=REMEDY)


def check_golden_vectors(probe: Probe) -> Finding:
    """Check that texts have the vectors of the reference implementation."""
    if probe.card is None or (probe.card.scores is None and probe.card.vectors is None):
        return skipped(probe.no_card_reason)
    if probe.card.vectors is None:
        return skipped(f"card {probe.card.name} has scores, not golden vectors")
    golden = _short_enough(probe.card.vectors, probe.served.max_length or MAX_GOLDEN_TOKENS)
    vectors = _embed_all(probe, golden.texts)
    values = cosines(vectors, golden.vectors[:, : vectors.shape[1]]).diagonal()
    worst = float(values.min())
    measured = f"lowest cosine {worst:.6f} of {len(golden.texts)} texts"
    allowed = f">= {MIN_GOLDEN_COSINE}"
    if worst >= MIN_GOLDEN_COSINE:
        return passed(measured, allowed)
    few = golden.texts[:REQUEST_TEXTS]
    expected = golden.vectors[: len(few), : vectors.shape[1]]
    if _agree(_embed_ended(probe, few, None), expected):
        return _end_token_missing(measured, allowed)
    if _agree(probe.embed_alone(few), expected):
        cause = "Vectors are correct one by one and wrong in a batch: the order, or the padding."
        return failed(measured, allowed, cause=cause, remedy="See the failures above.")
    return failed(measured, allowed, cause=CAUSE, remedy=REMEDY)


def _agree(vectors: Float64Matrix, expected: Float64Matrix) -> bool:
    return bool(cosines(vectors, expected).diagonal().min() >= MIN_GOLDEN_COSINE)


def _short_enough(golden: GoldenVectors, max_length: int) -> GoldenVectors:
    kept = [index for index, count in enumerate(golden.token_counts) if count <= max_length]
    return GoldenVectors(
        tuple(golden.texts[index] for index in kept),
        tuple(golden.token_counts[index] for index in kept),
        golden.vectors[kept],
    )


def _embed_all(probe: Probe, texts: tuple[str, ...]) -> Float64Matrix:
    parts = [texts[i : i + REQUEST_TEXTS] for i in range(0, len(texts), REQUEST_TEXTS)]
    return np.concatenate([probe.embed_together(part).vectors for part in parts])


def _embed_ended(
    probe: Probe, texts: list[str] | tuple[str, ...], dimensions: int | None
) -> Float64Matrix:
    """Embed texts with the end token written into each, one by one since batches may be wrong."""
    ended = [text + END_TOKEN for text in texts]
    answers = [probe.client.embed([text], dimensions=dimensions).vectors for text in ended]
    return np.concatenate(answers)


def _end_token_missing(measured: str, allowed: str) -> Finding:
    return failed(
        measured,
        allowed,
        cause=f"Nothing appends {END_TOKEN}: with it in the texts, the values are correct.",
        remedy=f"Append {END_TOKEN} (151643) to every text after tokenizing.",
    )


CHECKS: dict[str, Check] = {
    "golden vectors": check_golden_vectors,
    "golden scores": check_scores,
    "TEI's vector": check_tei_vector,
}
