"""The dialect of text-embeddings-inference: `inputs` in, a bare array of vectors out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import ClassVar, Literal, TypeAlias

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from ..dialects import Dialect, TeiErrorResponse
from ..embedder import EmbedCall, Truncation
from ..errors import InvalidRequestError
from ..memory import in_worker
from ..responses import BYTES_PER_PART, VECTORS, EncodingFormat, PartsResponse
from ..schemas import LenientDimensions, OneOrMoreTexts, TokenizableTexts, never_together, validate
from ..tokenization import InputType, TextTokenizer, format_inputs
from .exchange import Exchange, ServiceDep, ServiceRoute, describe_call, open_exchange

# A token has a byte of text at least, and 60 to 70 in the answer.
MAX_TOKENIZE_BYTES = 1 << 20
# A step's tokens as Python objects and as JSON, and the texts.
TOKENIZE_BYTES = 8 << 20

router: APIRouter = APIRouter(tags=["text-embeddings-inference"], route_class=ServiceRoute)

Vectors: TypeAlias = list[list[float]] | list[str]


class TeiEmbedRequest(BaseModel):
    """The body of `POST /` and of TEI's `POST /embed`. Unknown fields are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
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

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    inputs: TokenizableTexts
    add_special_tokens: bool = True
    prompt_name: InputType | None = None


class Token(BaseModel):
    """A token in the response to `POST /tokenize`; `start` and `stop` are character offsets."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@router.post(
    "/",
    response_model=Vectors,
    **describe_call(TeiEmbedRequest, errors=TeiErrorResponse, example={"inputs": "hello world"}),
)
async def embed(request: Request, service: ServiceDep) -> Response:
    """Embed `inputs` at the server's root, where huggingface_hub's InferenceClient sends them."""
    with await open_exchange(request, service) as exchange:
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
    return answer.respond(VECTORS, body.encoding_format or "float")


@router.post(
    "/tokenize",
    response_model=list[list[Token]],
    **describe_call(TokenizeRequest, errors=TeiErrorResponse, example={"inputs": "hello world"}),
)
async def tokenize(request: Request, service: ServiceDep) -> Response:
    """List the tokens that the model would see for each text, without truncation.

    The texts of a request may have 1 MiB together.
    """
    with await open_exchange(request, service) as exchange:
        body = validate(TokenizeRequest, exchange.body)
        prompts = format_inputs(body.inputs, input_type=body.prompt_name or "document")
        await in_worker(_check_tokenizable, service.embedder.tokenizer, prompts)
        exchange.memory.resize(TOKENIZE_BYTES)

        async def parts() -> AsyncIterator[bytes]:
            encoded = _token_parts(
                service.embedder.tokenizer, prompts, add_special_tokens=body.add_special_tokens
            )
            while part := await in_worker(next, encoded, b""):
                yield part

        return PartsResponse(parts)


def _check_tokenizable(tokenizer: TextTokenizer, texts: Sequence[str]) -> None:
    size_bytes = 0
    for index, text in enumerate(texts):
        size_bytes += len(text.encode())
        if size_bytes > MAX_TOKENIZE_BYTES:
            msg = (
                f"The texts have more than {MAX_TOKENIZE_BYTES} bytes together. Send fewer per "
                "request, or count tokens with the file from `GET /tokenizer`."
            )
            raise InvalidRequestError(msg, index=index, code="too_much_text")
        tokenizer.check_words(text, index)


def _token_parts(
    tokenizer: TextTokenizer, texts: Sequence[str], *, add_special_tokens: bool
) -> Iterator[bytes]:
    """Encode the tokens of texts as parts of a JSON array of arrays."""
    part = bytearray(b"[")
    for index, text in enumerate(texts):
        part += b",[" if index else b"["
        separator = b""
        for tokens in tokenizer.list_tokens(text, add_special_tokens=add_special_tokens):
            part += separator + orjson.dumps(tokens)[1:-1]
            separator = b","
            if len(part) >= BYTES_PER_PART:
                yield bytes(part)
                part.clear()
        part += b"]"
    yield bytes(part + b"]")


def _truncation(body: TeiEmbedRequest) -> Truncation:
    # TEI truncates by default since 1.9; this gateway also reports it.
    if body.truncate is False:
        return "refuse"
    return "start" if str(body.truncation_direction).lower() == "left" else "end"
