"""Checks against what others measured of the same model."""

from __future__ import annotations

import numpy as np

from qwen3_triton_gateway.tokenization import END_TOKEN, format_inputs

from .cards import GoldenVectors
from .checks import Outcome, Probe, failed, passed, skipped
from .gateway_client import Float64Matrix, cosines
from .golden import DOCUMENTS, QUERIES, TEI_COSINE, TEI_HEAD, TEI_NEIGHBOUR, TEI_TEXT
from .text_checks import no_card

# How far an engine in bfloat16 or float16 drifts from the cards: vLLM's README has [[0.7620,
# 0.1408], [0.1358, 0.6014]] for the 0.6B model, 0.0026 off its card. A wrong prompt, end token or
# padding moves scores by hundredths.
MAX_SCORE_ERROR = 3e-3
# Components of unit vectors: 6e-4 from float32 in float16, 3.7e-3 in bfloat16 (omlx pull request
# 3640); other vectors differ by some 0.03.
MAX_COMPONENT_ERROR = 4e-3
# A float16 output rounds each component by 5e-4 of it, float16 kernels lie within 1e-3.
MIN_GOLDEN_COSINE = 0.999
# A text longer than this costs more than it tells.
MAX_GOLDEN_TOKENS = 1024
REQUEST_TEXTS = 16

CAUSE = "the vectors are another model's, or quantized weights' (int8, int4) that drift further"
REMEDY = (
    "mend the other failures first; else compare the weights with the card, or give --card none "
    "for a model that is none of them"
)


def check_hidden_size(probe: Probe) -> Outcome:
    """The served model is as wide as the one that its name promises."""
    if probe.card is None:
        return skipped(no_card(probe))
    size, expected = probe.served.hidden_size, probe.card.hidden_size
    if size is None:
        return skipped("the server does not say its hidden size")
    allowed = f"{expected}, as of card {probe.card.name}"
    if size == expected:
        return passed(str(size), allowed)
    return failed(
        str(size),
        allowed,
        cause=f"{probe.served.model_id!r} is served by another model's file",
        remedy="correct EMBED_MODEL_ID, or serve the model that it names",
    )


def check_scores(probe: Probe) -> Outcome:
    """Queries and documents of the model card have the card's similarities."""
    card = probe.card
    if card is None or (card.scores is None and card.vectors is None):
        return skipped(no_card(probe))
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
    ended = cosines(
        _ended(probe, format_inputs(QUERIES, input_type="query"), card.hidden_size),
        _ended(probe, DOCUMENTS, card.hidden_size),
    )
    if np.abs(ended - expected).max() <= MAX_SCORE_ERROR:
        return _end_token_missing(measured, allowed)
    return failed(measured, allowed, cause=CAUSE, remedy=REMEDY)


def check_tei_vector(probe: Probe) -> Outcome:
    """The 0.6B model's vector of one sentence is the one that text-embeddings-inference has."""
    if probe.card is None:
        return skipped(no_card(probe))
    if probe.card.name != "0.6b":
        return skipped("known of the 0.6B model only")
    answer = probe.client.embed([TEI_TEXT, TEI_NEIGHBOUR], dimensions=probe.card.hidden_size)
    error = float(np.abs(answer.vectors[0, : len(TEI_HEAD)] - np.array(TEI_HEAD)).max())
    similarity = float(cosines(answer.vectors, answer.vectors)[0, 1])
    measured = f"components off by {error:.1e}, cosine with a neighbour {similarity:.4f}"
    allowed = f"{MAX_COMPONENT_ERROR:.0e}; {TEI_COSINE:.4f} within {MAX_SCORE_ERROR}"
    if error <= MAX_COMPONENT_ERROR and abs(similarity - TEI_COSINE) <= MAX_SCORE_ERROR:
        return passed(measured, allowed)
    return failed(measured, allowed, cause=CAUSE, remedy=REMEDY)


def check_golden_vectors(probe: Probe) -> Outcome:
    """Texts have the vectors of the reference implementation."""
    if probe.card is None or (probe.card.scores is None and probe.card.vectors is None):
        return skipped(no_card(probe))
    if probe.card.vectors is None:
        return skipped(f"card {probe.card.name} has scores, not golden vectors")
    golden = _short_enough(probe.card.vectors, probe.served.max_length or MAX_GOLDEN_TOKENS)
    vectors = _embed_all(probe, golden.texts)
    values = cosines(vectors, golden.vectors[:, : vectors.shape[1]]).diagonal()
    worst = float(values.min())
    measured = f"cosine {worst:.6f} at worst of {len(golden.texts)} texts"
    allowed = f">= {MIN_GOLDEN_COSINE}"
    if worst >= MIN_GOLDEN_COSINE:
        return passed(measured, allowed)
    few = golden.texts[:REQUEST_TEXTS]
    expected = golden.vectors[: len(few), : vectors.shape[1]]
    if _agree(_ended(probe, few, None), expected):
        return _end_token_missing(measured, allowed)
    if _agree(probe.alone(few), expected):
        cause = "vectors are right one by one and wrong in a batch: the order, or the padding"
        return failed(measured, allowed, cause=cause, remedy="see the failures above")
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
    return np.concatenate([probe.together(part).vectors for part in parts])


def _ended(
    probe: Probe, texts: list[str] | tuple[str, ...], dimensions: int | None
) -> Float64Matrix:
    """Embed texts with the end token written into each, one by one as a batch may be wrong."""
    ended = [text + END_TOKEN for text in texts]
    answers = [probe.client.embed([text], dimensions=dimensions).vectors for text in ended]
    return np.concatenate(answers)


def _end_token_missing(measured: str, allowed: str) -> Outcome:
    return failed(
        measured,
        allowed,
        cause=f"nothing appends {END_TOKEN}: with it written into the texts the values are right",
        remedy=f"append {END_TOKEN} (151643) to every text after tokenizing",
    )
