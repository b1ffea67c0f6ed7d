"""Health, metrics and information about what is served."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from .. import __version__
from ..dialects import ErrorResponse
from ..embedder import Embedder
from ..rerank_prompt import PAIR_TEMPLATE, PREFIX, SUFFIX
from ..reranker import Reranker
from ..responses import JsonResponse, file_response
from ..served import ServedModel
from ..settings import MAX_TEXTS, MIN_DIMENSIONS
from ..tokenization import DEFAULT_INSTRUCTION, QUERY_TEMPLATE
from .exchange import ServiceDep, ServiceRoute, describe_errors, is_trusted

router: APIRouter = APIRouter(tags=["operations"], route_class=ServiceRoute)

OK, NOT_MODIFIED, UNAVAILABLE = 200, 304, 503
HEALTH_ANSWERS: dict[int | str, dict[str, Any]] = {
    UNAVAILABLE: {
        "description": "Requests are not answered now.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
}
MODEL_PARAMETER: dict[str, Any] = {
    "name": "model",
    "in": "query",
    "description": "A served model, to ask about this one alone.",
    "schema": {"type": "string"},
}
TOKENIZER_ANSWERS: dict[int | str, dict[str, Any]] = {
    OK: {"content": {"application/json": {"schema": {"type": "object"}}}},
    NOT_MODIFIED: {"description": "The caller has it: `If-None-Match` contains its `ETag`."},
    **describe_errors({404}, ErrorResponse),
}


@router.get("/health", responses=HEALTH_ANSWERS)
async def health(request: Request, service: ServiceDep) -> JsonResponse:
    """Report everything: the runbook's seven fields and more.

    503 unless requests are answered; "degraded" unless those for every model are. If keys are set,
    a caller without one gets `status` only.
    """
    first = service.models[0]
    embedder, spec, settings = service.served_embedder, first.spec, service.settings
    named = settings.triton_model if embedder else settings.rerank_triton_model
    details = {
        "triton_status": OK if first.readiness.backend_ready else UNAVAILABLE,
        "triton_model": spec.name if spec else named or first.model_id,
        "tokenizer_path": str(first.tokenizer.path),
        "embed_output_dim": settings.output_dim if embedder else 0,
        "model_hidden_dim": spec.hidden_size if spec and embedder else 0,
        "requires_past_kv": bool(spec and spec.past_inputs),
        **_describe_state(first),
        "reason": service.readiness.reason,
    }
    reranker = service.served_reranker
    if embedder and reranker:
        name = reranker.spec.name if reranker.spec else settings.rerank_triton_model
        details["reranker"] = {"triton_model": name, **_describe_state(reranker)}
    return _health(request, details, is_ready=service.readiness.ready, is_ok=service.is_complete)


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Report that the process is alive."""
    return {"status": "ok"}


@router.get(
    "/health/ready",
    responses=HEALTH_ANSWERS | describe_errors({404}, ErrorResponse),
    openapi_extra={"parameters": [MODEL_PARAMETER]},
)
async def ready(request: Request, service: ServiceDep) -> JsonResponse:
    """Report whether requests are answered, with vectors and scores like those at startup.

    Of two models, one that fails later leaves the other in service; `?model=` asks about one.
    """
    name = request.query_params.get("model")
    if name is not None:
        state = service.find_model(name).readiness
        is_ready = state.ready and not service.stopping
        return _health(request, {"reason": state.reason}, is_ready=is_ready, is_ok=is_ready)
    details: dict[str, Any] = {"reason": service.readiness.reason}
    if len(service.models) > 1:
        details["models"] = {
            model.model_id: {"ready": model.readiness.ready, "reason": model.readiness.reason}
            for model in service.models
        }
    return _health(request, details, is_ready=service.readiness.ready, is_ok=service.is_complete)


@router.get("/v1/health/live")
async def nim_live() -> JsonResponse:
    """Report that the process is alive, in NVIDIA NIM's format."""
    return _nim_health("live", "live", OK)


@router.get("/v1/health/ready", responses=HEALTH_ANSWERS)
async def nim_ready(request: Request, service: ServiceDep) -> JsonResponse:
    """Report whether requests are answered, in NVIDIA NIM's format."""
    readiness = service.readiness
    if readiness.ready:
        return _nim_health("ready", "ready", OK)
    reason = readiness.reason if is_trusted(request) else "not ready"
    return _nim_health("ready", reason, UNAVAILABLE)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/info", responses=describe_errors({503}, ErrorResponse))
async def info(service: ServiceDep) -> dict[str, Any]:
    """Describe the served model and the limits; 503 until the model has been reached."""
    embedder, reranker = service.served_embedder, service.served_reranker
    service.models[0].require_ready()
    if embedder is None:
        return _describe_reranker(service.reranker)
    described = (
        _describe(embedder)
        | {"fingerprint": embedder.fingerprint(embedder.default_dimensions)}
        | _describe_as_tei(embedder)
    )
    if reranker is None or reranker.spec is None:
        return described
    return described | {"reranker": _describe_reranker(reranker)}


@router.get("/tokenizer", response_class=Response, responses=TOKENIZER_ANSWERS)
async def tokenizer(request: Request, service: ServiceDep) -> Response:
    """Return the model's `tokenizer.json`, for callers that split texts to fit."""
    served = service.embedder.tokenizer
    etag = f'"{served.digest}"'
    etags = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if {etag, f"W/{etag}", "*"}.intersection(etags):
        return Response(status_code=NOT_MODIFIED, headers={"ETag": etag})
    return file_response(served.file_content, {"ETag": etag})


def _health(
    request: Request, details: dict[str, Any], *, is_ready: bool, is_ok: bool
) -> JsonResponse:
    """Answer a health check.

    Args:
        request: The request.
        details: What strangers do not get: it names addresses and paths.
        is_ready: Whether requests are answered.
        is_ok: Whether those for every model are.
    """
    body: dict[str, Any] = {"status": "ok" if is_ok else "degraded"}
    if is_trusted(request):
        body |= details
    return JsonResponse(body, OK if is_ready else UNAVAILABLE)


def _nim_health(state: str, message: str, status: int) -> JsonResponse:
    body = {"object": "health.response", "message": message, state: status == OK}
    return JsonResponse(body, status)


def _describe_state(model: ServedModel) -> dict[str, Any]:
    state = model.state()
    return {
        "model": model.model_id,
        "ready": state.ready,
        "reason": model.readiness.reason,
        "backend": model.backend.description,
        "backends": state.backends,
        "excluded": state.problems,
        "queued_tokens": sum(lane.tokens for lane in state.lanes),
        "batches_in_flight": state.batches_in_flight,
        "requests_under_way": state.requests_under_way,
    }


def _describe_reranker(reranker: Reranker) -> dict[str, Any]:
    """Describe the reranker, with the names of text-embeddings-inference's `/info` too."""
    settings, spec = reranker.settings, reranker.backend.spec
    return {
        "model": reranker.model_id,
        "version": __version__,
        "backend": reranker.backend.description,
        "engine": spec.engine,
        "precision": spec.precision,
        "dtype": spec.output.dtype.name,
        "logits": spec.hidden_size,
        "selected_in_graph": spec.pooling == "in_graph",
        "max_length": reranker.max_length,
        "max_texts": MAX_TEXTS,
        "max_batch_size": spec.max_batch_size if reranker.shares_batches else 1,
        "max_body_bytes": settings.max_body_bytes,
        "default_instruction": settings.rerank_instruction,
        "prompt": PREFIX + PAIR_TEMPLATE + SUFFIX,
        "fingerprint": reranker.fingerprint,
        "model_id": reranker.model_id,
        "model_sha": spec.weights_digest,
        "model_dtype": spec.output.dtype.name,
        "model_type": {"reranker": {"id2label": {"0": "yes"}, "label2id": {"yes": 0}}},
        "max_input_length": reranker.max_length,
        "max_client_batch_size": MAX_TEXTS,
        "max_concurrent_requests": settings.max_queue_requests,
        "auto_truncate": True,
    }


def _describe(embedder: Embedder) -> dict[str, Any]:
    settings, spec = embedder.settings, embedder.backend.spec
    return {
        "model": embedder.model_id,
        "model_aliases": list(settings.model_aliases),
        "version": __version__,
        "backend": embedder.backend.description,
        "engine": spec.engine,
        "precision": spec.precision,
        "pooling": embedder.pooling,
        "pooled_in_graph": spec.pooling == "in_graph",
        "probe": asdict(embedder.behavior),
        "dtype": spec.output.dtype.name,
        "hidden_size": spec.hidden_size,
        "dimensions": settings.output_dim,
        "min_dimensions": MIN_DIMENSIONS,
        "max_length": settings.max_length,
        "max_texts": MAX_TEXTS,
        "max_batch_size": spec.max_batch_size if embedder.behavior.shares_batches else 1,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_body_bytes": settings.max_body_bytes,
        "default_instruction": DEFAULT_INSTRUCTION,
        "query_template": QUERY_TEMPLATE,
    }


def _describe_as_tei(embedder: Embedder) -> dict[str, Any]:
    """Add the fields of text-embeddings-inference's `/info` that have other names there."""
    settings, spec = embedder.settings, embedder.backend.spec
    return {
        "model_id": embedder.model_id,
        "model_sha": spec.weights_digest,
        "model_dtype": spec.output.dtype.name,
        "model_type": {"embedding": {"pooling": embedder.pooling}},
        "max_input_length": settings.max_length,
        "max_client_batch_size": MAX_TEXTS,
        "max_concurrent_requests": settings.max_queue_requests,
        "auto_truncate": True,
    }
