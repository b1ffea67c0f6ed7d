"""Run a model on a few short texts, as the gateway does at its start."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from qwen3_triton_gateway.backends.behavior import Behavior, accept_pooling, probe_behavior
from qwen3_triton_gateway.backends.onnx import OnnxBackend
from qwen3_triton_gateway.errors import EmbeddingServerError, StartupError
from qwen3_triton_gateway.settings import Pooling
from qwen3_triton_gateway.tokenization import TextTokenizer

from ..errors import ModelError
from ..findings import Finding, failure, note, ok, warning
from .canary_vector import MAX_WEIGHT_BYTES
from .inspection import Inspection, sort_findings

_NAME = "behavior"
_MAX_LENGTH = 512
# Cosines below 0.999 make `model verify` fail: this relative distance is one of that size.
_DRIFT = 0.045


def with_probe(inspection: Inspection, pooling: Pooling = "last_token") -> Inspection:
    """Add what the probe finds to an inspection, if the model is complete and not too large.

    Args:
        inspection: What the file says.
        pooling: The pooling that is right for this model, as in EMBED_POOLING.
    """
    behavior, findings = _probe(inspection, pooling)
    return replace(
        inspection, behavior=behavior, findings=sort_findings([*inspection.findings, *findings])
    )


def _probe(inspection: Inspection, pooling: Pooling) -> tuple[Behavior | None, list[Finding]]:
    tokenizer = inspection.tokenizer
    if inspection.spec is None or tokenizer is None or not inspection.is_servable:
        return None, []
    if inspection.precision.weight_bytes > MAX_WEIGHT_BYTES:
        message = f"Not run: only up to {MAX_WEIGHT_BYTES / 1024**3:.0f} GiB of weights are."
        return None, [note(_NAME, message, "The gateway runs the same probe at its start.")]
    try:
        behavior = asyncio.run(_run(inspection.path, Path(tokenizer.path)))
        accept_pooling(inspection.spec, behavior, pooling)
    except StartupError as error:
        return None, [failure(_NAME, error.message)]
    except (ModelError, EmbeddingServerError) as error:
        return None, [note(_NAME, f"Not run: {error}")]
    return behavior, _describe(behavior, pooled=inspection.is_pooled)


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
