"""The dialect of text-embeddings-inference: `inputs` in, a bare array of vectors out."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Literal, TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from ..embedder import EmbedCall, Truncation
from ..responses import Dialect, EncodingFormat, JsonResponse, TeiErrorResponse
from ..schemas import LenientDimensions, OneOrMoreTexts, TokenizableTexts, never_together, validate
from ..tokenization import InputType, Token, format_inputs
from .exchange import Exchange, ServiceDep, describe_call, open_exchange

router = APIRouter(tags=["text-embeddings-inference"])

Vectors: TypeAlias = list[list[float]] | list[str]


class TeiEmbedRequest(BaseModel):
    """The body of `POST /` and of TEI's `POST /embed`. Unknown fields are ignored."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        # Truncating the start of a query would remove its instruction.
        json_schema_extra=never_together(
            {"truncate": {"enum": [True, None]}},
            truncation_direction={"enum": ["left", "Left"]},
            prompt_name={"const": "query"},
        ),
    )

    inputs: OneOrMoreTexts
    truncate: bool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None
    normalize: bool | None = None
    prompt_name: InputType | None = None
    dimensions: LenientDimensions | None = None
    encoding_format: EncodingFormat | None = None


class TokenizeRequest(BaseModel):
    """The body of `POST /tokenize`. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    inputs: TokenizableTexts
    add_special_tokens: bool = True
    prompt_name: InputType | None = None


@router.post(
    "/",
    response_model=Vectors,
    **describe_call(TeiEmbedRequest, errors=TeiErrorResponse),
)
async def embed(request: Request, service: ServiceDep) -> Response:
    """Embed `inputs` at the server's root, where huggingface_hub's InferenceClient sends them."""
    async with open_exchange(request, service) as exchange:
        return await embed_inputs(exchange)


async def embed_inputs(exchange: Exchange) -> Response:
    """Answer a request whose body has `inputs`."""
    exchange.use_dialect(Dialect.TEI)
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
    **describe_call(TokenizeRequest, errors=TeiErrorResponse),
)
async def tokenize(request: Request, service: ServiceDep) -> Response:
    """List the tokens that the model would see for each text, without truncation."""
    async with open_exchange(request, service) as exchange:
        body = validate(TokenizeRequest, exchange.body)
        prompts = format_inputs(body.inputs, input_type=body.prompt_name or "document")
        tokenized = await asyncio.to_thread(
            service.tokenizer.list_tokens, prompts, add_special_tokens=body.add_special_tokens
        )
        return JsonResponse([[asdict(token) for token in tokens] for tokens in tokenized])


def _truncation(body: TeiEmbedRequest) -> Truncation:
    # TEI truncates by default since 1.9; this gateway also reports it.
    if body.truncate is False:
        return "refuse"
    return "start" if str(body.truncation_direction).lower() == "left" else "end"
