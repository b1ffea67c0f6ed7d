"""The native dialect, `POST /embed`, which the runbook's callers keep using unchanged."""

from __future__ import annotations

from typing import ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from ..dialects import Dialect, ErrorResponse, TeiErrorResponse
from ..embedder import EmbedCall
from ..errors import InvalidRequestError
from ..responses import VECTORS, EncodingFormat
from ..schemas import INSTRUCTION_NEEDS_QUERY, Dimensions, Texts, Usage, validate
from ..tokenization import InputType
from . import tei
from .exchange import (
    Exchange,
    ServiceDep,
    ServiceRoute,
    choose_input_type,
    choose_instruction,
    describe_call,
    open_exchange,
)

router: APIRouter = APIRouter(tags=["native"], route_class=ServiceRoute)


class EmbedRequest(BaseModel):
    """The body of `POST /embed`. Unknown fields are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, json_schema_extra=INSTRUCTION_NEEDS_QUERY
    )

    texts: Texts
    model: str | None = None
    input_type: InputType = "document"
    instruction: str | None = None
    dimensions: Dimensions | None = None
    truncate: bool = True
    encoding_format: EncodingFormat = "float"


class EmbedResponse(BaseModel):
    """The response to `POST /embed`; `embeddings[i]` belongs to `texts[i]`."""

    embeddings: list[list[float]] | list[str]
    model: str
    dimensions: int
    usage: Usage
    truncated: list[int]
    fingerprint: str


@router.post(
    "/embed",
    response_model=EmbedResponse | tei.Vectors,
    **describe_call(
        EmbedRequest,
        tei.TeiEmbedRequest,
        errors=ErrorResponse | TeiErrorResponse,
        example={"texts": ["hello world"], "input_type": "query"},
    ),
)
async def embed(request: Request, service: ServiceDep) -> Response:
    """Embed 1 to 2,048 texts; `embeddings[i]` belongs to `texts[i]` and has norm 1.

    With `inputs` instead of `texts`, the call follows text-embeddings-inference and returns a bare
    array of vectors.
    """
    with await open_exchange(request, service) as exchange:
        if "inputs" not in exchange.body:
            return await _embed_texts(exchange)
        if "texts" in exchange.body:
            msg = "Both `texts` and `inputs` are set. Send one of them."
            raise InvalidRequestError(msg, param="inputs")
        return await tei.embed_inputs(exchange)


async def _embed_texts(exchange: Exchange) -> Response:
    exchange.use_dialect(Dialect.NATIVE)
    body = validate(EmbedRequest, exchange.body)
    alias = exchange.service.embedder.alias_of(body.model)
    sent = body.input_type if "input_type" in body.model_fields_set else None
    input_type = choose_input_type(sent, alias, body.model)
    answer = await exchange.embed(
        EmbedCall(
            body.texts,
            input_type=input_type,
            instruction=choose_instruction(body.instruction, alias, input_type),
            dimensions=body.dimensions,
            truncation="end" if body.truncate else "refuse",
        )
    )
    return answer.respond(
        {
            "embeddings": VECTORS,
            "model": exchange.service.embedder.model_id,
            "dimensions": answer.dimensions,
            "usage": answer.usage,
            "truncated": answer.embeddings.truncated,
            "fingerprint": answer.fingerprint,
        },
        body.encoding_format,
    )
