"""The bodies of requests and answers, as callers of each dialect see them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import WithJsonSchema

from .encoding import EncodingFormat
from .errors import InvalidRequestError
from .prompts import InputType
from .settings import MAX_TEXTS

Body = TypeVar("Body", bound=BaseModel)


class TokenIdsError(ValueError):
    """Token ids came where text is due."""


def _texts(value: object) -> object:
    """Take a string for a list of one, and tell token ids from other mistakes."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        items = cast("list[object]", value)
        if items and isinstance(items[0], (int, list)):
            raise TokenIdsError
        return items
    return value


Texts: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
# A string stands for a list of one, as OpenAI's and TEI's clients send it.
OneOrMoreTexts: TypeAlias = Annotated[
    Texts,
    BeforeValidator(_texts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "maxItems": MAX_TEXTS},
            ]
        }
    ),
]


class EmbedRequest(BaseModel):
    """`POST /embed`, the native call. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: Texts
    model: str | None = None
    input_type: InputType = "document"
    instruction: str | None = None
    dimensions: int | None = None
    truncate: bool = True
    encoding_format: EncodingFormat = "float"


class OpenAIEmbedRequest(BaseModel):
    """`POST /v1/embeddings`: OpenAI's fields, NVIDIA NIM's, and `instruction`.

    Other fields are ignored, as OpenAI's clients need. A model name may end in `-query` or
    `-passage`, NIM's way for clients that cannot send `input_type`.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    input: OneOrMoreTexts
    model: str | None = None
    dimensions: int | None = None
    encoding_format: EncodingFormat | None = None
    input_type: InputType | Literal["passage"] | None = None
    instruction: str | None = None
    truncate: bool | Literal["NONE", "END", "START"] | None = None


class TeiEmbedRequest(BaseModel):
    """`POST /` and `POST /embed` as text-embeddings-inference takes them; other fields ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    inputs: OneOrMoreTexts
    truncate: bool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None
    normalize: bool | None = None
    prompt_name: InputType | None = None
    dimensions: int | None = None
    encoding_format: EncodingFormat | None = None


class TokenizeRequest(BaseModel):
    """`POST /tokenize` as text-embeddings-inference takes it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    inputs: OneOrMoreTexts
    add_special_tokens: bool = True
    prompt_name: InputType | None = None


class Token(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbedResponse(BaseModel):
    """The answer to `POST /embed`; `embeddings[i]` belongs to `texts[i]`."""

    embeddings: list[list[float]] | list[str]
    model: str
    dimensions: int
    usage: Usage
    truncated: list[int]
    fingerprint: str


class OpenAIEmbedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAIEmbedResponse(BaseModel):
    """The answer to `POST /v1/embeddings`; `truncated` is an addition to OpenAI's."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: Usage
    truncated: list[int]


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str | None
    param: str | None


class OpenAIErrorResponse(BaseModel):
    error: ErrorDetail


class ErrorResponse(BaseModel):
    """Every error; `detail` repeats the message for callers of the runbook's gateway."""

    error: ErrorDetail
    detail: str


class TeiErrorResponse(BaseModel):
    error: str
    error_type: str


def parse_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidRequestError: malformed JSON, or something else than an object.
    """
    try:
        value: object = pydantic_core.from_json(body)
    except ValueError as error:
        msg = f"The body is not valid JSON: {error}."
        raise InvalidRequestError(msg, code="malformed_json") from None
    if not isinstance(value, dict):
        msg = f"The body has to be a JSON object (got {type(value).__name__})."
        raise InvalidRequestError(msg)
    return cast("dict[str, Any]", value)


def validate(schema: type[Body], value: dict[str, Any]) -> Body:
    """Check a JSON object against a schema.

    Raises:
        InvalidRequestError: a wrong type, an unknown or a missing field; the message names the
            field, what came and what is allowed.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        found: list[dict[str, Any]] = [dict(item) for item in error.errors(include_url=False)]
        # A misspelt field is missing as well; its own name helps more.
        found.sort(key=lambda item: item["type"] != "extra_forbidden")
        raise _invalid(schema, found[0]) from None


def _invalid(schema: type[BaseModel], error: dict[str, Any]) -> InvalidRequestError:
    param = _path(schema, error["loc"])
    context: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            allowed = ", ".join(f"`{name}`" for name in schema.model_fields)
            msg = f"Unknown field `{param}`; allowed are {allowed}."
            return InvalidRequestError(msg, param=param, code="unknown_field")
        case "missing":
            return InvalidRequestError(f"`{param}` is missing.", param=param)
        case "too_long":
            # Pydantic stops counting at the first item too many.
            msg = f"`{param}` holds more than {context['max_length']} items; send several requests."
            return InvalidRequestError(msg, param=param, code="too_many_texts")
        case "too_short":
            msg = f"`{param}` is empty; send 1 to {MAX_TEXTS} texts."
            return InvalidRequestError(msg, param=param)
        case "value_error" if isinstance(context["error"], TokenIdsError):
            msg = (
                f"`{param}` holds token ids, and of another model's tokenizer as likely as not; "
                "send strings. LangChain's OpenAIEmbeddings does with "
                "check_embedding_ctx_length=False."
            )
            return InvalidRequestError(msg, param=param, code="token_ids")
        case _:
            came = type(error["input"]).__name__
            msg = f"`{param}`: {error['msg']} (got {came})."
            return InvalidRequestError(msg, param=param)


def _path(schema: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Write a location as callers know it: `texts[3]`, without the names of a union's members."""
    field, *rest = location
    if str(field) not in schema.model_fields:
        return str(field)
    return str(field) + "".join(f"[{part}]" for part in rest if isinstance(part, int))
