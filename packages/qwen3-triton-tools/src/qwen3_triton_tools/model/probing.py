"""Run a model on a few short texts: what it returns, and whether a pooled copy is the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qwen3_triton_gateway.backends.behavior import (
    SAME,
    TEXT,
    TIMEOUT_SECONDS,
    Behavior,
    accept_pooling,
    probe_behavior,
)
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.batching import pad_batch
from qwen3_triton_gateway.errors import EmbeddingServerError, StartupError
from qwen3_triton_gateway.pooling import vectors_of
from qwen3_triton_gateway.settings import Pooling
from qwen3_triton_gateway.tensors import Float32Matrix, TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer

from ..errors import ModelError
from ..findings import Finding, failure, note, ok, warning
from .canary_vector import MAX_WEIGHT_BYTES
from .inspection import Inspection, sort_findings

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
    tokenizer = inspection.tokenizer
    if inspection.spec is None or tokenizer is None or not inspection.is_servable:
        return None, []
    if inspection.precision.weight_bytes > MAX_WEIGHT_BYTES:
        message = f"Not run: {_too_large()}"
        return None, [note(_NAME, message, "The gateway runs the same probe at its start.")]
    try:
        behavior = asyncio.run(_run(inspection.path, Path(tokenizer.path)))
        accept_pooling(inspection.spec, behavior, pooling)
    except StartupError as error:
        return None, [failure(_NAME, error.message)]
    except (ModelError, EmbeddingServerError) as error:
        return None, [note(_NAME, f"Not run: {error}")]
    return behavior, _describe(behavior, pooled=inspection.is_pooled)


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
    if inspection.precision.weight_bytes > MAX_WEIGHT_BYTES:
        raise ModelError(_too_large())
    if inspection.tokenizer is None:
        raise ModelError("There is no tokenizer.json next to the model.")
    try:
        tokenizer = TextTokenizer(Path(inspection.tokenizer.path), max_length=_MAX_LENGTH)
        texts = tokenizer.encode(_TEXTS)
        is_single = inspection.spec is not None and inspection.spec.max_batch_size == 1
        batches = tuple(
            pad_batch(group, pad_token_id=tokenizer.end_token_id, max_length=_MAX_LENGTH)
            for group in ([[text] for text in texts] if is_single else [texts])
        )
        return PoolingSample(batches, asyncio.run(_embed(inspection.path, batches)))
    except EmbeddingServerError as error:
        raise ModelError(error.message) from error


def check_pooling(model_path: Path, sample: PoolingSample) -> None:
    """Check that a pooled model returns the vectors of a sample.

    Raises:
        ModelError: It does not run, or returns others.
    """
    try:
        vectors = asyncio.run(_embed(model_path, sample.batches))
    except EmbeddingServerError as error:
        raise ModelError(f"The pooled model does not run: {error.message}") from error
    distances = np.linalg.norm(vectors - sample.vectors, axis=1)
    drift = float((distances / np.linalg.norm(sample.vectors, axis=1)).max())
    if not drift <= SAME:  # nor if it is not a number
        msg = (
            f"The pooled model's vectors differ by {drift:.0%} from those of pooling its hidden "
            "states. It was not written. Please report this, with the export's source."
        )
        raise ModelError(msg)


def _too_large() -> str:
    return f"Only up to {MAX_WEIGHT_BYTES / 1024**3:.0f} GiB of weights are run here."


async def _embed(model_path: Path, batches: tuple[TokenBatch, ...]) -> Float32Matrix:
    backend = OnnxBackend(model_path)
    try:
        await backend.connect()
        rows = [
            vectors_of(
                await backend.infer(batch, timeout_seconds=TIMEOUT_SECONDS, priority=1),
                batch.attention_mask,
            )
            for batch in batches
        ]
    finally:
        await backend.close()
    return np.concatenate(rows)


async def _run(model_path: Path, tokenizer_path: Path) -> Behavior:
    backend = OnnxBackend(model_path)
    try:
        try:
            await backend.connect()
        except StartupError as error:
            # Triton's runtime may load it: an operator for GPUs only, weights behind a link.
            raise ModelError(error.message) from error
        return await probe_behavior(backend, TextTokenizer(tokenizer_path, max_length=_MAX_LENGTH))
    finally:
        await backend.close()


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
