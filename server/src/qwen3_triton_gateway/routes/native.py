"""`POST /embed`: the native dialect, which the runbook's callers keep using unchanged."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from ..embedder import EmbedCall
from ..errors import InvalidRequestError
from ..responses import Dialect
from ..schemas import EmbedRequest, EmbedResponse, ErrorResponse, TeiEmbedRequest, validate
from . import tei
from .dependencies import ServiceDep
from .embedding import Exchange, open_exchange

router = APIRouter(tags=["native"])

ERROR_STATUSES = (400, 401, 404, 413, 429, 502, 503, 504)
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse} for code in ERROR_STATUSES
}
# The body is read as bytes and validated by pydantic's own JSON parser, so its schema is stated
# here rather than in the signature.
OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        EmbedRequest.model_json_schema(),
                        TeiEmbedRequest.model_json_schema(),
                    ]
                }
            }
        },
    }
}


@router.post("/embed", response_model=EmbedResponse, responses=ERRORS, openapi_extra=OPENAPI)
async def embed(request: Request, service: ServiceDep) -> Response:
    """Embed 1 to 2,048 texts; `embeddings[i]` belongs to `texts[i]` and has norm 1.

    With `inputs` instead of `texts` this is text-embeddings-inference's call, answered by a bare
    array of vectors.
    """
    async with open_exchange(request, service) as exchange:
        if "inputs" not in exchange.body:
            return await _embed(exchange)
        if "texts" in exchange.body:
            msg = "`texts` and `inputs` came together: send `texts`, or TEI's `inputs` alone."
            raise InvalidRequestError(msg, param="inputs")
        return await tei.embed_inputs(exchange)


async def _embed(exchange: Exchange) -> Response:
    exchange.speak(Dialect.NATIVE)
    body = validate(EmbedRequest, exchange.body)
    exchange.service.check_model_name(body.model)
    answer = await exchange.embed(
        EmbedCall(
            body.texts,
            input_type=body.input_type,
            instruction=body.instruction,
            dimensions=body.dimensions,
            truncation="end" if body.truncate else "refuse",
        )
    )
    return answer.respond(
        {
            "embeddings": await answer.render(body.encoding_format),
            "model": exchange.service.model_id,
            "dimensions": answer.dimensions,
            "usage": answer.usage,
            "truncated": answer.embeddings.truncated,
            "fingerprint": answer.fingerprint,
        }
    )
