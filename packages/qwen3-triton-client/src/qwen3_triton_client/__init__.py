"""Client of the Qwen3-Embedding Triton gateway: texts in, checked unit vectors out, in order."""

from ._version import __version__
from .async_client import AsyncEmbeddingClient
from .client import EmbeddingClient
from .errors import (
    AuthenticationError,
    BadAnswerError,
    EmbeddingConnectionError,
    EmbeddingError,
    EmbeddingTimeoutError,
    FingerprintChangedError,
    GatewayError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RequestTooLargeError,
)
from .planning import Batch
from .progress import OnProgress
from .results import EmbeddingResult, Vector
from .retries import RetryDetails
from .settings import ClientSettings, InputType
from .stats import ClientStats
from .streaming import OnFailure

__all__ = [
    "AsyncEmbeddingClient",
    "AuthenticationError",
    "BadAnswerError",
    "Batch",
    "ClientSettings",
    "ClientStats",
    "EmbeddingClient",
    "EmbeddingConnectionError",
    "EmbeddingError",
    "EmbeddingResult",
    "EmbeddingTimeoutError",
    "FingerprintChangedError",
    "GatewayError",
    "InputType",
    "InvalidRequestError",
    "ModelNotFoundError",
    "OnFailure",
    "OnProgress",
    "OverloadedError",
    "RequestTooLargeError",
    "RetryDetails",
    "Vector",
    "__version__",
]
