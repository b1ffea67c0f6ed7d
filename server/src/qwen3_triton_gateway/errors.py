"""Every error of the gateway, with the HTTP status that it becomes.

EmbeddingServerError
├── StartupError                    the gateway cannot start as configured (never an HTTP answer)
├── InvalidRequestError        400
├── UnauthorizedError          401
├── ModelNotFoundError         404
├── BodyTooLargeError          413
├── QueueFullError             429  with Retry-After
├── BadVectorError             502  the model answered, and the answer is no embedding
├── BackendError               502  the model refused the batch or broke the contract
├── BackendUnavailableError    503  with Retry-After
└── DeadlineExceededError      504
"""

from __future__ import annotations

from typing import ClassVar


class EmbeddingServerError(Exception):
    """Carry what an answer needs: status, type, code, the parameter at fault, and a message.

    `index` names a text instead of `param`; each dialect writes it by its own field's name.
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
    """Refuse to start; the message names both sides of the mismatch and what to change."""


class InvalidRequestError(EmbeddingServerError):
    status = 400
    error_type = "invalid_request_error"
    code = "invalid_request"


class UnauthorizedError(EmbeddingServerError):
    status = 401
    error_type = "authentication_error"
    code = "invalid_api_key"


class ModelNotFoundError(EmbeddingServerError):
    status = 404
    error_type = "invalid_request_error"
    code = "model_not_found"


class BodyTooLargeError(EmbeddingServerError):
    status = 413
    error_type = "invalid_request_error"
    code = "body_too_large"


class QueueFullError(EmbeddingServerError):
    status = 429
    error_type = "overloaded_error"
    code = "queue_full"


class BadVectorError(EmbeddingServerError):
    status = 502
    code = "bad_vector"


class BackendError(EmbeddingServerError):
    status = 502
    code = "backend_error"


class BackendUnavailableError(EmbeddingServerError):
    status = 503
    code = "backend_unavailable"

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)


class DeadlineExceededError(EmbeddingServerError):
    status = 504
    code = "deadline_exceeded"
