"""Run a reranker on a few short pairs: whether its scores can be trusted, and survive pooling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qwen3_triton_gateway.backends.behavior import OTHER, SAME
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.tensors import Float32Matrix, TokenBatch

from ..errors import ModelError
from ..findings import Finding, failure, note, ok, warning
from .inspection import Inspection, check_runnable, inspect_model
from .pairs import GraphScorer, Tokens

_NAME = "behavior"
_MAX_LENGTH = 512
QUERY = "What do bees sell?"
# From few tokens to many, so that all but the longest are padded.
DOCUMENTS = (
    "Honey.",
    "日本語の文章 😀",
    "Farmers grow apples and plums, keep bees, and sell honey at markets in the valleys.",
)


@dataclass(frozen=True, slots=True)
class LogitsSample:
    """A few batches of pairs, and their logits by a model: float32, (pairs, 2) or (pairs, 1)."""

    batches: tuple[TokenBatch, ...]
    logits: Float32Matrix


def probe_reranker(inspection: Inspection) -> list[Finding]:
    """Report what a reranker returns for a few pairs, if it is complete and not too large."""
    if inspection.spec is None or inspection.tokenizer is None or not inspection.is_servable:
        return []
    try:
        with _scorer(inspection) as scorer:
            rows = [scorer.pairs.encode(QUERY, document) for document in DOCUMENTS]
            try:
                alone = np.concatenate([scorer.logits(scorer.pairs.pad([row])) for row in rows])
            except ModelError as error:
                remedy = "Export it again, with dynamic axes and the logits of all positions."
                return [failure(_NAME, f"It cannot score a pair: {error}", remedy)]
            return _judge(scorer, rows, alone)
    except ModelError as error:
        return [note(_NAME, f"Not run: {error}", "The gateway runs it at its start.")]


def sample_logits(inspection: Inspection) -> LogitsSample:
    """Run a reranker that is not pooled on a few pairs.

    Raises:
        ModelError: It cannot be run here; the message says why.
    """
    with _scorer(inspection) as scorer:
        rows = [scorer.pairs.encode(QUERY, document) for document in DOCUMENTS]
        groups = [[row] for row in rows] if scorer.is_single else [rows, rows[:1]]
        batches = tuple(map(scorer.pairs.pad, groups))
        return LogitsSample(batches, np.concatenate([scorer.logits(b) for b in batches]))


def check_logits(model_path: Path, inspection: Inspection, sample: LogitsSample) -> None:
    """Check that a pooled model returns the logits of a sample.

    Args:
        model_path: The pooled model.
        inspection: The original, whose tokenizer it uses.
        sample: The original's logits.

    Raises:
        ModelError: It does not run, or returns others.
    """
    pooled = replace(inspect_model(model_path), tokenizer=inspection.tokenizer)
    try:
        with GraphScorer(
            pooled, OnnxBackend(model_path, task="rerank"), max_length=_MAX_LENGTH
        ) as scorer:
            logits = np.concatenate([scorer.logits(batch) for batch in sample.batches])
    except ModelError as error:
        raise ModelError(f"The pooled model does not run: {error}") from error
    drift = _drift(logits, sample.logits)
    if not drift <= SAME:  # nor if it is not a number
        msg = (
            f"The pooled model's logits differ by {drift:.0%} from those of the whole head. It was "
            "not written. Please report this, with the export's source."
        )
        raise ModelError(msg)


def _scorer(inspection: Inspection) -> GraphScorer:
    check_runnable(inspection)
    return GraphScorer(
        inspection, OnnxBackend(inspection.path, task="rerank"), max_length=_MAX_LENGTH
    )


def _judge(scorer: GraphScorer, rows: list[Tokens], alone: Float32Matrix) -> list[Finding]:
    """Judge the logits of pairs that were scored alone, and score them together."""
    if not np.isfinite(alone).all():
        message = "Its logits are not finite: the model overflows its float type."
        return [failure(_NAME, message, "Use a float32 or bfloat16 export.")]
    if np.ptp(alone, axis=0).max() == 0:
        message = "It returns the same logits for every document."
        return [failure(_NAME, message, "Export it again; the document does not reach its output.")]
    try:
        together = scorer.logits(scorer.pairs.pad(rows))
    except ModelError as error:
        message = f"In a batch the model fails, so pairs are scored one by one: {error}"
        return [warning(_NAME, message, "Export it again with dynamic axes.")]
    drift = _drift(together, alone)
    if drift > OTHER:
        message = (
            f"Padding on the right changes its logits by {drift:.0%}: it reads a padded position, "
            "or ignores the mask."
        )
        remedy = "Export it again; a classifier must find the last token by the mask or pad token."
        return [failure(_NAME, message, remedy)]
    if drift > SAME:
        message = f"A pair's logits move by {drift:.0%} when it shares a batch."
        return [warning(_NAME, message, "Use a float16 or float32 export.")]
    return [ok(_NAME, "logits of the last token, independent of padding")]


def _drift(logits: Float32Matrix, expected: Float32Matrix) -> float:
    """Return the largest distance of two rows of logits, relative to those beyond 1."""
    distances = np.linalg.norm(logits - expected, axis=1)
    return float((distances / np.maximum(np.linalg.norm(expected, axis=1), 1.0)).max())
