"""OpenAI's dialect, with what NVIDIA NIM adds to it."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from ..embedder import EmbedCall, Truncation
from ..errors import InvalidRequestError
from ..prompts import InputType
from ..responses import JsonResponse
from ..schemas import (
    OpenAIEmbedRequest,
    OpenAIEmbedResponse,
    OpenAIErrorResponse,
    validate,
)
from ..service import EmbeddingService
from .dependencies import ServiceDep
from .embedding import open_exchange

router = APIRouter(prefix="/v1", tags=["openai"])

ERROR_STATUSES = (400, 401, 404, 413, 429, 502, 503, 504)
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": OpenAIErrorResponse} for code in ERROR_STATUSES
}
OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": OpenAIEmbedRequest.model_json_schema()}},
    }
}
# NIM's way to say what a text is where a client has no field for it.
MODEL_SUFFIXES: dict[str, InputType] = {"-query": "query", "-passage": "document"}
TRUNCATIONS: dict[bool | str | None, Truncation] = {
    None: "refuse",
    False: "refuse",
    True: "end",
    "NONE": "refuse",
    "END": "end",
    "START": "start",
}
STARTED = int(time.time())


@router.post(
    "/embeddings", response_model=OpenAIEmbedResponse, responses=ERRORS, openapi_extra=OPENAPI
)
async def embeddings(request: Request, service: ServiceDep) -> Response:
    """Embed one to 2,048 strings; one that is too long is refused unless `truncate` is set."""
    async with open_exchange(request, service) as exchange:
        body = validate(OpenAIEmbedRequest, exchange.body)
        answer = await exchange.embed(_read(body, service))
        data = await answer.render(body.encoding_format or "float", _item)
        return answer.respond(
            {
                "object": "list",
                "data": data,
                "model": service.model_id,
                "usage": answer.usage,
                "truncated": answer.embeddings.truncated,
            }
        )


@router.get("/models")
async def models(service: ServiceDep) -> Response:
    """List the served model under its id and its aliases."""
    names = service.model_names
    return JsonResponse({"object": "list", "data": [_model(name, service) for name in names]})


@router.get("/models/{name:path}")
async def model(name: str, service: ServiceDep) -> Response:
    """Describe the served model."""
    service.check_model_name(name)
    return JsonResponse(_model(name, service))


def _read(body: OpenAIEmbedRequest, service: EmbeddingService) -> EmbedCall:
    """Translate a body, NIM's words included.

    Raises:
        ModelNotFoundError: another model than the served one.
        InvalidRequestError: fields that contradict each other.
    """
    stated: InputType | None = "document" if body.input_type == "passage" else body.input_type
    named = _input_type_of_name(body.model, service)
    if named is None:
        service.check_model_name(body.model)
    elif stated not in (None, named):
        msg = f"`model` is {body.model!r} and `input_type` {body.input_type!r}: send one of them."
        raise InvalidRequestError(msg, param="input_type")
    return EmbedCall(
        body.input,
        input_type=stated or named or "document",
        instruction=body.instruction,
        dimensions=body.dimensions,
        truncation=TRUNCATIONS[body.truncate],
    )


def _input_type_of_name(name: str | None, service: EmbeddingService) -> InputType | None:
    if name is None or name in service.model_names:
        return None
    for suffix, input_type in MODEL_SUFFIXES.items():
        if name.removesuffix(suffix) in service.model_names:
            return input_type
    return None


def _item(index: int, vector: Any) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": vector}


def _model(name: str, service: EmbeddingService) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": STARTED,
        "owned_by": "qwen3-triton",
        "root": service.model_id,
        "max_model_len": service.settings.max_length,
    }
