"""Reranking, in the dialects of TEI, Cohere, Jina, NVIDIA NIM and vLLM.

Sources: https://huggingface.github.io/text-embeddings-inference (`/rerank`),
https://docs.cohere.com/reference/rerank, https://jina.ai/reranker,
https://docs.nvidia.com/nim/nemo-retriever/text-reranking (`/v1/ranking`), and vLLM's
`vllm/entrypoints/pooling/score/protocol.py` (`/score`, `/v1/score`).
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import WithJsonSchema

from ..errors import InvalidRequestError
from ..reranker import RerankCall, Scores
from ..responses import (
    Dialect,
    JinaErrorResponse,
    OpenAIErrorResponse,
    RerankErrorResponse,
)
from ..schemas import NOT_BLANK, OneOrMoreTexts, Text, Texts, Usage, integral, validate
from ..settings import MAX_TEXTS
from .exchange import (
    Exchange,
    RerankAnswer,
    ServiceDep,
    ServiceRoute,
    describe_call,
    open_rerank_exchange,
)

router: APIRouter = APIRouter(tags=["rerank"], route_class=ServiceRoute)

# Cohere counts a query with so many documents as one search.
DOCUMENTS_PER_SEARCH = 100
# vLLM's way to say "whatever the model allows".
MODEL_LIMIT = -1
# What vLLM calls the queries and the documents of a request.
SCORE_FIELDS = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"))
EXAMPLE: dict[str, Any] = {
    "query": "What is deep learning?",
    "texts": ["Neural networks.", "A cheesecake."],
}
COHERE_EXAMPLE: dict[str, Any] = {"query": EXAMPLE["query"], "documents": EXAMPLE["texts"]}

TopN: TypeAlias = Annotated[int, Field(ge=1), BeforeValidator(integral)]


class TeiRerankRequest(BaseModel):
    """The body of `POST /rerank`. `model` and `instruction` are our own; others are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    query: Text
    texts: Texts
    model: str | None = None
    instruction: str | None = None
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None
    # Only a document's end is truncated.
    truncation_direction: Literal["right", "Right"] | None = None


class TeiRank(BaseModel):
    """A text in the response to `POST /rerank`, which begins with the most relevant."""

    index: int
    score: float
    text: str | None = None


class DocumentText(BaseModel):
    """A document as an object."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    text: Text


def _text_of(value: object) -> object:
    """Return the text of a document that is an object."""
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return fields.get("text", cast("object", value))


Document: TypeAlias = Annotated[
    str,
    BeforeValidator(_text_of),
    WithJsonSchema(
        {
            "anyOf": [
                NOT_BLANK,
                {"type": "object", "properties": {"text": NOT_BLANK}, "required": ["text"]},
            ]
        }
    ),
]
Documents: TypeAlias = Annotated[list[Document], Field(min_length=1, max_length=MAX_TEXTS)]


class CohereRerankRequest(BaseModel):
    """The body of `POST /v1/rerank` and `/v2/rerank`, as Cohere and Jina have it.

    `instruction` and `truncate` are our own. Unknown fields are ignored.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    query: Text
    documents: Documents
    model: str | None = None
    top_n: TopN | None = None
    return_documents: bool | None = None
    rank_fields: list[Literal["text"]] | None = None
    max_tokens_per_doc: TopN | None = None
    instruction: str | None = None
    truncate: bool = True


class RerankResult(BaseModel):
    index: int
    relevance_score: float
    document: DocumentText | None = None


class CohereRerankResponse(BaseModel):
    """The response to `POST /v1/rerank` and `/v2/rerank`, which begins with the most relevant.

    `id` and `meta` are Cohere's, `model` and `usage` Jina's; `meta.warnings` names documents that
    were truncated.
    """

    id: str
    results: list[RerankResult]
    meta: dict[str, Any]
    model: str
    usage: Usage


class NimRankingRequest(BaseModel):
    """The body of `POST /v1/ranking`; `instruction` is our own. Unknown fields are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    query: DocumentText
    passages: Annotated[list[DocumentText], Field(min_length=1, max_length=MAX_TEXTS)]
    model: str | None = None
    truncate: Literal["NONE", "END"] = "NONE"
    instruction: str | None = None


class NimRank(BaseModel):
    index: int
    logit: float


class NimRankingResponse(BaseModel):
    """The response to `POST /v1/ranking`, which begins with the most relevant."""

    rankings: list[NimRank]
    usage: Usage


class ScoreRequest(BaseModel):
    """The body of `POST /score`: one text or several on the left, and as many on the right.

    In place of `text_1` and `text_2` there may be `data_1` and `data_2`, or `queries` and
    `documents`. `instruction` and `truncate` are our own. Unknown fields are ignored.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    text_1: OneOrMoreTexts
    text_2: OneOrMoreTexts
    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: (
        Literal[-1] | Annotated[int, Field(ge=1), BeforeValidator(integral)] | None
    ) = None
    truncate: bool | None = None
    instruction: str | None = None


class PairScore(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreResponse(BaseModel):
    """The response to `POST /score`, in the order of the pairs."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PairScore]
    usage: Usage


@router.post(
    "/rerank",
    response_model=list[TeiRank] | CohereRerankResponse,
    **describe_call(
        TeiRerankRequest,
        CohereRerankRequest,
        errors=RerankErrorResponse | JinaErrorResponse,
        example=EXAMPLE,
    ),
)
async def rerank(request: Request, service: ServiceDep) -> Response:
    """Score 1 to 2,048 texts against a query; the most relevant comes first.

    A score is the probability of "yes", or with `raw_scores` the logit of "yes" minus that of "no".
    The answer names truncated texts in `X-Rerank-Truncated`. With `documents` instead of `texts`,
    the call is that of `POST /v1/rerank`, as vLLM has it.
    """
    async with open_rerank_exchange(request, service) as exchange:
        if "documents" in exchange.body:
            if "texts" in exchange.body:
                msg = "Both `texts` and `documents` are set. Send one of them."
                raise InvalidRequestError(msg, param="documents")
            exchange.use_dialect(Dialect.JINA)
            return await _rerank_documents(exchange, version="1")
        body = validate(TeiRerankRequest, exchange.body)
        service.reranker.alias_of(body.model)
        answer = await exchange.rerank(
            RerankCall(
                [body.query] * len(body.texts),
                body.texts,
                instruction=body.instruction,
                truncate=body.truncate is not False,
            )
        )
        scores = answer.scores
        values = (scores.raw if body.raw_scores else scores.probabilities).tolist()
        ranks = [{"index": index, "score": values[index]} for index in _ranked(scores)]
        if body.return_text:
            ranks = [rank | {"text": body.texts[rank["index"]]} for rank in ranks]
        return answer.respond(ranks)


@router.post(
    "/v1/rerank",
    response_model=CohereRerankResponse,
    **describe_call(CohereRerankRequest, errors=JinaErrorResponse, example=COHERE_EXAMPLE),
)
async def jina_rerank(request: Request, service: ServiceDep) -> Response:
    """Score 1 to 2,048 documents against a query, as Jina and Cohere's version 1 do."""
    async with open_rerank_exchange(request, service) as exchange:
        return await _rerank_documents(exchange, version="1")


@router.post(
    "/v2/rerank",
    response_model=CohereRerankResponse,
    **describe_call(CohereRerankRequest, errors=JinaErrorResponse, example=COHERE_EXAMPLE),
)
async def cohere_rerank(request: Request, service: ServiceDep) -> Response:
    """Score 1 to 2,048 documents against a query, as Cohere's version 2 does."""
    async with open_rerank_exchange(request, service) as exchange:
        return await _rerank_documents(exchange, version="2")


async def _rerank_documents(exchange: Exchange, *, version: str) -> Response:
    reranker = exchange.service.reranker
    body = validate(CohereRerankRequest, exchange.body)
    reranker.alias_of(body.model)
    answer = await exchange.rerank(
        RerankCall(
            [body.query] * len(body.documents),
            body.documents,
            instruction=body.instruction,
            truncate=body.truncate,
            max_document_tokens=body.max_tokens_per_doc,
            documents_field="documents",
        )
    )
    values = answer.scores.probabilities.tolist()
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": values[index]}
        for index in _ranked(answer.scores)[: body.top_n]
    ]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": body.documents[result["index"]]}
    return answer.respond(
        {
            "id": str(uuid.uuid4()),
            "results": results,
            "meta": _meta(answer, len(body.documents), version),
            "model": reranker.model_id,
            "usage": answer.usage,
        }
    )


@router.post(
    "/v1/ranking",
    response_model=NimRankingResponse,
    **describe_call(NimRankingRequest, errors=OpenAIErrorResponse),
)
async def ranking(request: Request, service: ServiceDep) -> Response:
    """Score 1 to 2,048 passages against a query, as NVIDIA NIM does: `logit` is a raw score.

    A passage that is too long is refused, unless `truncate` is END.
    """
    async with open_rerank_exchange(request, service) as exchange:
        body = validate(NimRankingRequest, exchange.body)
        service.reranker.alias_of(body.model)
        answer = await exchange.rerank(
            RerankCall(
                [body.query.text] * len(body.passages),
                [passage.text for passage in body.passages],
                instruction=body.instruction,
                truncate=body.truncate == "END",
                documents_field="passages",
                truncate_hint="send `truncate: END`",
            )
        )
        logits = answer.scores.raw.tolist()
        rankings = [{"index": index, "logit": logits[index]} for index in _ranked(answer.scores)]
        return answer.respond({"rankings": rankings, "usage": answer.usage})


@router.post(
    "/score",
    response_model=ScoreResponse,
    **describe_call(ScoreRequest, errors=OpenAIErrorResponse),
)
@router.post(
    "/v1/score",
    response_model=ScoreResponse,
    **describe_call(ScoreRequest, errors=OpenAIErrorResponse),
)
async def score(request: Request, service: ServiceDep) -> Response:
    """Score pairs, as vLLM does: one query and several documents, or as many of both.

    A document that is too long is refused, unless `truncate_prompt_tokens` or `truncate` is set.
    """
    async with open_rerank_exchange(request, service) as exchange:
        sent, (left, right) = _with_usual_names(exchange.body)
        body = validate(ScoreRequest, sent)
        service.reranker.alias_of(body.model)
        queries, documents = body.text_1, body.text_2
        if len(queries) not in (1, len(documents)):
            msg = (
                f"`{left}` has {len(queries)} texts and `{right}` has {len(documents)}. Send one "
                f"`{left}`, or as many as there are in `{right}`."
            )
            raise InvalidRequestError(msg, param=left)
        limit = body.truncate_prompt_tokens
        answer = await exchange.rerank(
            RerankCall(
                queries * len(documents) if len(queries) == 1 else queries,
                documents,
                instruction=body.instruction,
                truncate=limit is not None if body.truncate is None else body.truncate,
                max_tokens=None if limit == MODEL_LIMIT else limit,
                documents_field=right,
            )
        )
        scores = answer.scores
        values = scores.raw if body.use_activation is False else scores.probabilities
        return answer.respond(
            {
                "id": f"score-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": service.reranker.model_id,
                "data": [
                    {"index": index, "object": "score", "score": value}
                    for index, value in enumerate(values.tolist())
                ],
                "usage": answer.usage,
            }
        )


def _with_usual_names(body: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, str]]:
    """Return a body of `/score` with `text_1` and `text_2`, and what they were called."""
    usual = SCORE_FIELDS[0]
    names = next((pair for pair in SCORE_FIELDS if body.keys() & set(pair)), usual)
    renamed = {name: body[sent] for name, sent in zip(usual, names, strict=True) if sent in body}
    return body | renamed, names


def _ranked(scores: Scores) -> Sequence[int]:
    """Return the indices of documents, the most relevant first, and equal ones in their order."""
    # By raw scores: probabilities near 0 and 1 are rounded to the same number.
    ranked: list[int] = (-scores.raw).argsort(kind="stable").tolist()
    return ranked


def _meta(answer: RerankAnswer, documents: int, version: str) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": {"search_units": math.ceil(documents / DOCUMENTS_PER_SEARCH)},
        "tokens": {"input_tokens": answer.scores.prompt_tokens},
    }
    if answer.scores.truncated:
        indices = ", ".join(map(str, answer.scores.truncated))
        meta["warnings"] = [f"These documents were truncated: {indices}."]
    return meta
