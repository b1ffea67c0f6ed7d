"""Client of the Qwen3-Embedding Triton gateway: checked unit vectors in order, and reranking."""

from ._version import __version__
from .async_client import AsyncEmbeddingClient, AsyncObserve
from .client import EmbeddingClient, Observe
from .connections import PerEventLoop
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
from .exchange import RetryDetails
from .job import Batch, OnError, OnVectors
from .reporting import Hooks, OnProgress, OnRetry, OnStats, Progress
from .rerank import RerankedDocument, RerankResult
from .results import ClientStats, EmbeddingResult, Vector, vector_defect
from .settings import (
    API_KEY_VARIABLE,
    BASE_URL_VARIABLE,
    DEFAULT_BASE_URL,
    MAX_TEXTS_PER_REQUEST,
    ClientSettings,
    InputType,
)
from .streaming import OnFailure

__all__ = [
    "API_KEY_VARIABLE",
    "BASE_URL_VARIABLE",
    "DEFAULT_BASE_URL",
    "MAX_TEXTS_PER_REQUEST",
    "AsyncEmbeddingClient",
    "AsyncObserve",
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
    "Hooks",
    "InputType",
    "InvalidRequestError",
    "ModelNotFoundError",
    "Observe",
    "OnError",
    "OnFailure",
    "OnProgress",
    "OnRetry",
    "OnStats",
    "OnVectors",
    "OverloadedError",
    "PerEventLoop",
    "Progress",
    "RequestTooLargeError",
    "RerankResult",
    "RerankedDocument",
    "RetryDetails",
    "Vector",
    "__version__",
    "vector_defect",
]
