"""Reranking, in the dialects of TEI, Cohere, Jina, NVIDIA NIM and vLLM.

Sources: https://huggingface.github.io/text-embeddings-inference (`/rerank`),
https://docs.cohere.com/reference/rerank, https://jina.ai/reranker,
https://docs.voyageai.com/reference/reranker-api,
https://docs.nvidia.com/nim/nemo-retriever/text-reranking (`/v1/ranking`), and vLLM's
`vllm/entrypoints/pooling/scoring/protocol.py` (`/score`, `/v1/score`). NIM's errors:
https://github.com/langchain-ai/langchain-nvidia/pull/299.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from ..dialects import (
    Dialect,
    JinaErrorResponse,
    NimErrorResponse,
    OpenAIErrorResponse,
    RerankErrorResponse,
)
from ..errors import InvalidRequestError
from ..reranker import RerankCall, Scores
from ..schemas import limit_tokens, validate
from .answers import RerankAnswer
from .exchange import Exchange, ServiceDep, ServiceRoute, describe_call, open_exchange
from .rerank_bodies import (
    CohereRerankRequest,
    CohereRerankResponse,
    NimRankingRequest,
    NimRankingResponse,
    ScoreRequest,
    ScoreResponse,
    TeiRank,
    TeiRerankRequest,
    joined,
)

router: APIRouter = APIRouter(tags=["rerank"], route_class=ServiceRoute)

# Cohere counts a query with so many documents as one search.
DOCUMENTS_PER_SEARCH = 100
# What vLLM calls the queries and the documents of a request.
SCORE_FIELDS = (
    ("text_1", "text_2"),
    ("data_1", "data_2"),
    ("queries", "documents"),
    ("queries", "items"),
)
EXAMPLE: dict[str, Any] = {
    "query": "What is deep learning?",
    "texts": ["Neural networks.", "A cheesecake."],
}
COHERE_EXAMPLE: dict[str, Any] = {"query": EXAMPLE["query"], "documents": EXAMPLE["texts"]}


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
    with await open_exchange(request, service, service.reranker) as exchange:
        return await _rerank_either(exchange, usual="texts")


@router.post(
    "/v1/rerank",
    response_model=CohereRerankResponse | list[TeiRank],
    **describe_call(
        CohereRerankRequest,
        TeiRerankRequest,
        errors=JinaErrorResponse | RerankErrorResponse,
        example=COHERE_EXAMPLE,
    ),
)
async def jina_rerank(request: Request, service: ServiceDep) -> Response:
    """Score 1 to 2,048 documents against a query, as Jina and Cohere's version 1 do.

    With `texts` instead of `documents`, the call is that of `POST /rerank`.
    """
    with await open_exchange(request, service, service.reranker) as exchange:
        return await _rerank_either(exchange, usual="documents")


@router.post(
    "/v2/rerank",
    response_model=CohereRerankResponse,
    **describe_call(CohereRerankRequest, errors=JinaErrorResponse, example=COHERE_EXAMPLE),
)
async def cohere_rerank(request: Request, service: ServiceDep) -> Response:
    """Score 1 to 2,048 documents against a query, as Cohere's version 2 does."""
    with await open_exchange(request, service, service.reranker) as exchange:
        return await _rerank_documents(exchange, version="2")


async def _rerank_either(exchange: Exchange, *, usual: str) -> Response:
    """Answer as TEI or as Jina do, by what the documents are called in the body."""
    sent = [name for name in ("texts", "documents") if name in exchange.body] or [usual]
    if len(sent) > 1:
        msg = "Both `texts` and `documents` are set. Send one of them."
        raise InvalidRequestError(msg, param="documents")
    if sent == ["documents"]:
        exchange.use_dialect(Dialect.JINA)
        return await _rerank_documents(exchange, version="1")
    exchange.use_dialect(Dialect.RERANK)
    return await _rerank_texts(exchange)


async def _rerank_texts(exchange: Exchange) -> Response:
    body = validate(TeiRerankRequest, exchange.body)
    exchange.service.reranker.alias_of(body.model)
    answer = await exchange.rerank(
        RerankCall(
            [body.query] * len(body.texts),
            body.texts,
            instruction=body.instruction,
            truncate=body.truncate is not False,
        )
    )
    values = _values_of(answer.scores, is_raw=body.raw_scores is True)
    ranked = _ranked(answer.scores)[: body.top_n or None]
    ranks: list[dict[str, Any]] = [{"index": index, "score": values[index]} for index in ranked]
    if body.return_text:
        ranks = [rank | {"text": body.texts[rank["index"]]} for rank in ranks]
    return answer.respond(ranks)


async def _rerank_documents(exchange: Exchange, *, version: str) -> Response:
    reranker = exchange.service.reranker
    sent = _as_list(exchange.body.get("documents"))
    body = validate(CohereRerankRequest, _with_ranked_fields(exchange.body, sent))
    reranker.alias_of(body.model)
    answer = await exchange.rerank(
        RerankCall(
            [body.query] * len(body.documents),
            body.documents,
            instruction=body.instruction or body.instruct,
            truncate=body.truncate is not False and body.truncation is not False,
            max_tokens=limit_tokens(body.truncate_prompt_tokens, reranker.max_length),
            max_document_tokens=body.max_tokens_per_doc or None,
            priority=body.priority or 0,
            documents_field="documents",
        )
    )
    is_raw = body.use_activation is False or body.raw_scores is True
    values = _values_of(answer.scores, is_raw=is_raw)
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": values[index]}
        for index in _ranked(answer.scores)[: body.limit]
    ]
    if body.return_documents:
        for result in results:
            index = result["index"]
            result["document"] = {"text": body.documents[index]} | _texts_in(sent[index])
    content = {
        "id": str(uuid.uuid4()),
        "results": results,
        "meta": _meta(answer, len(body.documents), version),
        "model": reranker.model_id,
        "usage": answer.usage,
    }
    if body.is_voyages:
        content |= {"object": "list", "data": [_as_voyages(result) for result in results]}
    return answer.respond(content)


def _as_voyages(result: dict[str, Any]) -> dict[str, Any]:
    """Write a result with the bare text of its document."""
    document = result.get("document")
    return result if document is None else {**result, "document": document["text"]}


@router.post(
    "/v1/ranking",
    response_model=NimRankingResponse,
    **describe_call(NimRankingRequest, errors=NimErrorResponse),
)
async def ranking(request: Request, service: ServiceDep) -> Response:
    """Score 1 to 2,048 passages against a query, as NVIDIA NIM does: `logit` is a raw score.

    A passage that is too long is refused, unless `truncate` is END.
    """
    with await open_exchange(request, service, service.reranker) as exchange:
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
        ranked = _ranked(answer.scores)[: body.top_k or body.top_n or None]
        rankings = [{"index": index, "logit": logits[index]} for index in ranked]
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
    with await open_exchange(request, service, service.reranker) as exchange:
        sent, (left, right) = _with_usual_names(exchange.body)
        body = validate(ScoreRequest, sent, {"text_1": left, "text_2": right})
        service.reranker.alias_of(body.model)
        queries, documents = body.text_1, body.text_2
        if len(queries) not in (1, len(documents)):
            msg = (
                f"`{left}` has {len(queries)} texts and `{right}` has {len(documents)}. Send one "
                f"`{left}`, or as many as there are in `{right}`."
            )
            raise InvalidRequestError(msg, param=left)
        answer = await exchange.rerank(
            RerankCall(
                queries * len(documents) if len(queries) == 1 else queries,
                documents,
                instruction=body.instruction,
                truncate=body.truncate_prompt_tokens is not None
                if body.truncate is None
                else body.truncate,
                max_tokens=limit_tokens(body.truncate_prompt_tokens, service.reranker.max_length),
                max_document_tokens=body.max_tokens_per_doc or None,
                priority=body.priority or 0,
                queries_field=left,
                documents_field=right,
            )
        )
        values = _values_of(answer.scores, is_raw=body.use_activation is False)
        return answer.respond(
            {
                "id": f"score-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": service.reranker.model_id,
                "data": [
                    {"index": index, "object": "score", "score": value}
                    for index, value in enumerate(values)
                ],
                "usage": answer.usage,
            }
        )


def _with_usual_names(body: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, str]]:
    """Return a body of `/score` with `text_1` and `text_2`, and what they were called."""
    usual = SCORE_FIELDS[0]
    names = max(SCORE_FIELDS, key=lambda pair: len(body.keys() & set(pair)))
    renamed = {name: body[sent] for name, sent in zip(usual, names, strict=True) if sent in body}
    return body | renamed, names


def _as_list(documents: object) -> list[object]:
    return cast("list[object]", documents) if isinstance(documents, list) else [documents]


def _texts_in(document: object) -> dict[str, str]:
    """Return the text fields of a document that was sent as an object, as Cohere does."""
    fields = cast("dict[str, object]", document) if isinstance(document, dict) else {}
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def _with_ranked_fields(body: dict[str, Any], documents: list[object]) -> dict[str, Any]:
    """Build the text of documents that are objects from the fields in Cohere's `rank_fields`.

    Raises:
        InvalidRequestError: A document has none of them.
    """
    sent = body.get("rank_fields")
    if not (isinstance(sent, list) and sent):
        return body
    names = [name for name in cast("list[object]", sent) if isinstance(name, str)]

    def ranked(index: int, document: object) -> object:
        if not isinstance(document, dict):
            return document
        fields = cast("dict[str, object]", document)
        texts = [fields[name] for name in names if name in fields]
        if not texts:
            msg = f"Document {index} has none of the fields in `rank_fields`. Name one that it has."
            raise InvalidRequestError(msg, index=index, param=f"documents[{index}]")
        return fields | {"text": joined(texts)}

    return body | {"documents": [ranked(index, item) for index, item in enumerate(documents)]}


def _values_of(scores: Scores, *, is_raw: bool) -> list[float]:
    values: list[float] = (scores.raw if is_raw else scores.probabilities).tolist()
    return values


def _ranked(scores: Scores) -> Sequence[int]:
    """Return the indices of documents, the most relevant first, and equal ones in their order."""
    # By raw scores: probabilities near 0 and 1 are rounded to the same number.
    ranked: list[int] = (-scores.raw).argsort(kind="stable").tolist()
    return ranked


def _meta(answer: RerankAnswer, documents: int, version: str) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": {"search_units": math.ceil(documents / DOCUMENTS_PER_SEARCH)},
        "tokens": {"input_tokens": answer.scores.prompt_tokens, "output_tokens": 0},
    }
    if answer.scores.truncated:
        indices = ", ".join(map(str, answer.scores.truncated))
        meta["warnings"] = [f"These documents were truncated: {indices}."]
    return meta
