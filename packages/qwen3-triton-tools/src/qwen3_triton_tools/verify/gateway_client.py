"""A client for any server of `POST /embed`, without retries: every call is one request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeAlias, cast

import numpy as np

from qwen3_triton_gateway.tokenization import InputType

from ..errors import InvalidAnswerError, RefusedError, UnreachableError
from ..http import request

Float64Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float64]]

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
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def describe(self) -> ServedModel:
        """Read `/info`, else `/health`, which the runbook's gateway has too.

        Raises:
            HttpError: The server cannot be reached, rejects the key, or is not ready.
        """
        for path in ("/info", "/health"):
            try:
                facts = self._call(path)
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
        """Embed texts; fields with their default value are not sent.

        Raises:
            HttpError: There is no answer, or one without a vector for each text.
        """
        body: dict[str, Any] = {"texts": list(texts)}
        if input_type == "query":
            body["input_type"] = input_type
        options = {"instruction": instruction, "dimensions": dimensions, "truncate": truncate}
        body |= {name: value for name, value in options.items() if value is not None}
        answer = self._call("/embed", body)
        if not isinstance(answer, dict):
            msg = "POST /embed did not answer with a JSON object with `embeddings`."
            raise InvalidAnswerError(msg)
        return _parse_answer(cast("dict[str, Any]", answer), len(texts))

    def tokenize(self, text: str) -> list[int] | None:
        """Return the token ids of a text, None if the server has no `POST /tokenize`.

        Raises:
            HttpError: There is no answer, or one without ids.
        """
        try:
            answer = self._call("/tokenize", {"inputs": [text]})
            return [int(token["id"]) for token in answer[0]]
        except RefusedError as error:
            if error.status in NOT_FOUND_STATUSES:
                return None
            raise
        except (KeyError, IndexError, TypeError, ValueError):
            msg = "POST /tokenize did not answer with a list of tokens with their `id`."
            raise InvalidAnswerError(msg) from None

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
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
        error: Any = content.get("error", content.get("detail", content))
        text = str(error.get("message", error) if isinstance(error, dict) else error)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    except (ValueError, AttributeError):
        pass
    return text[:MAX_MESSAGE_CHARACTERS] or "no message"
