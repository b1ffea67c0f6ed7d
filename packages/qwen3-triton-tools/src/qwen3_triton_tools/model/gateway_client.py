"""A server of `POST /embed`, asked over HTTP as a stranger would ask it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from qwen3_triton_gateway.tokenization import InputType

from .. import plain_http

Float64Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Method: TypeAlias = Literal["GET", "POST"]

NOT_FOUND_STATUSES = (404, 405)
# A server's error page may be long; its first sentence says what is wrong.
MESSAGE_CHARACTERS = 200
MATRIX_RANK = 2
KEY_HINT = " Give the key with --api-key or QWEN3_TRITON_API_KEY."


class GatewayError(Exception):
    """Something else than an answer came; the message says what."""


class UnreachableError(GatewayError):
    """Nobody speaks HTTP there."""


class RefusedError(GatewayError):
    """The server answered with a status above 399."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


class BrokenAnswerError(GatewayError):
    """The answer's status is 200, and its body holds no vector for each text."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of its model, None where it does not say."""

    model_id: str | None = None
    hidden_size: int | None = None
    dimensions: int | None = None
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Vectors in the order they came, components that are no number as NaN.

    `vectors` is float64 of shape `(n, dimensions)`; `prompt_tokens` and `truncated` are None where
    the server does not tell them.
    """

    vectors: Float64Matrix
    prompt_tokens: int | None
    truncated: tuple[int, ...] | None


class GatewayClient:
    """Ask one server; every call is a request of its own, without retries."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_seconds: float) -> None:
        """Name the server by its base URL; the key is sent as `Authorization: Bearer`."""
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def describe(self) -> ServedModel:
        """Ask `/info`, else `/health`, which the runbook's gateway has too.

        Raises:
            GatewayError: the server cannot be reached, wants a key, or is not ready.
        """
        for path in ("/info", "/health"):
            try:
                facts = self._call("GET", path)
            except RefusedError as error:
                if error.status in NOT_FOUND_STATUSES:
                    continue
                raise
            if isinstance(facts, dict):
                return _served_model(cast("dict[str, Any]", facts))
        return ServedModel()

    def embed(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType = "document",
        instruction: str | None = None,
        dimensions: int | None = None,
        truncate: bool | None = None,
    ) -> Answer:
        """Embed texts; fields that are left at their defaults are not sent.

        Raises:
            GatewayError: no answer, or one without a vector for each text.
        """
        body: dict[str, Any] = {"texts": list(texts)}
        if input_type == "query":
            body["input_type"] = input_type
        given = {"instruction": instruction, "dimensions": dimensions, "truncate": truncate}
        body |= {name: value for name, value in given.items() if value is not None}
        answer = self._call("POST", "/embed", body)
        if not isinstance(answer, dict):
            msg = "POST /embed answered no JSON object with `embeddings`."
            raise BrokenAnswerError(msg)
        return _read_answer(cast("dict[str, Any]", answer), len(texts))

    def tokenize(self, text: str) -> list[int] | None:
        """List the token ids of a text, or None where the server has no `POST /tokenize`.

        Raises:
            GatewayError: no answer, or one that holds no ids.
        """
        try:
            answer = self._call("POST", "/tokenize", {"inputs": [text]})
            return [int(token["id"]) for token in answer[0]]
        except RefusedError as error:
            if error.status in NOT_FOUND_STATUSES:
                return None
            raise
        except (KeyError, IndexError, TypeError, ValueError):
            msg = "POST /tokenize answered no list of tokens with their `id`."
            raise BrokenAnswerError(msg) from None

    def _call(self, method: Method, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            reply = plain_http.ask(
                self.url + path,
                body=body,
                headers=self._headers,
                timeout_seconds=self._timeout_seconds,
            )
        except plain_http.UnreachableError as error:
            msg = f"{self.url} gives no answer to {method} {path}: {error}"
            raise UnreachableError(msg) from None
        if reply.status >= HTTPStatus.BAD_REQUEST:
            hint = KEY_HINT if reply.status == HTTPStatus.UNAUTHORIZED else ""
            raise RefusedError(reply.status, _message(reply.body) + hint)
        try:
            return json.loads(reply.body)
        except ValueError as error:
            msg = f"{method} {self.url}{path} answered no JSON: {error}"
            raise BrokenAnswerError(msg) from None


def _served_model(facts: dict[str, Any]) -> ServedModel:
    def number(*names: str) -> int | None:
        found = [facts[name] for name in names if isinstance(facts.get(name), int)]
        return found[0] if found else None

    names = [facts[key] for key in ("model", "model_id", "triton_model") if key in facts]
    return ServedModel(
        model_id=str(names[0]) if names else None,
        hidden_size=number("hidden_size", "model_hidden_dim"),
        dimensions=number("dimensions", "embed_output_dim"),
        max_length=number("max_length", "max_input_length"),
    )


def _read_answer(answer: dict[str, Any], count: int) -> Answer:
    try:
        # None, which some servers write for NaN, becomes NaN.
        vectors = np.array(answer["embeddings"], dtype=np.float64)
        usage: Any = answer.get("usage") or {}
        prompt_tokens: int | None = usage.get("prompt_tokens")
        truncated: list[int] | None = answer.get("truncated")
    except (KeyError, TypeError, ValueError, AttributeError):
        msg = "`embeddings` is no matrix of numbers: rows are missing, or of different lengths."
        raise BrokenAnswerError(msg) from None
    if vectors.ndim != MATRIX_RANK or len(vectors) != count:
        shape = " x ".join(map(str, vectors.shape))
        msg = f"{count} texts came back as {len(vectors)} vectors (a matrix of {shape})."
        raise BrokenAnswerError(msg)
    return Answer(vectors, prompt_tokens, None if truncated is None else tuple(truncated))


def _message(body: bytes) -> str:
    """Take the message out of any dialect's error, or the beginning of what came instead."""
    text = body.decode(errors="replace").strip()
    try:
        content: Any = json.loads(text)
        error: Any = content.get("error", content.get("detail", content))
        text = str(error.get("message", error) if isinstance(error, dict) else error)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    except (ValueError, AttributeError):
        pass
    return text[:MESSAGE_CHARACTERS] or "no message"


def cosines(left: Float64Matrix, right: Float64Matrix) -> Float64Matrix:
    """Compare every row of one matrix with every row of another; 0 where one has no direction."""
    return np.nan_to_num(unit_rows(left) @ unit_rows(right).T)


def cosine(left: Float64Matrix, right: Float64Matrix) -> float:
    """Compare the first rows of two matrices."""
    return float(cosines(left[:1], right[:1])[0, 0])


def unit_rows(vectors: Float64Matrix) -> Float64Matrix:
    """Scale rows to norm 1; components that are not finite count 0, and rows of zeros stay."""
    finite = np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(finite, axis=1, keepdims=True)
    return finite / np.where(norms > 0, norms, 1.0)
