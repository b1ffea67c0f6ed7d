"""Cohere's dialect, `POST /v2/embed`, for texts."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..dialects import CohereErrorResponse
from ..embedder import EmbedCall, Truncation
from ..errors import InvalidRequestError
from ..responses import VECTORS, VectorForm
from ..schemas import MIN_TOKENS, LenientDimensions, Texts, integral, never_together, validate
from .answers import EmbedAnswer
from .exchange import ServiceDep, ServiceRoute, describe_call, open_exchange
from .openai import resolve_model

router: APIRouter = APIRouter(prefix="/v2", tags=["cohere"], route_class=ServiceRoute)

BITS_PER_BYTE = 8

TRUNCATIONS: dict[str | None, Truncation] = {
    None: "end",
    "NONE": "refuse",
    "END": "end",
    "START": "start",
}


class CohereEmbedRequest(BaseModel):
    """The body of `POST /v2/embed`. Unknown fields are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="ignore",
        strict=True,
        # Truncating the start of a query would remove its instruction.
        json_schema_extra=never_together(
            truncate={"const": "START"}, input_type={"const": "search_query"}
        ),
    )

    texts: Texts
    model: str | None = None
    input_type: (
        Literal["search_document", "search_query", "classification", "clustering"] | None
    ) = None
    embedding_types: Annotated[list[VectorForm], Field(min_length=1)] | None = None
    output_dimension: LenientDimensions | None = None
    max_tokens: Annotated[int, Field(ge=MIN_TOKENS), BeforeValidator(integral)] | None = None
    truncate: Literal["NONE", "START", "END"] | None = None


class CohereEmbedResponse(BaseModel):
    """The response to `POST /v2/embed`; `meta.warnings` names texts that were truncated.

    Vectors are numbers in `float`, and whole numbers of eight bits in `int8`, `uint8`, `binary` and
    `ubinary`; in the last two, each holds eight dimensions.
    """

    id: str
    embeddings: dict[VectorForm, list[list[float]] | list[list[int]] | list[str]]
    response_type: Literal["embeddings_by_type"]
    meta: dict[str, Any]


@router.post(
    "/embed",
    response_model=CohereEmbedResponse,
    **describe_call(
        CohereEmbedRequest,
        errors=CohereErrorResponse,
        example={"texts": ["hello world"], "input_type": "search_query"},
    ),
)
async def embed(request: Request, service: ServiceDep) -> Response:
    """Embed 1 to 2,048 texts; those that are too long are truncated unless `truncate` is NONE."""
    with await open_exchange(request, service) as exchange:
        body = validate(CohereEmbedRequest, exchange.body)
        alias = resolve_model(body.model, service)
        types: list[VectorForm] = list(dict.fromkeys(body.embedding_types or ["float"]))
        _check_packing(types, body.output_dimension or service.settings.output_dim)
        by_name = alias.input_type == "query"
        is_query = body.input_type == "search_query" if body.input_type else by_name
        limit = service.settings.max_length
        answer = await exchange.embed(
            EmbedCall(
                body.texts,
                input_type="query" if is_query else "document",
                instruction=alias.instruction if is_query else None,
                dimensions=body.output_dimension,
                truncation=TRUNCATIONS[body.truncate],
                max_tokens=min(body.max_tokens or limit, limit),
                truncate_hint="send `truncate: END`",
            )
        )
        return answer.respond(
            {
                "id": str(uuid.uuid4()),
                "embeddings": dict.fromkeys(types, VECTORS),
                "response_type": "embeddings_by_type",
                "meta": _meta(answer),
            },
            *types,
        )


def _check_packing(types: list[VectorForm], dimensions: int) -> None:
    packed = next((name for name in types if name in ("binary", "ubinary")), None)
    if packed and dimensions % BITS_PER_BYTE:
        msg = (
            f"`embedding_types` has {packed!r}, which packs eight dimensions into a byte, but the "
            f"vectors have {dimensions}. Send an `output_dimension` that is a multiple of 8."
        )
        raise InvalidRequestError(msg, param="output_dimension")


def _meta(answer: EmbedAnswer) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": answer.embeddings.prompt_tokens},
    }
    if answer.embeddings.truncated:
        indices = ", ".join(map(str, answer.embeddings.truncated))
        meta["warnings"] = [f"These texts were truncated: {indices}."]
    return meta
