"""The dialect of text-embeddings-inference: `inputs` in, a bare array of vectors out."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response

from ..embedder import EmbedCall, Truncation
from ..prompts import format_inputs
from ..responses import Dialect, JsonResponse
from ..schemas import TeiEmbedRequest, TeiErrorResponse, Token, TokenizeRequest, validate
from .dependencies import ServiceDep
from .embedding import Exchange, open_exchange

router = APIRouter(tags=["text-embeddings-inference"])

ERROR_STATUSES = (400, 401, 413, 429, 502, 503, 504)
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": TeiErrorResponse} for code in ERROR_STATUSES
}


def _body(schema: type[TeiEmbedRequest | TokenizeRequest]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/",
    response_model=list[list[float]],
    responses=ERRORS,
    openapi_extra=_body(TeiEmbedRequest),
)
async def embed(request: Request, service: ServiceDep) -> Response:
    """Embed `inputs`, as huggingface_hub's InferenceClient asks for it at a server's root."""
    async with open_exchange(request, service) as exchange:
        return await embed_inputs(exchange)


async def embed_inputs(exchange: Exchange) -> Response:
    """Answer a body that holds `inputs`."""
    exchange.speak(Dialect.TEI)
    body = validate(TeiEmbedRequest, exchange.body)
    answer = await exchange.embed(
        EmbedCall(
            body.inputs,
            input_type=body.prompt_name or "document",
            dimensions=body.dimensions,
            truncation=_truncation(body),
            normalize=body.normalize is not False,
        )
    )
    return answer.respond(await answer.render(body.encoding_format or "float"))


@router.post(
    "/tokenize",
    response_model=list[list[Token]],
    responses=ERRORS,
    openapi_extra=_body(TokenizeRequest),
)
async def tokenize(request: Request, service: ServiceDep) -> Response:
    """List the tokens that the model would see of each text, uncut."""
    async with open_exchange(request, service) as exchange:
        body = validate(TokenizeRequest, exchange.body)
        prompts = format_inputs(body.inputs, input_type=body.prompt_name or "document")
        tokenized = await asyncio.to_thread(
            service.tokenizer.list_tokens, prompts, add_special_tokens=body.add_special_tokens
        )
        return JsonResponse([[asdict(token) for token in tokens] for tokens in tokenized])


def _truncation(body: TeiEmbedRequest) -> Truncation:
    # Cutting is TEI's default since its 1.9; here it is reported.
    if body.truncate is False:
        return "refuse"
    return "start" if str(body.truncation_direction).lower() == "left" else "end"
