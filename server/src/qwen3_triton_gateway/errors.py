"""Every error of the gateway, with its HTTP status.

EmbeddingServerError
├── StartupError                    the gateway cannot start as configured (never an HTTP response)
├── InvalidRequestError        400
├── UnauthorizedError          401
├── ModelNotFoundError         404
├── RequestTimeoutError        408  the request did not arrive in time
├── BodyTooLargeError          413
├── UnsupportedEncodingError   415
├── HeadersTooLargeError       431
├── QueueFullError             429  with Retry-After
├── BadVectorError             502  the model returned something that is not an embedding
├── BackendError               502  the model refused the batch or broke the contract
│   └── InsufficientMemoryError 413  there is not enough memory for it in the gateway's process
├── BackendUnavailableError    503  with Retry-After
└── DeadlineExceededError      504
"""

from __future__ import annotations

from typing import ClassVar

MAX_RETRY_AFTER_SECONDS = 60
# The cause is in the log only: it is a bug, and its text may hold what must not leave the gateway.
INTERNAL_ERROR = "Internal error. See the gateway's log."

DEADLINE_PASSED = (
    "The request's deadline (EMBED_TIMEOUT_S) passed before all its texts were done. Send "
    "fewer texts per request, or raise the deadline."
)

# Callers choose the length of paths and names that are logged or repeated to them.
MAX_SHOWN_CHARACTERS = 256


class EmbeddingServerError(Exception):
    """An error with everything that a response needs.

    Attributes:
        message: One or more sentences for the caller.
        param: The field at fault.
        index: The text at fault; without a `param`, each dialect has its own name for the field.
        code: A machine-readable reason.
        retry_after_seconds: When to retry, where that helps.
    """

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        index: int | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.index = index
        self.code = code or type(self).code
        self.retry_after_seconds = retry_after_seconds


class StartupError(EmbeddingServerError):
    """A reason not to start; the message names both sides of a mismatch and what to change."""


class InvalidRequestError(EmbeddingServerError):
    status = 400
    error_type = "invalid_request_error"
    code: str | None = "invalid_request"


class UnauthorizedError(EmbeddingServerError):
    status = 401
    error_type = "authentication_error"
    code: str | None = "invalid_api_key"


class ModelNotFoundError(EmbeddingServerError):
    status = 404
    error_type = "invalid_request_error"
    code: str | None = "model_not_found"


class BodyTooLargeError(EmbeddingServerError):
    status = 413
    error_type = "invalid_request_error"
    code: str | None = "body_too_large"

    def __init__(self, limit: int, when: str = "") -> None:
        """State the limit in bytes, and `when` the body exceeds it if not as it was sent."""
        super().__init__(
            f"The body is larger than {limit} bytes{when} (EMBED_MAX_BODY_BYTES). Send fewer texts "
            "per request."
        )


class UnsupportedEncodingError(EmbeddingServerError):
    status = 415
    error_type = "invalid_request_error"
    code: str | None = "unsupported_encoding"


class RequestTimeoutError(EmbeddingServerError):
    status = 408
    error_type = "invalid_request_error"
    code: str | None = "request_timeout"


class HeadersTooLargeError(EmbeddingServerError):
    status = 431
    error_type = "invalid_request_error"
    code: str | None = "headers_too_large"


class QueueFullError(EmbeddingServerError):
    status = 429
    error_type = "overloaded_error"
    code: str | None = "queue_full"


class BadVectorError(EmbeddingServerError):
    status = 502
    code: str | None = "bad_vector"


class BackendError(EmbeddingServerError):
    status = 502
    code: str | None = "backend_error"


class InsufficientMemoryError(BackendError):
    """A batch needs more memory than there is."""

    status = 413
    error_type = "invalid_request_error"
    code: str | None = "insufficient_memory"


class AnswerTooLargeError(BackendError):
    """Triton's answer is larger than what was asked for."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"Triton's answer is larger than {limit} bytes, the most that the gateway expects of "
            "it. Check that TRITON_URL is the address of a Triton, and its model's outputs."
        )


class BackendUnavailableError(EmbeddingServerError):
    status = 503
    code: str | None = "backend_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_seconds=1)


class DeadlineExceededError(EmbeddingServerError):
    status = 504
    code: str | None = "deadline_exceeded"


def describe_invalid_value(name: str, message: str, value: str) -> str:
    """Turn one of pydantic's messages into a sentence about a field or a setting.

    Args:
        name: The field or setting.
        message: Pydantic's message.
        value: What was sent, or its type where it may be long or secret.
    """
    if message.startswith("Value error, "):  # one of our own sentences
        return f"`{name}`: {message.removeprefix('Value error, ')}"
    if message.startswith("Input "):
        return f"`{name}` {message.removeprefix('Input ')} (got {value})."
    return f"`{name}`: {message} (got {value})."


def shorten(text: str) -> str:
    """Truncate what a caller chose before it is logged or repeated."""
    rest = len(text) - MAX_SHOWN_CHARACTERS
    return f"{text[:MAX_SHOWN_CHARACTERS]}...(+{rest})" if rest > 0 else text
