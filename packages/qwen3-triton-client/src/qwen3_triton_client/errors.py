"""The errors of a call to embed or to rerank.

* EmbeddingError
  x InvalidRequestError          400, 422, or refused before sending; also a ValueError
    + RequestTooLargeError       413 for a single text
    + ModelNotFoundError         404
  x AuthenticationError          401, 403
  x EmbeddingConnectionError     no complete answer arrived; also a ConnectionError
    + EmbeddingTimeoutError      no answer in time, 408 or 504; also a TimeoutError
  x OverloadedError              429, 503: the gateway asks to come back later
  x GatewayError                 any other status that is not a success
  x BadAnswerError               wrong number of vectors or dimensions, NaN, infinity or all zeros
  x FingerprintChangedError      the gateway now serves another embedding space or reranker

Catch `EmbeddingError` for all of them:

    try:
        result = client.embed(texts)
    except EmbeddingError as error:
        store(error.completed)  # index -> vector, for the texts embedded before the failure
        report(error.failed_indices, error)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .results import Vector


class EmbeddingError(Exception):
    """A failed call to embed or to rerank; the base class of all errors of this package.

    Attributes:
        message: What went wrong, without the details below.
        status: HTTP status of the last response; None if there was none.
        server_message: The gateway's own message; None if it sent none.
        request_id: The gateway's `X-Request-ID`, to look up in its log.
        retry_after_seconds: How long the gateway asked to wait, in seconds.
        retryable: Whether the same request may succeed when it is sent again.
        positions: Positions in the request of the texts that this error is about.
        param: The field of the request that the gateway named; empty if it named none.
        tries: Requests sent for the batch that failed; 0 if it was refused before sending.
        failed_indices: Indices of the call's texts that this error is about, ascending; none if
            it is about the query of a call to rerank.
        argument: What `failed_indices` counts: "texts", or "documents" of a call to rerank.
        completed: Vectors of the same call that did arrive, by index of their text.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        server_message: str | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
        retryable: bool = False,
        positions: tuple[int, ...] = (),
        param: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.server_message = server_message
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        self.retryable = retryable
        self.positions = positions
        self.param = param
        self.tries: int = 0
        self.failed_indices: tuple[int, ...] = ()
        self.argument: str = "texts"
        self.completed: Mapping[int, Vector] = {}

    def __str__(self) -> str:
        details: list[str] = []
        if self.failed_indices:
            details.append(f"{self.argument}: {_ranges(self.failed_indices)}")
        if self.request_id:
            details.append(f"request ID: {self.request_id}")
        if self.tries > 1:
            details.append(f"tries: {self.tries}")
        return f"{self.message} ({'; '.join(details)})" if details else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception would be rebuilt from its positional arguments only and lose the attributes,
        # for example on its way from a worker process.
        return _rebuild, (type(self), self.message, self.__dict__)


class InvalidRequestError(EmbeddingError, ValueError):
    """Texts or options that the gateway cannot accept, however often they are sent."""


class RequestTooLargeError(InvalidRequestError):
    """A single text that is larger than the gateway's limit for a request."""


class ModelNotFoundError(InvalidRequestError):
    """A model name or a path that the gateway does not serve."""


class AuthenticationError(EmbeddingError):
    """A missing, wrong or insufficient `api_key`."""


class EmbeddingConnectionError(EmbeddingError, ConnectionError):
    """A gateway that cannot be reached, or a connection that was interrupted."""


class EmbeddingTimeoutError(EmbeddingConnectionError, TimeoutError):
    """A gateway that did not answer in time."""


class OverloadedError(EmbeddingError):
    """A gateway whose queue is full (429) or that is not ready (503)."""


class GatewayError(EmbeddingError):
    """A status that is neither a success nor one of the other errors."""


class BadAnswerError(EmbeddingError):
    """An answer without one usable vector or score for each text."""


class FingerprintChangedError(EmbeddingError):
    """An embedding space that changed while the client was in use, or a reranker in one call."""


def _rebuild(
    kind: type[EmbeddingError], message: str, attributes: dict[str, Any]
) -> EmbeddingError:
    error = kind(message)
    error.__dict__.update(attributes)
    return error


def _ranges(indices: tuple[int, ...], limit: int = 8) -> str:
    """Format ascending indices as `0-31, 40`, at most `limit` groups of them."""
    groups: list[list[int]] = []
    for index in indices:
        if groups and groups[-1][1] == index - 1:
            groups[-1][1] = index
        else:
            groups.append([index, index])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in groups[:limit]]
    return ", ".join(shown) + (", ..." if len(groups) > limit else "")
