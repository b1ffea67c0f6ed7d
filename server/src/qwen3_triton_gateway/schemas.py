"""Parsing and validation of request bodies, and the field types that several dialects share."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar, cast

import pydantic_core
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic.json_schema import WithJsonSchema

from .errors import InvalidRequestError, describe_invalid_value
from .settings import MAX_TEXTS, MIN_DIMENSIONS

Body = TypeVar("Body", bound=BaseModel)

MAX_SHOWN_CHARACTERS = 40
JSON_TYPES: dict[type, str] = {str: "a string", list: "an array", dict: "an object"}


class TokenIdsError(ValueError):
    """Token IDs where text is expected."""


def _texts(value: object) -> object:
    """Turn a string into a list of one, and report token IDs as what they are."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        items = cast("list[object]", value)
        if items and isinstance(items[0], (int, list)):
            raise TokenIdsError
        return items
    return value


def _integral(value: object) -> object:
    """Accept 256.0, which is an integer in JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _one_or_more(item: dict[str, Any]) -> WithJsonSchema:
    """Describe what `_texts` accepts: OpenAI's and TEI's clients send a single text as a string."""
    items = {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_TEXTS}
    return WithJsonSchema({"anyOf": [item, items]})


# For the OpenAPI document: the embedder refuses blank texts, with their index, and dimensions that
# the model does not have.
NOT_BLANK: dict[str, Any] = {"type": "string", "pattern": r"\S"}
Text: TypeAlias = Annotated[str, WithJsonSchema(NOT_BLANK)]
Texts: TypeAlias = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
OneOrMoreTexts: TypeAlias = Annotated[Texts, BeforeValidator(_texts), _one_or_more(NOT_BLANK)]
# A blank text has tokens, but no embedding.
TokenizableTexts: TypeAlias = Annotated[
    Texts, BeforeValidator(_texts), _one_or_more({"type": "string"})
]
Dimensions: TypeAlias = Annotated[
    int,
    BeforeValidator(_integral),
    WithJsonSchema({"type": "integer", "minimum": MIN_DIMENSIONS}),
]

# The instruction is part of a query's prompt; a document has none.
INSTRUCTION_NEEDS_QUERY: dict[str, Any] = {
    "if": {"required": ["instruction"], "properties": {"instruction": {"type": "string"}}},
    "then": {"required": ["input_type"], "properties": {"input_type": {"const": "query"}}},
}


def never_together(optional: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Describe values that exclude each other.

    Args:
        optional: Schemas by the names of fields that count only where they are set.
        **fields: Schemas by the names of the fields.
    """
    return {"not": {"required": [*fields], "properties": fields | (optional or {})}}


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        InvalidRequestError: The JSON is malformed, or is not an object.
    """
    try:
        value: object = pydantic_core.from_json(body)
    except ValueError as error:
        msg = f"The body is not valid JSON: {error}."
        raise InvalidRequestError(msg, code="malformed_json") from None
    if not isinstance(value, dict):
        msg = f"The body must be a JSON object (got {_shown(value)})."
        raise InvalidRequestError(msg)
    return cast("dict[str, Any]", value)


def validate(schema: type[Body], value: dict[str, Any]) -> Body:
    """Validate a JSON object against a schema.

    Raises:
        InvalidRequestError: A field is unknown, missing or invalid; the message names it and says
            what is allowed.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        problems: list[dict[str, Any]] = [dict(item) for item in error.errors(include_url=False)]
        # A misspelled field is reported as unknown and as missing; its own name helps more.
        problems.sort(key=lambda item: item["type"] != "extra_forbidden")
        raise _invalid(schema, problems[0]) from None


def _invalid(schema: type[BaseModel], error: dict[str, Any]) -> InvalidRequestError:
    param = _path(schema, error["loc"])
    context: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            allowed = ", ".join(f"`{name}`" for name in schema.model_fields)
            msg = f"Unknown field `{param}`. Allowed fields: {allowed}."
            return InvalidRequestError(msg, param=param, code="unknown_field")
        case "missing":
            return InvalidRequestError(f"`{param}` is missing.", param=param)
        case "too_long":
            # Pydantic stops counting at the first item too many.
            limit = context["max_length"]
            msg = f"`{param}` has more than {limit} items. Split them into several requests."
            return InvalidRequestError(msg, param=param, code="too_many_texts")
        case "too_short":
            msg = f"`{param}` is empty. Send 1 to {MAX_TEXTS} texts."
            return InvalidRequestError(msg, param=param)
        case "value_error" if isinstance(context["error"], TokenIdsError):
            msg = (
                f"`{param}` contains token IDs, which probably come from another model's "
                "tokenizer. Send strings instead. LangChain's OpenAIEmbeddings sends them with "
                "`check_embedding_ctx_length=False`."
            )
            return InvalidRequestError(msg, param=param, code="token_ids")
        case _:
            shown = _shown(error["input"], is_choice=error["type"] == "literal_error")
            return InvalidRequestError(
                describe_invalid_value(param, error["msg"], shown), param=param
            )


def _path(schema: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Write a location the way callers do: `texts[3]`, without the names of a union's members."""
    field, *rest = location
    if str(field) not in schema.model_fields:
        return str(field)
    return str(field) + "".join(f"[{part}]" for part in rest if isinstance(part, int))


def _shown(value: object, *, is_choice: bool = False) -> str:
    """Write a value as JSON, or its type: texts are private, and clients log error messages."""
    name = JSON_TYPES.get(type(value))
    if name is not None and not (is_choice and isinstance(value, str)):
        return name
    shown = pydantic_core.to_json(value).decode()
    return shown if len(shown) <= MAX_SHOWN_CHARACTERS else (name or "a number")
