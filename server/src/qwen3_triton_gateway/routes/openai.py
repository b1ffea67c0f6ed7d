"""OpenAI's dialect, with the additions of NVIDIA NIM, vLLM and Voyage."""

from __future__ import annotations

import time
from typing import Any, ClassVar, Literal, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from ..dialects import OpenAIErrorResponse
from ..embedder import EmbedCall, Truncation
from ..errors import InvalidRequestError, ModelNotFoundError
from ..responses import VECTORS, EncodingFormat, JsonResponse
from ..schemas import (
    INSTRUCTION_NEEDS_QUERY,
    BrokenText,
    LenientDimensions,
    OneOrMoreTexts,
    Priority,
    TokenLimit,
    Usage,
    limit_tokens,
    never_together,
    validate,
)
from ..service import EmbeddingService
from ..settings import ModelAlias
from ..tokenization import InputType
from .exchange import (
    ServiceDep,
    ServiceRoute,
    choose_input_type,
    choose_instruction,
    describe_call,
    describe_errors,
    open_exchange,
)

router: APIRouter = APIRouter(prefix="/v1", tags=["openai"], route_class=ServiceRoute)

# NIM's convention for clients that have no field for the input type.
MODEL_SUFFIXES: dict[str, InputType] = {"-query": "query", "-passage": "document"}
TRUNCATIONS: dict[bool | str, Truncation] = {
    False: "refuse",
    True: "end",
    "NONE": "refuse",
    "END": "end",
    "START": "start",
}
TRUNCATE_HINT = (
    "send `truncate: true`. If the client cannot send it, start the gateway with "
    "EMBED_OPENAI_TRUNCATE=true"
)
NUMBER_OR_TEXT = {"type": ["integer", "string"]}
QUERY = {"const": "query"}
CONTRADICTIONS: list[Any] = [
    # Truncating the start of a query would remove its instruction.
    never_together(truncate={"const": "START"}, input_type=QUERY),
    never_together(truncation_side={"const": "left"}, input_type=QUERY),
    # Two names for one thing.
    never_together(dimensions=NUMBER_OR_TEXT, output_dimension=NUMBER_OR_TEXT),
    never_together(truncate={"type": ["boolean", "string"]}, truncation={"type": "boolean"}),
]
STARTED = int(time.time())


class OpenAIEmbedRequest(BaseModel):
    """The body of `POST /v1/embeddings`: OpenAI's fields, and those of other servers.

    In place of `input` there may be `messages`, vLLM's chat form, with one text each.
    `input_type` and `truncate` are NVIDIA NIM's, `truncate_prompt_tokens`, `truncation_side` and
    `priority` vLLM's, `output_dimension`, `output_dtype` and `truncation` Voyage's, `instruction`
    our own. Unknown fields are ignored, as OpenAI's clients need. A model name may end in `-query`
    or `-passage`, NIM's convention for clients that cannot send `input_type`.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra=INSTRUCTION_NEEDS_QUERY | {"allOf": CONTRADICTIONS},
    )

    input: OneOrMoreTexts
    model: str | None = None
    dimensions: LenientDimensions | None = None
    output_dimension: LenientDimensions | None = None
    output_dtype: Literal["float"] | None = None
    encoding_format: EncodingFormat | None = None
    input_type: InputType | Literal["passage"] | None = None
    instruction: str | None = None
    truncate: bool | Literal["NONE", "END", "START"] | None = None
    truncation: bool | None = None
    truncate_prompt_tokens: TokenLimit | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Priority | None = None


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
    **describe_call(
        OpenAIEmbedRequest, errors=OpenAIErrorResponse, example={"input": "hello world"}
    ),
)
async def embeddings(request: Request, service: ServiceDep) -> Response:
    """Embed one to 2,048 strings.

    A string that is too long is refused, unless `truncate` or EMBED_OPENAI_TRUNCATE is set.
    """
    with await open_exchange(request, service) as exchange:
        sent = exchange.body
        if "messages" in sent and "input" not in sent:
            sent = sent | {"input": _texts_of_messages(sent["messages"])}
        body = validate(OpenAIEmbedRequest, sent)
        answer = await exchange.embed(_embed_call(body, service))
        return answer.respond(
            {
                "object": "list",
                "data": VECTORS,
                "model": service.embedder.model_id,
                "usage": answer.usage,
                "truncated": answer.embeddings.truncated,
            },
            body.encoding_format or "float",
            wrap=_item,
        )


@router.get("/models", responses=describe_errors({401}, OpenAIErrorResponse))
async def models(service: ServiceDep) -> Response:
    """List the served models under their IDs and their aliases."""
    names = [name for model in service.models for name in model.names]
    return JsonResponse({"object": "list", "data": [_model(name, service) for name in names]})


@router.get("/models/{name:path}", responses=describe_errors({401, 404}, OpenAIErrorResponse))
async def model(name: str, service: ServiceDep) -> Response:
    """Describe a served model."""
    return JsonResponse(_model(name, service))


def resolve_model(name: str | None, service: EmbeddingService) -> ModelAlias:
    """Return what the name of the model in a request says, its suffix included.

    An alias may have a suffix itself, which counts unless the alias has an input type.

    Raises:
        ModelNotFoundError: The model is not the served one.
    """
    embedder = service.embedder
    says_type = name in embedder.names and embedder.alias_of(name).input_type is not None
    if name is not None and name != embedder.model_id and not says_type:
        for suffix, input_type in MODEL_SUFFIXES.items():
            base = name.removesuffix(suffix)
            if base == name or base not in embedder.names:
                continue
            alias = embedder.alias_of(base)
            if alias.input_type in (None, input_type):
                return ModelAlias(input_type=input_type, instruction=alias.instruction)
    return embedder.alias_of(name)


def _embed_call(body: OpenAIEmbedRequest, service: EmbeddingService) -> EmbedCall:
    """Translate a body, the conventions of other servers included.

    Raises:
        ModelNotFoundError: The model is not the served one.
        InvalidRequestError: Fields contradict each other.
    """
    alias = resolve_model(body.model, service)
    by_field: InputType | None = "document" if body.input_type == "passage" else body.input_type
    input_type = choose_input_type(by_field, alias, body.model)
    if body.dimensions is not None and body.output_dimension is not None:
        msg = "`dimensions` and `output_dimension` mean the same. Send one of them."
        raise InvalidRequestError(msg, param="output_dimension")
    if body.truncate is not None and body.truncation is not None:
        msg = "`truncate` and `truncation` mean the same. Send one of them."
        raise InvalidRequestError(msg, param="truncation")
    return EmbedCall(
        body.input,
        input_type=input_type,
        instruction=choose_instruction(body.instruction, alias, input_type),
        dimensions=body.output_dimension if body.dimensions is None else body.dimensions,
        truncation=_truncation(body, service),
        max_tokens=limit_tokens(body.truncate_prompt_tokens, service.settings.max_length),
        priority=body.priority or 0,
        truncate_hint=TRUNCATE_HINT,
    )


def _texts_of_messages(messages: object) -> list[str | BrokenText]:
    """Return the texts of vLLM's chat form, which mteb's wrapper sends: one user's message each.

    They are embedded as they are, without a chat template, which the family is not trained with.

    Args:
        messages: The messages of one conversation, or a list of conversations.

    Raises:
        InvalidRequestError: There is more in them than one text each.
    """
    conversations: list[Any] = cast("list[Any]", messages) if isinstance(messages, list) else []
    if conversations and isinstance(conversations[0], dict):
        conversations = [conversations]
    texts: list[str | BrokenText] = []
    for index, conversation in enumerate(conversations):
        text = _text_of_conversation(conversation)
        if text is None:
            msg = (
                f"`messages[{index}]` is not one message of a user with nothing but text. Send the "
                "text as `input`, and what else the model should know as `instruction`."
            )
            raise InvalidRequestError(msg, param=f"messages[{index}]")
        texts.append(text)
    if not texts:
        raise InvalidRequestError("`messages` is empty. Send texts as `input`.", param="messages")
    return texts


def _text_of_conversation(conversation: object) -> str | BrokenText | None:
    match conversation:
        case [{"role": "user", "content": str() | BrokenText() as text}]:
            return text
        case [
            {"role": "user", "content": [{"type": "text", "text": str() | BrokenText() as text}]}
        ]:
            return text
        case _:
            return None


def _truncation(body: OpenAIEmbedRequest, service: EmbeddingService) -> Truncation:
    if body.truncate is not None:
        return TRUNCATIONS[body.truncate]
    if body.truncation is not None:
        allowed = body.truncation
    else:
        allowed = body.truncate_prompt_tokens is not None or service.settings.openai_truncate
    if not allowed:
        return "refuse"
    return "start" if body.truncation_side == "left" else "end"


def _item(index: int, vector: Any) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": vector}


def _model(name: str, service: EmbeddingService) -> dict[str, Any]:
    described = {"id": name, "object": "model", "created": STARTED, "owned_by": "qwen3-triton"}
    reranker = service.served_reranker
    if reranker is not None and name in reranker.names:
        return described | {
            "root": reranker.model_id,
            "task": "rerank",
            "max_model_len": reranker.max_length,
            "instruction": service.settings.rerank_instruction,
        }
    try:
        alias, embedder = resolve_model(name, service), service.embedder
    except ModelNotFoundError:
        raise service.unknown_model(name) from None
    described |= {
        "root": embedder.model_id,
        "task": "embed",
        "dimensions": service.settings.output_dim,
        "max_dimensions": embedder.spec.hidden_size if embedder.spec else None,
        "max_model_len": service.settings.max_length,
        "context_length": service.settings.max_length,
        "input_type": alias.input_type,
        "instruction": alias.instruction,
    }
    return {field: value for field, value in described.items() if value is not None}
