"""Ollama's dialect, as far as its clients embed: `POST /api/embed` and what they ask before."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import WithJsonSchema

from ..dialects import OllamaErrorResponse
from ..embedder import EmbedCall
from ..responses import VECTORS, JsonResponse
from ..schemas import NOT_BLANK, LenientDimensions, Text, one_or_more, validate
from ..service import EmbeddingService
from ..settings import MAX_TEXTS
from .exchange import (
    ServiceDep,
    ServiceRoute,
    describe_call,
    describe_errors,
    open_exchange,
    read_json,
)
from .openai import resolve_model

router: APIRouter = APIRouter(prefix="/api", tags=["ollama"], route_class=ServiceRoute)

# The release whose API reference this follows; clients ask whether it is new enough.
OLLAMA_VERSION = "0.13.0"
DEFAULT_TAG = ":latest"
STARTED = datetime.now(UTC).isoformat()
NAMELESS_ERRORS = {401}


def _texts_or_none(value: object) -> object:
    """Turn what only loads a model in Ollama (no input, or an empty one) into an empty list."""
    return [] if value in (None, "") else one_or_more(value)


class OllamaEmbedRequest(BaseModel):
    """The body of `POST /api/embed`. Unknown fields are ignored, `options` among them."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    input: Annotated[
        list[Text],
        Field(max_length=MAX_TEXTS),
        BeforeValidator(_texts_or_none),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "pattern": r"^$|\S"},
                    {"type": "array", "items": NOT_BLANK, "maxItems": MAX_TEXTS},
                    {"type": "null"},
                ]
            }
        ),
    ] = Field(default_factory=list[str])
    truncate: bool | None = None
    dimensions: LenientDimensions | None = None


class OllamaPromptRequest(BaseModel):
    """The body of `POST /api/embeddings`, which `/api/embed` replaced."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    prompt: Annotated[
        str | None,
        WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^$|\S"}, {"type": "null"}]}),
    ] = None


class OllamaShowRequest(BaseModel):
    """The body of `POST /api/show`; old clients call the model `name`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    name: str | None = None


class OllamaEmbedResponse(BaseModel):
    """The response to `POST /api/embed`; durations are in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaPromptResponse(BaseModel):
    embedding: list[float]


@router.post(
    "/embed",
    response_model=OllamaEmbedResponse,
    **describe_call(
        OllamaEmbedRequest, errors=OllamaErrorResponse, example={"input": "hello world"}
    ),
)
async def embed(request: Request, service: ServiceDep) -> Response:
    """Embed one text or a list of up to 2,048, truncated unless `truncate` is false."""
    began = time.perf_counter_ns()
    with await open_exchange(request, service) as exchange:
        body = validate(OllamaEmbedRequest, exchange.body)
        alias = resolve_model(_without_tag(body.model, service), service)
        call = EmbedCall(
            body.input,
            input_type=alias.input_type or "document",
            instruction=alias.instruction,
            dimensions=body.dimensions,
            truncation="refuse" if body.truncate is False else "end",
        )
        answer = {"model": body.model or service.embedder.model_id, "load_duration": 0}
        if not body.input:
            service.embedder.check_dimensions(body.dimensions)
            return JsonResponse(answer | {"embeddings": []} | _spent(began, 0))
        embedded = await exchange.embed(call)
        spent = _spent(began, embedded.embeddings.prompt_tokens)
        return embedded.respond(answer | {"embeddings": VECTORS} | spent, "float")


@router.post(
    "/embeddings",
    response_model=OllamaPromptResponse,
    **describe_call(
        OllamaPromptRequest, errors=OllamaErrorResponse, example={"prompt": "hello world"}
    ),
)
async def embed_prompt(request: Request, service: ServiceDep) -> Response:
    """Embed one text, for clients older than `/api/embed`."""
    with await open_exchange(request, service) as exchange:
        body = validate(OllamaPromptRequest, exchange.body)
        alias = resolve_model(_without_tag(body.model, service), service)
        if not body.prompt:
            return JsonResponse({"embedding": []})
        call = EmbedCall(
            [body.prompt],
            input_type=alias.input_type or "document",
            instruction=alias.instruction,
        )
        answer = await exchange.embed(call)
        return answer.respond({"embedding": answer.embeddings.vectors[0]})


@router.get("/tags", responses=describe_errors(NAMELESS_ERRORS, OllamaErrorResponse))
async def tags(service: ServiceDep) -> dict[str, Any]:
    """List the embedding model under its ID and its aliases."""
    names = service.served_embedder.names if service.served_embedder else []
    return {"models": [_model(name, service) for name in names]}


@router.post(
    "/show",
    response_model=dict[str, Any],
    **describe_call(OllamaShowRequest, errors=OllamaErrorResponse),
)
async def show(request: Request, service: ServiceDep) -> Response:
    """Describe the served model."""
    body = validate(OllamaShowRequest, await read_json(request))
    resolve_model(_without_tag(body.model or body.name, service), service)
    info: dict[str, Any] = {
        "general.architecture": "qwen3",
        "qwen3.context_length": service.settings.max_length,
    }
    spec = service.embedder.spec
    if spec is not None:
        info["qwen3.embedding_length"] = spec.hidden_size
    described = {
        "details": _details(service),
        "model_info": info,
        "capabilities": ["embedding"],
        "modified_at": STARTED,
    }
    return JsonResponse(described)


@router.get("/version", responses=describe_errors(NAMELESS_ERRORS, OllamaErrorResponse))
async def version() -> dict[str, str]:
    """Return the release of Ollama whose API this follows."""
    return {"version": OLLAMA_VERSION}


def _without_tag(name: str | None, service: EmbeddingService) -> str | None:
    """Return the name without the tag that Ollama's clients add, unless an alias has it."""
    if name and name not in service.embedder.names:
        return name.removesuffix(DEFAULT_TAG)
    return name or None


def _spent(began: int, tokens: int) -> dict[str, int]:
    return {"total_duration": time.perf_counter_ns() - began, "prompt_eval_count": tokens}


def _model(name: str, service: EmbeddingService) -> dict[str, Any]:
    spec = service.embedder.spec
    return {
        "name": name,
        "model": name,
        "modified_at": STARTED,
        "size": 0,
        "digest": spec.weights_digest if spec else "",
        "details": _details(service),
    }


def _details(service: EmbeddingService) -> dict[str, Any]:
    spec = service.embedder.spec
    return {
        "parent_model": "",
        "format": "onnx",
        "family": "qwen3",
        "families": ["qwen3"],
        "parameter_size": "",
        "quantization_level": spec.output.dtype.name if spec else "",
    }
