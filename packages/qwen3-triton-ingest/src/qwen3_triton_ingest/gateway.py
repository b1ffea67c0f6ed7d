"""The gateway, as the loader and the searches reach it."""

from __future__ import annotations

from qwen3_triton_client import EmbeddingClient

from .config import GatewayOptions
from .ledger import Space

__all__ = ["open_client", "served_space"]

_PROBE = "probe"
DEFAULT_MAX_RETRIES = 10
# With waits of up to 16 s it is the deadline that ends them.
_PATIENT_RETRIES = 100


def open_client(gateway: GatewayOptions, *, patient: bool = False) -> EmbeddingClient:
    """Make a client with these options.

    Args:
        gateway: Where it is, and how it is asked.
        patient: Whether a request is tried again until its deadline, however often it fails. A
            load of hours outlives many restarts, and one request may meet several of them.

    Raises:
        ValueError: One of them is out of range.
    """
    return EmbeddingClient(
        gateway.url,
        api_key=gateway.api_key,
        dimensions=gateway.dimensions,
        truncate=gateway.truncate,
        max_concurrency=gateway.max_concurrency,
        max_retries=_PATIENT_RETRIES if patient else DEFAULT_MAX_RETRIES,
    )


def served_space(client: EmbeddingClient, gateway: GatewayOptions) -> Space:
    """Ask the gateway for the embedding space that it serves.

    Raises:
        EmbeddingError: It does not answer.
    """
    answer = client.embed([_PROBE])
    return Space(answer.fingerprint, answer.model, answer.dimensions, gateway.instruction)
