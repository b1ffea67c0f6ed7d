"""What can go wrong with an embedding call.

* EmbeddingError
  x InvalidRequestError          400, 422, or refused before sending; also a ValueError
    + RequestTooLargeError       413 for one text alone
    + ModelNotFoundError         404
  x AuthenticationError          401, 403
  x EmbeddingConnectionError     nothing, or not all of an answer, came back; also a ConnectionError
    + EmbeddingTimeoutError      no answer in time, 408 or 504; also a TimeoutError
  x OverloadedError              429, 503: the gateway asks to come back later
  x GatewayError                 any other status that is not a success
  x BadAnswerError               wrong count or dimension, or a value that is no number
  x FingerprintChangedError      the gateway began to answer from another embedding space

Catch `EmbeddingError` for all of them:

    try:
        result = client.embed(texts)
    except EmbeddingError as error:
        keep(error.completed)        # index -> vector, for what was done before the failure
        report(error.failed_indices, error)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .results import Vector

__all__ = [
    "AuthenticationError",
    "BadAnswerError",
    "EmbeddingConnectionError",
    "EmbeddingError",
    "EmbeddingTimeoutError",
    "FingerprintChangedError",
    "GatewayError",
    "InvalidRequestError",
    "ModelNotFoundError",
    "OverloadedError",
    "RequestTooLargeError",
]


class EmbeddingError(Exception):
    """Report that an embedding call failed; base of every error of this package.

    Attributes:
        message: What went wrong, without the details below.
        status: HTTP status of the last answer; None where none came or none was asked for.
        server_message: What the gateway said, None if it said nothing.
        request_id: The gateway's `X-Request-ID`, to look up in its log.
        retry_after_seconds: How long the gateway asked to wait, in seconds.
        retryable: Whether the same request may succeed when sent again.
        tries: Requests sent for the batch that failed; 0 if it was refused before sending.
        failed_indices: Indices of the call's texts that this error is about, ascending.
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
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.server_message = server_message
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        self.retryable = retryable
        self.positions = positions
        self.tries = 0
        self.failed_indices: tuple[int, ...] = ()
        self.completed: Mapping[int, Vector] = {}

    def __str__(self) -> str:
        details: list[str] = []
        if self.failed_indices:
            details.append(f"texts: {_ranges(self.failed_indices)}")
        if self.request_id:
            details.append(f"request id: {self.request_id}")
        if self.tries > 1:
            details.append(f"tries: {self.tries}")
        return f"{self.message} ({'; '.join(details)})" if details else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception would rebuild from positional arguments only and lose the attributes, which
        # matters when the error crosses a process boundary.
        return _rebuild, (type(self), self.message, self.__dict__)


class InvalidRequestError(EmbeddingError, ValueError):
    """Report texts or options that cannot be embedded, however often they are sent."""


class RequestTooLargeError(InvalidRequestError):
    """Report a single text that is larger than a request to the gateway may be."""


class ModelNotFoundError(InvalidRequestError):
    """Report a model name or a path that the gateway does not serve."""


class AuthenticationError(EmbeddingError):
    """Report a missing, wrong or insufficient `api_key`."""


class EmbeddingConnectionError(EmbeddingError, ConnectionError):
    """Report that the gateway could not be reached, or broke off."""

    # OSError formats itself from errno and strerror unless told otherwise.
    __str__ = EmbeddingError.__str__


class EmbeddingTimeoutError(EmbeddingConnectionError, TimeoutError):
    """Report that the gateway did not answer in time."""


class OverloadedError(EmbeddingError):
    """Report that the gateway is full (429) or not ready (503)."""


class GatewayError(EmbeddingError):
    """Report a status that is neither a success nor one of the other errors."""


class BadAnswerError(EmbeddingError):
    """Report an answer that does not hold one usable vector for each text."""


class FingerprintChangedError(EmbeddingError):
    """Report that the embedding space changed while the client was in use."""


def _rebuild(
    kind: type[EmbeddingError], message: str, attributes: dict[str, Any]
) -> EmbeddingError:
    error = kind(message)
    error.__dict__.update(attributes)
    return error


def _ranges(indices: tuple[int, ...], limit: int = 8) -> str:
    """Write ascending indices as `0-31, 40`, at most `limit` groups of them."""
    groups: list[list[int]] = []
    for index in indices:
        if groups and groups[-1][1] == index - 1:
            groups[-1][1] = index
        else:
            groups.append([index, index])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in groups[:limit]]
    return ", ".join(shown) + (", ..." if len(groups) > limit else "")
