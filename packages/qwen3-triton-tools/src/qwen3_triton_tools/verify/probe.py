"""A server under test: its requests, and what the checks of its vectors share.

Every call is one request, without retries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias, cast

import numpy as np

from qwen3_triton_gateway.settings import MIN_DIMENSIONS
from qwen3_triton_gateway.tokenization import InputType

from ..errors import InvalidAnswerError, RefusedError, UnreachableError
from ..findings import Finding
from ..http import request
from .cards import Card, Float64Matrix

# Two runs of one text. The same kernels give 1; others, which are chosen by a batch's shape, leave
# 1e-7 in float32 and up to 1e-3 in float16, bfloat16 and TF32. The mistakes to be found are beyond:
# 0.15 for a short text padded left and pooled as if right, 0.9 without the end token.
MIN_SAME_COSINE = 0.999
SAME = f"cosine >= {MIN_SAME_COSINE}"
NOT_FOUND_STATUSES = (404, 405)
# An error page may be long; its first sentence says what is wrong.
MAX_MESSAGE_CHARACTERS = 200
MATRIX_RANK = 2
KEY_HINT = " Pass the key with --api-key or QWEN3_TRITON_API_KEY."


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server reports about its model, None where it does not."""

    model_id: str | None = None
    hidden_size: int | None = None
    dimensions: int | None = None
    max_length: int | None = None
    pooling: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The vectors of a request in the order they came.

    Attributes:
        vectors: float64 `(n, dimensions)`; components that are not numbers are NaN.
        prompt_tokens: None if the server does not report it.
        truncated: Indices of the truncated texts; None if the server does not report them.
    """

    vectors: Float64Matrix
    prompt_tokens: int | None
    truncated: tuple[int, ...] | None


class GatewayClient:
    """A server of `POST /embed`.

    Attributes:
        url: Its base URL.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_seconds: float) -> None:
        self.url: str = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def describe(self) -> ServedModel:
        """Read `/info`, else `/health`, which the runbook's gateway has too.

        Raises:
            HttpError: The server cannot be reached, rejects the key, or is not ready.
        """
        return _served_model(self._facts())

    def describe_reranker(self) -> ServedModel:
        """Read what `/info` reports of the reranker, next to an embedding model or alone.

        Raises:
            HttpError: The server cannot be reached, rejects the key, is not ready, or says that it
                has an embedding model only.
        """
        facts = self._facts()
        if "dimensions" in facts and not facts.get("reranker"):
            msg = "No reranker is served. Start it with RERANK_TRITON_MODEL or RERANK_MODEL_DIR."
            raise RefusedError(HTTPStatus.NOT_FOUND, msg)
        return _served_model(facts.get("reranker") or facts)

    def only_reranks(self) -> bool:
        """Return whether `/info` reports a reranker and no embedding model.

        Raises:
            HttpError: The server cannot be reached, rejects the key, or is not ready.
        """
        return "logits" in self._facts()

    def _facts(self) -> dict[str, Any]:
        for path in ("/info", "/health"):
            try:
                facts = self.call(path)
            except RefusedError as error:
                if error.status in NOT_FOUND_STATUSES:
                    continue
                raise
            if isinstance(facts, dict):
                return cast("dict[str, Any]", facts)
        return {}

    def embed(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType = "document",
        instruction: str | None = None,
        dimensions: int | None = None,
        truncate: bool | None = None,
    ) -> Answer:
        """Embed texts; fields with their default value are not sent.

        Raises:
            HttpError: The server does not answer, or not with a vector for each text.
        """
        body: dict[str, Any] = {"texts": list(texts)}
        if input_type == "query":
            body["input_type"] = input_type
        options = {"instruction": instruction, "dimensions": dimensions, "truncate": truncate}
        body |= {name: value for name, value in options.items() if value is not None}
        answer = self.call("/embed", body)
        if not isinstance(answer, dict):
            msg = "POST /embed did not answer with a JSON object with `embeddings`."
            raise InvalidAnswerError(msg)
        return _parse_answer(cast("dict[str, Any]", answer), len(texts))

    def tokenize(self, text: str) -> list[int] | None:
        """Return the token ids of a text, None if the server has no `POST /tokenize`.

        Raises:
            HttpError: The server does not answer, or its answer has no ids.
        """
        try:
            answer = self.call("/tokenize", {"inputs": [text]})
            return [int(token["id"]) for token in answer[0]]
        except RefusedError as error:
            if error.status in NOT_FOUND_STATUSES:
                return None
            raise
        except (KeyError, IndexError, TypeError, ValueError):
            msg = "POST /tokenize did not answer with a list of tokens with their `id`."
            raise InvalidAnswerError(msg) from None

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request, and return the JSON of its answer.

        Raises:
            HttpError: The server does not answer, or it refuses the request, or its answer is not
                JSON.
        """
        method = "GET" if body is None else "POST"
        try:
            reply = request(
                self.url + path,
                body=body,
                headers=self._headers,
                timeout_seconds=self._timeout_seconds,
            )
        except UnreachableError as error:
            msg = f"{self.url} did not answer {method} {path}. {error}"
            raise UnreachableError(msg) from None
        if reply.status >= HTTPStatus.BAD_REQUEST:
            hint = KEY_HINT if reply.status == HTTPStatus.UNAUTHORIZED else ""
            raise RefusedError(reply.status, _error_message(reply.body) + hint)
        try:
            return json.loads(reply.body)
        except ValueError as error:
            msg = f"{method} {self.url}{path} did not answer with JSON: {error}."
            raise InvalidAnswerError(msg) from None


@dataclass(slots=True)
class Probe:
    """A server, what it reports of itself, its model's card, and a server to compare with."""

    client: GatewayClient
    served: ServedModel
    card: Card | None
    reference: GatewayClient | None = None
    _alone: dict[str, Float64Matrix] = field(default_factory=dict[str, Float64Matrix])

    @property
    def no_card_reason(self) -> str:
        """Why there are no golden values to compare with."""
        if self.card is not None:
            return self.card.missing
        return f"no card for {self.served.model_id or 'a model without a name'}"

    def embed_alone(self, texts: Sequence[str]) -> Float64Matrix:
        """Embed each text in a request of its own, float64 `(n, dimensions)`; results are kept."""
        for text in texts:
            if text not in self._alone:
                self._alone[text] = self.client.embed([text]).vectors
        return np.concatenate([self._alone[text] for text in texts])

    def embed_together(self, texts: Sequence[str], *, shorter_by: int = 0) -> Answer:
        """Embed texts in one request, with fewer dimensions if `shorter_by` is given.

        Vectors of other dimensions are other entries of a server's cache: so they are computed in
        the batch of this request, and not taken from an earlier one.
        """
        dimensions = self.served.dimensions
        if not shorter_by or dimensions is None or dimensions - shorter_by < MIN_DIMENSIONS:
            return self.client.embed(texts)
        return self.client.embed(texts, dimensions=dimensions - shorter_by)


# The name of the finding is that of the check in `CHECKS`.
Check: TypeAlias = Callable[[Probe], Finding]


def passed(measured: str, expected: str) -> Finding:
    return Finding("", "ok", measured, expected)


def failed(measured: str, expected: str, *, cause: str, remedy: str) -> Finding:
    return Finding("", "error", measured, expected, cause, remedy)


def skipped(reason: str) -> Finding:
    return Finding("", "skipped", reason)


def compare(value: float, *, cause: str, remedy: str) -> Finding:
    """Return whether the lowest cosine of two runs is that of equal vectors."""
    measured = f"lowest cosine {value:.6f}"
    if value >= MIN_SAME_COSINE:
        return passed(measured, SAME)
    return failed(measured, SAME, cause=cause, remedy=remedy)


def quote_start(text: str) -> str:
    """Quote the beginning of a text."""
    length = 32
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def cosines(left: Float64Matrix, right: Float64Matrix) -> Float64Matrix:
    """Compute the cosine of each row of `left` and each of `right`; 0 for rows of zeros."""
    return np.nan_to_num(unit_rows(left) @ unit_rows(right).T)


def cosine(left: Float64Matrix, right: Float64Matrix) -> float:
    """Compute the cosine of the first rows of two matrices."""
    return float(cosines(left[:1], right[:1])[0, 0])


def unit_rows(vectors: Float64Matrix) -> Float64Matrix:
    """Scale rows to norm 1; components that are not finite count as 0, rows of zeros are kept."""
    finite = np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(finite, axis=1, keepdims=True)
    return finite / np.where(norms > 0, norms, 1.0)


def _served_model(facts: dict[str, Any]) -> ServedModel:
    def number(*names: str) -> int | None:
        numbers = [facts[name] for name in names if isinstance(facts.get(name), int)]
        return numbers[0] if numbers else None

    names = [facts[key] for key in ("model", "model_id", "triton_model") if key in facts]
    return ServedModel(
        model_id=str(names[0]) if names else None,
        hidden_size=number("hidden_size", "model_hidden_dim"),
        dimensions=number("dimensions", "embed_output_dim"),
        max_length=number("max_length", "max_input_length"),
        pooling=str(facts["pooling"]) if "pooling" in facts else None,
    )


def _parse_answer(answer: dict[str, Any], count: int) -> Answer:
    try:
        # None, which some servers write for NaN, becomes NaN.
        vectors = np.array(answer["embeddings"], dtype=np.float64)
        usage: Any = answer.get("usage") or {}
        prompt_tokens: int | None = usage.get("prompt_tokens")
        truncated: list[int] | None = answer.get("truncated")
    except (KeyError, TypeError, ValueError, AttributeError):
        msg = "`embeddings` is not a matrix of numbers: rows are missing, or differ in length."
        raise InvalidAnswerError(msg) from None
    if vectors.ndim != MATRIX_RANK or len(vectors) != count:
        shape = " x ".join(map(str, vectors.shape))
        msg = f"{count} texts came back as {len(vectors)} vectors (a matrix of {shape})."
        raise InvalidAnswerError(msg)
    return Answer(vectors, prompt_tokens, None if truncated is None else tuple(truncated))


def _error_message(body: bytes) -> str:
    """Return the message in any dialect's error, or the beginning of the body."""
    text = body.decode(errors="replace").strip()
    try:
        content: Any = json.loads(text)
        error: object = content.get("error", content.get("detail", content))
        if isinstance(error, dict):
            fields = cast("dict[str, object]", error)
            error = fields.get("message", fields)
        text = str(error)
    except (ValueError, AttributeError):
        pass
    return text[:MAX_MESSAGE_CHARACTERS] or "no message"
