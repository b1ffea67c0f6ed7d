"""The bodies of requests to rerank and of their responses, in every dialect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import WithJsonSchema

from ..schemas import (
    NOT_BLANK,
    BrokenText,
    Priority,
    Text,
    Texts,
    TokenLimit,
    Usage,
    describe_number,
    describe_one_or_more,
    number,
)
from ..settings import MAX_TEXTS

NO_IMAGES = "The reranker reads text only. Send queries and documents without images."
NO_TEXT = (
    "An object needs the field `text`, or `rank_fields` that say which of a document's fields to "
    "read."
)

# 0 sets none, as in vLLM.
Limit: TypeAlias = Annotated[
    int, Field(ge=0), BeforeValidator(number), describe_number(0, "^(0|[1-9][0-9]{0,5})$")
]


class TeiRerankRequest(BaseModel):
    """The body of `POST /rerank`.

    `model`, `instruction` and `top_n`, which LiteLLM sends, are not TEI's; others are ignored.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    query: Text
    texts: Texts
    model: str | None = None
    instruction: str | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    truncate: bool | None = None
    top_n: Limit | None = None
    # Only a document's end is truncated.
    truncation_direction: Literal["right", "Right"] | None = None


class TeiRank(BaseModel):
    """A text in the response to `POST /rerank`, which begins with the most relevant."""

    index: int
    score: float
    text: str | None = None


def _truth(value: object) -> object:
    """Accept "true" too, which RAGFlow sends to Xinference."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _fields_of(value: object) -> dict[str, Any]:
    """Return the fields of an object, none of another value.

    Raises:
        ValueError: One is an image, without which the score would be another one.
    """
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    if fields.get("image") or fields.get("image_url"):
        raise ValueError(NO_IMAGES)
    return fields


def _without_image(value: object) -> object:
    _fields_of(value)
    return value


class NimFields(BaseModel):
    """A query or a passage, which are objects in NIM."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    text: Text


NimText: TypeAlias = Annotated[NimFields, BeforeValidator(_without_image)]


def _text_of(value: object) -> object:
    """Return the text of what is an object; of vLLM's, it may be in parts.

    Raises:
        ValueError: It has no text, or an image.
    """
    if not isinstance(value, dict):
        return value
    fields = _fields_of(cast("object", value))
    if "text" in fields:
        return fields["text"]
    parts = fields.get("content")
    if not isinstance(parts, list):
        raise ValueError(NO_TEXT)
    return joined([_fields_of(part).get("text") for part in cast("list[object]", parts)])


def _one_or_more(value: object) -> object:
    """Turn a text into a list of one, as vLLM does."""
    is_one = isinstance(value, (str, dict, BrokenText))
    return [cast("object", value)] if is_one else value


def joined(texts: Sequence[object]) -> object:
    """Join texts, or return the first value that is not a text, for validation to refuse."""
    wrong = [text for text in texts if not isinstance(text, str)]
    return wrong[0] if wrong else "\n".join(map(str, texts))


TEXT_OR_OBJECT: dict[str, Any] = {
    "anyOf": [
        NOT_BLANK,
        {"type": "object", "properties": {"text": NOT_BLANK}, "required": ["text"]},
    ]
}
TextOrObject: TypeAlias = Annotated[str, BeforeValidator(_text_of), WithJsonSchema(TEXT_OR_OBJECT)]
OneOrMore: TypeAlias = Annotated[
    list[TextOrObject],
    Field(min_length=1, max_length=MAX_TEXTS),
    BeforeValidator(_one_or_more),
    describe_one_or_more(TEXT_OR_OBJECT),
]

Flag: TypeAlias = Annotated[
    bool,
    BeforeValidator(_truth),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}]}),
]


class CohereRerankRequest(BaseModel):
    """The body of `POST /v1/rerank` and `/v2/rerank`, as Cohere and Jina have it.

    `priority` is vLLM's, too, as are `use_activation`, `truncate_prompt_tokens` and
    `truncation_side`; `raw_scores` is Infinity's, `top_k` and `truncation` Voyage's, `instruct`
    that of Qwen's hosted reranker, `instruction` and `truncate` our own. Unknown fields are
    ignored.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    query: TextOrObject
    documents: OneOrMore
    model: str | None = None
    top_n: Limit | None = None
    return_documents: Flag | None = None
    rank_fields: list[str] | None = None
    max_tokens_per_doc: Limit | None = None
    use_activation: bool | None = None
    raw_scores: bool | None = None
    truncate_prompt_tokens: TokenLimit | None = None
    # Only a document's end is truncated.
    truncation_side: Literal["right"] | None = None
    priority: Priority | None = None
    top_k: Limit | None = None
    truncation: bool | None = None
    instruct: str | None = None
    instruction: str | None = None
    truncate: bool | None = None

    @property
    def limit(self) -> int | None:
        """How many documents to return; None for all."""
        return self.top_n or self.top_k or None

    @property
    def is_voyages(self) -> bool:
        """Whether it has one of the fields that Voyage's client always sends."""
        return not self.model_fields_set.isdisjoint(("top_k", "truncation"))


class RankedDocument(BaseModel):
    """A returned document. One that was sent as an object has the other texts in it, too."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")

    text: str


class RerankResult(BaseModel):
    index: int
    relevance_score: float
    document: RankedDocument | None = None


class VoyageResult(BaseModel):
    index: int
    relevance_score: float
    document: str | None = None


class CohereRerankResponse(BaseModel):
    """The response to `POST /v1/rerank` and `/v2/rerank`, which begins with the most relevant.

    `id` and `meta` are Cohere's, `model` and `usage` Jina's; `meta.warnings` names documents that
    were truncated. Requests with Voyage's fields get its `object` and `data`, too.
    """

    id: str
    results: list[RerankResult]
    meta: dict[str, Any]
    model: str
    usage: Usage
    object: Literal["list"] | None = None
    data: list[VoyageResult] | None = None


class NimRankingRequest(BaseModel):
    """The body of `POST /v1/ranking`; `instruction` is our own. Unknown fields are ignored.

    `top_k` is that of NVIDIA's hosted rerankers, which LiteLLM sends, and `top_n` RAGFlow's.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    query: NimText
    passages: Annotated[list[NimText], Field(min_length=1, max_length=MAX_TEXTS)]
    model: str | None = None
    truncate: Literal["NONE", "END"] | None = None
    top_k: Limit | None = None
    top_n: Limit | None = None
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

    In place of `text_1` and `text_2` there may be `data_1` and `data_2`, or `queries` with
    `documents` or `items`. `instruction` and `truncate` are our own. Unknown fields are ignored.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    text_1: OneOrMore
    text_2: OneOrMore
    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: TokenLimit | None = None
    max_tokens_per_doc: Limit | None = None
    # Only a document's end is truncated.
    truncation_side: Literal["right"] | None = None
    priority: Priority | None = None
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
