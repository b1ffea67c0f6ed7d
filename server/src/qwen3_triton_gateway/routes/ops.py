"""Health and information: what runs here, and whether it can be trusted now."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from .._version import __version__
from ..prompts import DEFAULT_INSTRUCTION
from ..responses import JsonResponse
from ..service import EmbeddingService
from ..settings import MAX_TEXTS, MIN_DIMENSIONS
from .dependencies import ServiceDep

router = APIRouter(tags=["operations"])

OK, UNAVAILABLE = 200, 503


@router.get("/health")
async def health(service: ServiceDep) -> JsonResponse:
    """Say all: the runbook's seven fields and more; 200 when requests are answered, else 503."""
    readiness = await service.check()
    spec = service.spec
    body = {
        "status": "ok" if readiness.ready else "degraded",
        "triton_status": OK if readiness.backend_ready else UNAVAILABLE,
        "triton_model": spec.name if spec else service.settings.triton_model,
        "tokenizer_path": str(service.tokenizer.path),
        "embed_output_dim": service.settings.output_dim,
        "model_hidden_dim": spec.hidden_size if spec else 0,
        "requires_past_kv": bool(spec and spec.past_inputs),
        "backend": service.backend.description,
        "model": service.model_id,
        "reason": readiness.reason,
        "queued_tokens": service.queued_tokens,
        "batches_in_flight": service.batches_in_flight,
    }
    return JsonResponse(body, OK if readiness.ready else UNAVAILABLE)


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/health/ready")
async def ready(service: ServiceDep) -> JsonResponse:
    """Say whether the backend answers and the canary still gives its start-up vector."""
    readiness = await service.check()
    body = {"status": "ok" if readiness.ready else "degraded", "reason": readiness.reason}
    return JsonResponse(body, OK if readiness.ready else UNAVAILABLE)


@router.get("/info")
async def info(service: ServiceDep) -> dict[str, Any]:
    """Say what is served and within which limits; 503 until the model was reached."""
    embedder = service.embedder
    return _describe(service) | {"fingerprint": service.fingerprint(embedder.default_dimensions)}


def _describe(service: EmbeddingService) -> dict[str, Any]:
    settings, spec = service.settings, service.backend.spec
    return {
        "model": service.model_id,
        "model_aliases": settings.model_aliases,
        "version": __version__,
        "backend": service.backend.description,
        "pooling": "last_token",
        "pooled_in_graph": spec.pooling == "in_graph",
        "dtype": spec.output.dtype.name,
        "hidden_size": spec.hidden_size,
        "dimensions": settings.output_dim,
        "min_dimensions": MIN_DIMENSIONS,
        "max_length": settings.max_length,
        "max_texts": MAX_TEXTS,
        "max_batch_size": spec.max_batch_size,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_body_bytes": settings.max_body_bytes,
        "default_instruction": DEFAULT_INSTRUCTION,
        "query_template": "Instruct: {instruction}\nQuery:{text}",
    }
