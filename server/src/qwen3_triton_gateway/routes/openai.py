"""OpenAI's dialect, with NVIDIA NIM's additions."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from ..embedder import EmbedCall, Truncation
from ..errors import InvalidRequestError
from ..responses import EncodingFormat, JsonResponse, OpenAIErrorResponse
from ..schemas import (
    INSTRUCTION_NEEDS_QUERY,
    Dimensions,
    OneOrMoreTexts,
    Usage,
    never_together,
    validate,
)
from ..service import EmbeddingService
from ..tokenization import InputType
from .exchange import ServiceDep, describe_call, describe_errors, open_exchange

router = APIRouter(prefix="/v1", tags=["openai"])

# NIM's convention for clients that have no field for the input type.
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


class OpenAIEmbedRequest(BaseModel):
    """The body of `POST /v1/embeddings`: OpenAI's fields, NVIDIA NIM's, and `instruction`.

    Unknown fields are ignored, as OpenAI's clients need. A model name may end in `-query` or
    `-passage`, NIM's convention for clients that cannot send `input_type`.
    """

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra=INSTRUCTION_NEEDS_QUERY
        # Truncating the start of a query would remove its instruction.
        | never_together(truncate={"const": "START"}, input_type={"const": "query"}),
    )

    input: OneOrMoreTexts
    model: str | None = None
    dimensions: Dimensions | None = None
    encoding_format: EncodingFormat | None = None
    input_type: InputType | Literal["passage"] | None = None
    instruction: str | None = None
    truncate: bool | Literal["NONE", "END", "START"] | None = None


class OpenAIEmbedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAIEmbedResponse(BaseModel):
    """The response to `POST /v1/embeddings`; `truncated` is not part of OpenAI's API."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: Usage
    truncated: list[int]


@router.post(
    "/embeddings",
    response_model=OpenAIEmbedResponse,
    **describe_call(OpenAIEmbedRequest, errors=OpenAIErrorResponse),
)
async def embeddings(request: Request, service: ServiceDep) -> Response:
    """Embed one to 2,048 strings. A string that is too long is refused unless `truncate` is set."""
    async with open_exchange(request, service) as exchange:
        body = validate(OpenAIEmbedRequest, exchange.body)
        answer = await exchange.embed(_embed_call(body, service))
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


@router.get("/models", responses=describe_errors({401}, OpenAIErrorResponse))
async def models(service: ServiceDep) -> Response:
    """List the served model under its ID and its aliases."""
    names = service.model_names
    return JsonResponse({"object": "list", "data": [_model(name, service) for name in names]})


@router.get("/models/{name:path}", responses=describe_errors({401, 404}, OpenAIErrorResponse))
async def model(name: str, service: ServiceDep) -> Response:
    """Describe the served model."""
    service.check_model_name(name)
    return JsonResponse(_model(name, service))


def _embed_call(body: OpenAIEmbedRequest, service: EmbeddingService) -> EmbedCall:
    """Translate a body, NIM's conventions included.

    Raises:
        ModelNotFoundError: The model is not the served one.
        InvalidRequestError: Fields contradict each other.
    """
    by_field: InputType | None = "document" if body.input_type == "passage" else body.input_type
    by_name = _input_type_of_name(body.model, service)
    if by_name is None:
        service.check_model_name(body.model)
    elif by_field not in (None, by_name):
        msg = (
            f"`model` {body.model!r} contradicts `input_type` {body.input_type!r}. Send one of "
            "them, or make them agree."
        )
        raise InvalidRequestError(msg, param="input_type")
    return EmbedCall(
        body.input,
        input_type=by_field or by_name or "document",
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
