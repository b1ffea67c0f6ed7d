"""`POST /embed`: the native dialect, which the runbook's callers keep using unchanged."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from ..embedder import EmbedTimings
from ..encoding import encode_vectors
from ..errors import InvalidRequestError
from ..responses import JsonResponse
from ..schemas import EmbedRequest, EmbedResponse, ErrorResponse, parse_body
from ..service import EmbeddingService
from .dependencies import ServiceDep

router = APIRouter(tags=["embed"])

ERROR_STATUSES = (400, 401, 404, 413, 429, 502, 503, 504)
# The body is read as bytes and validated by pydantic's own JSON parser, so its schema is stated
# here rather than in the signature.
OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": EmbedRequest.model_json_schema()}},
    }
}


@router.post(
    "/embed",
    response_model=EmbedResponse,
    responses={status: {"model": ErrorResponse} for status in ERROR_STATUSES},
    openapi_extra=OPENAPI,
)
async def embed(request: Request, service: ServiceDep) -> Response:
    """Embed 1 to 2,048 texts; `embeddings[i]` belongs to `texts[i]` and has norm 1."""
    deadline = asyncio.get_running_loop().time() + service.settings.timeout_seconds
    body = parse_body(EmbedRequest, await request.body())
    service.check_model_name(body.model)
    if body.instruction is not None and body.input_type == "document":
        msg = "`instruction` belongs to queries: send `input_type: query` with it, or leave it out."
        raise InvalidRequestError(msg, param="instruction")
    return await _answer(body, service, deadline)


async def _answer(body: EmbedRequest, service: EmbeddingService, deadline: float) -> Response:
    embeddings, timings = await service.embedder.embed(
        body.texts,
        deadline=deadline,
        input_type=body.input_type,
        instruction=body.instruction,
        dimensions=body.dimensions,
        truncate=body.truncate,
    )
    began = time.perf_counter()
    dimensions = embeddings.vectors.shape[1]
    fingerprint = service.fingerprint(dimensions)
    answer = {
        "embeddings": encode_vectors(embeddings.vectors, body.encoding_format),
        "model": service.model_id,
        "dimensions": dimensions,
        "usage": {
            "prompt_tokens": embeddings.prompt_tokens,
            "total_tokens": embeddings.prompt_tokens,
        },
        "truncated": embeddings.truncated,
        "fingerprint": fingerprint,
    }
    response = JsonResponse(answer, headers={"X-Embedding-Fingerprint": fingerprint})
    response.headers["Server-Timing"] = server_timing(timings, time.perf_counter() - began)
    return response


def server_timing(timings: EmbedTimings, encode_seconds: float) -> str:
    """Write the stages as a `Server-Timing` header, in milliseconds as the header wants them."""
    stages = {
        "tokenize": timings.tokenize_seconds,
        "queue": timings.queue_seconds,
        "infer": timings.infer_seconds,
        "encode": encode_seconds,
    }
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())
