"""Run a model on a few short texts: what it returns, its canary, and whether a pooled copy agrees.

All of it on this machine's CPU, where that is cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qwen3_triton_gateway.backends.base import Probe
from qwen3_triton_gateway.backends.behavior import (
    SAME,
    TEXT,
    TIMEOUT_SECONDS,
    Behavior,
    accept_pooling,
    probe_behavior,
)
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.backends.probe import run_probe
from qwen3_triton_gateway.batching import pad_batch
from qwen3_triton_gateway.canary import (
    canary_batch,
    rerank_canary_batch,
    state_canary,
)
from qwen3_triton_gateway.errors import EmbeddingServerError, StartupError
from qwen3_triton_gateway.pooling import vectors_of
from qwen3_triton_gateway.settings import Pooling, Task
from qwen3_triton_gateway.tensors import Float32Matrix, Float32Vector, TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer

from ..errors import ModelError
from ..findings import Finding, failure, note, ok, warning
from .inspection import Inspection, check_runnable, sort_findings, tokenizer_of
from .pairs import answer_ids
from .rerank_probing import probe_reranker

_NAME = "behavior"
_MAX_LENGTH = 512
# From one token to more than a bucket of lengths, so that all but the longest are padded.
_TEXTS = ["a", "What do bees sell?", "日本語の文章 😀", TEXT]
# Cosines below 0.999 make `model verify` fail: this relative distance is one of that size.
_DRIFT = 0.045


def with_probe(inspection: Inspection, pooling: Pooling = "last_token") -> Inspection:
    """Add what the probe finds to an inspection, if the model is complete and not too large.

    Args:
        inspection: What the file says.
        pooling: The pooling that is right for this model, as in EMBED_POOLING.
    """
    behavior, findings = probe_model(inspection, pooling)
    return replace(
        inspection, behavior=behavior, findings=sort_findings([*inspection.findings, *findings])
    )


def probe_model(
    inspection: Inspection, pooling: Pooling = "last_token"
) -> tuple[Behavior | None, list[Finding]]:
    """Find out how a model behaves, if it is complete and not too large; see `with_probe`."""
    if inspection.reranker:
        return None, probe_reranker(inspection)
    if inspection.spec is None or inspection.tokenizer is None or not inspection.is_servable:
        return None, []
    try:
        tokenizer = _tokenizer_to_run(inspection, _MAX_LENGTH)
        behavior = asyncio.run(_probe(inspection.path, tokenizer))
        accept_pooling(inspection.spec, behavior, pooling)
    except StartupError as error:
        return None, [failure(_NAME, error.message)]
    except (ModelError, EmbeddingServerError) as error:
        remedy = "The gateway runs the same probe at its start."
        return None, [note(_NAME, f"Not run: {error}", remedy)]
    return behavior, _describe(behavior, pooled=inspection.is_pooled)


def canary_of(inspection: Inspection, model_path: Path, *, max_length: int) -> str:
    """Run the gateway's canary, and state its answer for the gateway to compare.

    Args:
        inspection: What the model is.
        model_path: The ONNX file, or the folder of `model.onnx`.
        max_length: Tokens of the longest text.

    Raises:
        ModelError: The model is too large for that, or has no tokenizer, or does not run here.
    """
    try:
        tokenizer = _tokenizer_to_run(inspection, max_length)
        if inspection.reranker is None:
            probe = Probe(canary_batch(tokenizer))
            return state_canary(probe.batch, asyncio.run(_answer(model_path, probe, "embed")))
        # As inspected: the file may have been cut down to two logits since.
        has_answers = inspection.reranker.selects_answers
        ids = None if has_answers else answer_ids(tokenizer_of(inspection).answer_ids)
        probe = Probe(rerank_canary_batch(tokenizer, max_length), ids)
        return state_canary(probe.batch, asyncio.run(_answer(model_path, probe, "rerank")))
    except EmbeddingServerError as error:
        raise ModelError(error.message) from error


@dataclass(frozen=True, slots=True)
class PoolingSample:
    """A few texts, and their vectors from a model's hidden states, pooled outside of the graph.

    Attributes:
        batches: The texts, as the gateway would send them.
        vectors: Float32 of shape `(texts, hidden size)`, not normalized.
    """

    batches: tuple[TokenBatch, ...]
    vectors: Float32Matrix


def sample_pooling(inspection: Inspection) -> PoolingSample:
    """Run a model that returns hidden states on a few texts of different lengths.

    Raises:
        ModelError: It cannot be run here; the message says why.
    """
    try:
        tokenizer = _tokenizer_to_run(inspection, _MAX_LENGTH)
        texts = tokenizer.encode(_TEXTS)
        is_single = inspection.spec is not None and inspection.spec.max_batch_size == 1
        batches = tuple(
            pad_batch(group, pad_token_id=tokenizer.end_token_id, max_length=_MAX_LENGTH)
            for group in ([[text] for text in texts] if is_single else [texts])
        )
        vectors = asyncio.run(_embed(inspection.path, batches))
    except EmbeddingServerError as error:
        raise ModelError(error.message) from error
    if not np.isfinite(vectors).all():
        raise ModelError("The export's own vectors are not finite.")
    return PoolingSample(batches, vectors)


def check_pooling(model_path: Path, sample: PoolingSample) -> None:
    """Check that a pooled model returns the vectors of a sample.

    Raises:
        ModelError: It does not run, or returns others.
    """
    try:
        vectors = asyncio.run(_embed(model_path, sample.batches))
    except (ModelError, EmbeddingServerError) as error:
        raise ModelError(f"The pooled model does not run: {error}") from error
    distances = np.linalg.norm(vectors - sample.vectors, axis=1)
    drift = float((distances / np.linalg.norm(sample.vectors, axis=1)).max())
    if not drift <= SAME:  # nor if it is not a number
        msg = (
            f"The pooled model's vectors differ by {drift:.0%} from those of pooling its hidden "
            "states. It was not written. Please report this, with the export's source."
        )
        raise ModelError(msg)


def _tokenizer_to_run(inspection: Inspection, max_length: int) -> TextTokenizer:
    """Return the tokenizer of a model that is run here.

    Raises:
        ModelError: The model has no tokenizer, or is too large.
        StartupError: The gateway could not use the tokenizer.
    """
    return TextTokenizer(check_runnable(inspection), max_length=max_length)


@asynccontextmanager
async def _loaded(model_path: Path, task: Task = "embed") -> AsyncGenerator[OnnxBackend]:
    """Load a model for the length of a `with` block.

    Raises:
        ModelError: It does not load here.
    """
    backend = OnnxBackend(model_path, task=task)
    try:
        try:
            await backend.connect()
        except StartupError as error:
            # Triton's runtime may load it: an operator for GPUs only, weights behind a link.
            raise ModelError(error.message) from error
        yield backend
    finally:
        await backend.close()


async def _embed(model_path: Path, batches: tuple[TokenBatch, ...]) -> Float32Matrix:
    async with _loaded(model_path) as backend:
        rows = [
            vectors_of(
                await backend.infer(batch, timeout_seconds=TIMEOUT_SECONDS, priority=1),
                batch.attention_mask,
            )
            for batch in batches
        ]
    return np.concatenate(rows)


async def _answer(model_path: Path, probe: Probe, task: Task) -> Float32Vector:
    async with _loaded(model_path, task) as backend:
        return await run_probe(backend, probe)


async def _probe(model_path: Path, tokenizer: TextTokenizer) -> Behavior:
    async with _loaded(model_path) as backend:
        return await probe_behavior(backend, tokenizer)


def _describe(behavior: Behavior, *, pooled: bool) -> list[Finding]:
    if behavior.pooling == "unknown":
        return [warning(_NAME, "The probe found nothing: its vectors are not finite.")]
    what = f"vectors pooled as {behavior.pooling}" if pooled else "hidden states"
    if behavior.normalized:
        what += ", normalized"
    findings = [ok(_NAME, f"{what}, independent of padding")]
    if not behavior.shares_batches:
        message = "In a batch the model fails or is wrong, so the gateway sends texts one by one."
        findings.append(warning(_NAME, message, "Export it again with dynamic axes."))
    elif behavior.batch_drift > _DRIFT:
        message = f"A text's vector moves by {behavior.batch_drift:.0%} when it shares a batch."
        findings.append(warning(_NAME, message, "Use a float16 or float32 export."))
    return findings
