"""The bodies of requests and answers, as callers see them."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .encoding import EncodingFormat
from .errors import InvalidRequestError
from .prompts import InputType
from .settings import MAX_TEXTS

Body = TypeVar("Body", bound=BaseModel)


class EmbedRequest(BaseModel):
    """`POST /embed`, the native call. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    model: str | None = None
    input_type: InputType = "document"
    instruction: str | None = None
    dimensions: int | None = None
    truncate: bool = True
    encoding_format: EncodingFormat = "float"


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


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str | None
    param: str | None


class ErrorResponse(BaseModel):
    """Every error; `detail` repeats the message for callers of the runbook's gateway."""

    error: ErrorDetail
    detail: str


def parse_body(schema: type[Body], body: bytes) -> Body:
    """Validate a JSON body.

    Raises:
        InvalidRequestError: malformed JSON, a wrong type, an unknown or a missing field; the
            message names the field, what came and what is allowed.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first: dict[str, Any] = dict(error.errors(include_url=False)[0])
        raise _invalid(schema, first) from None


def _invalid(schema: type[BaseModel], error: dict[str, Any]) -> InvalidRequestError:
    param = _path(error["loc"])
    context: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "json_invalid":
            return InvalidRequestError(
                f"The body is not valid JSON: {context['error']}.", code="malformed_json"
            )
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
        case _:
            where = f"`{param}`" if param else "The body"
            came = type(error["input"]).__name__
            msg = f"{where}: {error['msg']} (got {came})."
            return InvalidRequestError(msg, param=param or None)


def _path(location: tuple[int | str, ...]) -> str:
    """Write a location as callers know it: `texts[3]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in location)
