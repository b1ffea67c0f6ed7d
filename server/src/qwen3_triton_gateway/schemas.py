"""Parsing and validation of request bodies, and the field types that several dialects share."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar, cast

import pydantic_core
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic.json_schema import WithJsonSchema

from .errors import InvalidRequestError, describe_invalid_value
from .settings import MAX_TEXTS, MIN_DIMENSIONS

Body = TypeVar("Body", bound=BaseModel)

MAX_SHOWN_CHARACTERS = 40
# Texts and fields are a few thousand; token IDs, which are refused with a better message, more.
MAX_VALUES = 100_000
_BEFORE_VALUES = (b",", b"[", b"{")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
JSON_TYPES: dict[type, str] = {str: "a string", list: "an array", dict: "an object"}


BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "a UTF-8 byte order mark (BOM)",
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
NOT_UNICODE = re.compile("[\ud800-\udfff]")
ESCAPED_BYTES = range(0xDC80, 0xDD00)  # what `surrogateescape` makes of bytes that are not UTF-8


WHOLE_NUMBER = re.compile("0|[1-9][0-9]{0,5}")
# Where a request limits tokens: a token of the text and the end token, and vLLM's way to say
# "whatever the model allows".
MIN_TOKENS = 2
MODEL_LIMIT = -1


class TokenIdsError(ValueError):
    """Token IDs where text is expected."""


class NestedListError(ValueError):
    """A list of lists where a list of texts is expected."""


@dataclass(frozen=True, slots=True)
class BrokenText:
    """A string of a body that is not Unicode, in place of which no schema accepts it.

    Attributes:
        problem: What is wrong and where, without the text.
    """

    problem: str


def one_or_more(value: object) -> object:
    """Turn a string into a list of one, and report token IDs as what they are."""
    if isinstance(value, (str, BrokenText)):
        return [value]
    if isinstance(value, list):
        items = cast("list[object]", value)
        first: object = items[0] if items else None
        if isinstance(first, list):
            inner = cast("list[object]", first)
            raise TokenIdsError if inner and isinstance(inner[0], int) else NestedListError
        if isinstance(first, int):
            raise TokenIdsError
        return items
    return value


def integral(value: object) -> object:
    """Accept 256.0, which is an integer in JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def number(value: object) -> object:
    """Accept "256" too, which programs send that take the value from a form or a variable."""
    if isinstance(value, str) and WHOLE_NUMBER.fullmatch(value):
        return int(value)
    return integral(value)


def describe_number(minimum: int, pattern: str) -> WithJsonSchema:
    """Describe what `number` accepts.

    Args:
        minimum: The smallest integer.
        pattern: The strings of those that are accepted as strings.
    """
    text = {"type": "string", "pattern": pattern}
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": minimum}, text]})


def describe_one_or_more(item: dict[str, Any]) -> WithJsonSchema:
    """Describe one item or a list of them: many clients send a single text as a string."""
    items = {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_TEXTS}
    return WithJsonSchema({"anyOf": [*item.get("anyOf", [item]), items]})


# For the OpenAPI document: the embedder refuses blank texts, with their index, and dimensions that
# the model does not have.
NOT_BLANK: dict[str, Any] = {"type": "string", "pattern": r"\S"}
Text: TypeAlias = Annotated[str, WithJsonSchema(NOT_BLANK)]
Texts: TypeAlias = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
OneOrMoreTexts: TypeAlias = Annotated[
    Texts, BeforeValidator(one_or_more), describe_one_or_more(NOT_BLANK)
]
# A blank text has tokens, but no embedding.
TokenizableTexts: TypeAlias = Annotated[
    Texts, BeforeValidator(one_or_more), describe_one_or_more({"type": "string"})
]
Dimensions: TypeAlias = Annotated[
    int,
    BeforeValidator(integral),
    WithJsonSchema({"type": "integer", "minimum": MIN_DIMENSIONS}),
]
# For the OpenAPI document, whose strings get a maximum with the model too.
LenientDimensions: TypeAlias = Annotated[
    int,
    BeforeValidator(number),
    describe_number(MIN_DIMENSIONS, r"^(3[2-9]|[4-9][0-9]|[1-9][0-9]{2,5})$"),
]

# `limit_tokens` says what is allowed. The OpenAPI document gets a maximum with the model.
TokenLimit: TypeAlias = Annotated[
    int,
    BeforeValidator(integral),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "const": MODEL_LIMIT},
                {"type": "integer", "minimum": MIN_TOKENS},
            ]
        }
    ),
]

# vLLM's: lower goes first.
Priority: TypeAlias = Annotated[int, BeforeValidator(integral)]

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


def limit_tokens(sent: int | None, maximum: int) -> int | None:
    """Return the limit that vLLM's `truncate_prompt_tokens` sets, or None if it sets none.

    Args:
        sent: Its value.
        maximum: What the gateway allows.

    Raises:
        InvalidRequestError: It is not allowed.
    """
    if sent is None or sent == MODEL_LIMIT:
        return None
    if not MIN_TOKENS <= sent <= maximum:
        msg = (
            f"`truncate_prompt_tokens` is {_shown(sent)}; this gateway allows {MIN_TOKENS} to "
            f"{maximum}, or {MODEL_LIMIT} for all of them."
        )
        raise InvalidRequestError(msg, param="truncate_prompt_tokens")
    return sent


def parse_json(body: bytes | bytearray) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        InvalidRequestError: The JSON is malformed, is not an object, or has too many values.
    """
    _check_values(body)
    try:
        value: object = pydantic_core.from_json(body)
    except ValueError as error:
        value = _parse_broken_texts(body)
        if value is None:
            raise InvalidRequestError(_why(body, error), code="malformed_json") from None
    if not isinstance(value, dict):
        msg = f"The body must be a JSON object (got {_shown(value)})."
        raise InvalidRequestError(msg)
    return cast("dict[str, Any]", value)


def _why(body: bytes | bytearray, error: ValueError) -> str:
    """Explain why a body is not JSON; the parser reports a wrong encoding as line 1, column 1."""
    for mark, name in BYTE_ORDER_MARKS.items():
        if body.startswith(mark):
            return f"The body begins with {name}. Send it as UTF-8 without a byte order mark."
    if b"\0" in body[:2]:  # JSON begins with two ASCII characters (RFC 4627, 3)
        return "The body is UTF-16 or UTF-32. Send it as UTF-8."
    if not body:
        return "The body is empty. Send a JSON object."
    return f"The body is not valid JSON: {error}."


def _parse_broken_texts(body: bytes | bytearray) -> object:
    """Parse JSON some of whose strings are not Unicode, so that the text at fault can be named.

    Returns:
        The value, with a `BrokenText` for each such string; None if the JSON itself is malformed.
    """
    try:
        text = body.decode("utf-8", "surrogateescape")
        return _mark_broken(json.loads(text)) if NOT_UNICODE.search(text) or "\\u" in text else None
    except (ValueError, RecursionError):
        return None


def _mark_broken(node: object) -> object:
    if isinstance(node, str):
        found = NOT_UNICODE.search(node)
        return BrokenText(_describe_broken(found)) if found else node
    if isinstance(node, list):
        return [_mark_broken(item) for item in cast("list[object]", node)]
    if isinstance(node, dict):
        items = cast("dict[str, object]", node).items()
        return {NOT_UNICODE.sub("\N{REPLACEMENT CHARACTER}", k): _mark_broken(v) for k, v in items}
    return node


def _describe_broken(found: re.Match[str]) -> str:
    code, position = ord(found[0]), found.start()
    if code in ESCAPED_BYTES:
        byte = code - 0xDC00
        return f"contains the byte 0x{byte:02X} at character {position}, which is not UTF-8"
    return (
        f"contains half of a surrogate pair (U+{code:04X}) at character {position}, as left by a "
        "splitter that cuts an emoji in two"
    )


def _check_values(body: bytes | bytearray) -> None:
    """Refuse JSON that would take far more memory as Python objects than as bytes.

    A body of 8 MiB has room for 2.8 million empty arrays, which take 200 MiB.
    """
    if sum(map(body.count, _BEFORE_VALUES)) <= MAX_VALUES:
        return
    # There may be that many in texts, which count as one value each.
    values = position = 0
    while values <= MAX_VALUES:
        quote = body.find(b'"', position)
        end = quote if quote >= 0 else len(body)
        values += sum(body.count(byte, position, end) for byte in _BEFORE_VALUES)
        string = _STRING.match(body, end)
        if string is None:  # the end, or malformed
            break
        position = string.end()
    if values > MAX_VALUES:
        msg = (
            f"The body has more than {MAX_VALUES} JSON values. Send at most {MAX_TEXTS} texts per "
            "request, as strings and not as token IDs."
        )
        raise InvalidRequestError(msg, code="too_many_values")


def describe_body(schema: type[BaseModel]) -> dict[str, Any]:
    """Build the JSON schema of a body for the OpenAPI document.

    Models within it are described in place: their references would be looked up in the document.
    """
    described = schema.model_json_schema()
    definitions: dict[str, Any] = described.pop("$defs", {})
    return _resolved(described, definitions)


def _resolved(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_resolved(item, definitions) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    fields = {
        name: _resolved(value, definitions) for name, value in cast("dict[str, Any]", node).items()
    }
    name = str(fields.pop("$ref", "")).removeprefix("#/$defs/")
    return _resolved(definitions[name], definitions) | fields if name else fields


def validate(
    schema: type[Body], value: dict[str, Any], names: Mapping[str, str] | None = None
) -> Body:
    """Validate a JSON object against a schema.

    Args:
        schema: The schema.
        value: The object.
        names: What the caller called fields that have another name in the schema.

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
        raise _invalid(schema, problems[0], names or {}) from None


def _invalid(
    schema: type[BaseModel], error: dict[str, Any], names: Mapping[str, str]
) -> InvalidRequestError:
    param = _path(schema, error["loc"], names)
    context: dict[str, Any] = error.get("ctx", {})
    code: str | None = None
    match error["type"]:
        case "extra_forbidden":
            allowed = ", ".join(f"`{name}`" for name in schema.model_fields)
            msg, code = f"Unknown field `{param}`. Allowed fields: {allowed}.", "unknown_field"
        case "missing" if len(error["loc"]) > 1:
            msg = f"`{param}` has no `{error['loc'][-1]}`."
        case "missing":
            msg = f"`{param}` is missing."
        case "model_type":
            msg = f"`{param}` should be an object (got {_shown(error['input'])})."
        case "too_long":
            # Pydantic stops counting at the first item too many.
            limit, code = context["max_length"], "too_many_texts"
            msg = f"`{param}` has more than {limit} items. Split them into several requests."
        case "too_short":
            msg = f"`{param}` is empty. Send 1 to {MAX_TEXTS} texts."
        case "value_error" if isinstance(context["error"], TokenIdsError):
            code = "token_ids"
            msg = (
                f"`{param}` contains token IDs, which probably come from another model's "
                "tokenizer. Send strings instead. LangChain's OpenAIEmbeddings sends them with "
                "`check_embedding_ctx_length=False`."
            )
        case "value_error" if isinstance(context["error"], NestedListError):
            msg = f"`{param}` contains lists. Send one flat list of strings."
        case _ if isinstance(error["input"], BrokenText):
            msg, code = f"`{param}` {error['input'].problem}. Repair or remove it.", "broken_text"
        case _:
            shown = _shown(error["input"], is_choice=error["type"] == "literal_error")
            msg = describe_invalid_value(param, error["msg"], shown)
    return InvalidRequestError(msg, param=param, code=code)


def _path(
    schema: type[BaseModel], location: tuple[int | str, ...], names: Mapping[str, str]
) -> str:
    """Write a location the way callers do: `texts[3]`, without the names of a union's members."""
    field, *rest = location
    if str(field) not in schema.model_fields:
        return str(field)
    return names.get(str(field), str(field)) + "".join(
        f"[{part}]" for part in rest if isinstance(part, int)
    )


def _shown(value: object, *, is_choice: bool = False) -> str:
    """Write a value as JSON, or its type: texts are private, and clients log error messages."""
    name = JSON_TYPES.get(type(value))
    if name is not None and not (is_choice and isinstance(value, str)):
        return name
    shown = pydantic_core.to_json(value).decode()
    return shown if len(shown) <= MAX_SHOWN_CHARACTERS else (name or "a number")
