"""What a client is told at construction, checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

__all__ = [
    "API_KEY_VARIABLE",
    "BASE_URL_VARIABLE",
    "DEFAULT_BASE_URL",
    "MAX_TEXTS_PER_REQUEST",
    "ClientSettings",
    "InputType",
]

InputType = Literal["document", "query"]

BASE_URL_VARIABLE = "QWEN3_TRITON_URL"
API_KEY_VARIABLE = "QWEN3_TRITON_API_KEY"
DEFAULT_BASE_URL = "http://localhost:8101"
MAX_TEXTS_PER_REQUEST = 2048  # the gateway refuses more
# A request costs the client as much as some twenty short texts, so short texts share one in
# greater number. Long ones are bounded by their bytes, some 16,000 tokens, so that a request ends
# well before the gateway's deadline.
DEFAULT_BATCH_SIZE = 128
DEFAULT_MAX_BATCH_BYTES = 1 << 16
DEFAULT_MAX_CONCURRENCY = 8
# Above the gateway's own limit of 120 s, so that its 504 ends a slow request and not our hanging
# up, after which it would still be computing what we ask for again.
DEFAULT_TIMEOUT_SECONDS = 130.0
DEFAULT_DEADLINE_SECONDS = 300.0
# Where the gateway itself is away, waits are random: up to 0.5, 1, 2 ... 16, 16 s, half of that on
# average, so all but one batch in 3,000 outlast a restart that takes 15 s. Where only its Triton
# is, they add up to 66 s at least.
DEFAULT_MAX_RETRIES = 10
DEFAULT_BACKOFF_SECONDS = 0.5


def _base_url_from_environment() -> str:
    return os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL


def _api_key_from_environment() -> str | None:
    return os.environ.get(API_KEY_VARIABLE)


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Hold the settings of a client; equal settings make interchangeable clients.

    Raises:
        ValueError: A setting is out of range. The message names it, and never the key.
    """

    base_url: str = field(default_factory=_base_url_from_environment)
    """Where the gateway listens, without `/embed`; a path prefix is kept."""
    api_key: str | None = field(default_factory=_api_key_from_environment, repr=False)
    """Sent as `Authorization: Bearer`; pickled with the client, shown nowhere."""
    model: str | None = None
    """Name to ask for; None takes whatever the gateway serves."""
    dimensions: int | None = None
    """Length of the vectors; None takes the gateway's default."""
    instruction: str | None = None
    """What a query is for; None takes the gateway's default. Documents never carry it."""
    truncate: bool | None = None
    """Cut texts that are too long (True) or refuse them (False); None leaves it to the gateway."""
    batch_size: int = DEFAULT_BATCH_SIZE
    """Most texts in one request."""
    max_batch_bytes: int = DEFAULT_MAX_BATCH_BYTES
    """Most bytes of text in one request, in UTF-8; a larger text travels alone."""
    max_concurrency: int = DEFAULT_MAX_CONCURRENCY
    """Most requests in flight at once, over all threads or all tasks of an event loop."""
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    """Seconds for one try, from its first byte to its last."""
    max_retries: int = DEFAULT_MAX_RETRIES
    """Further tries after the first."""
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS
    """Seconds for all tries of a request and the waits between them."""
    backoff_seconds: float = DEFAULT_BACKOFF_SECONDS
    """Longest wait before the first further try, in seconds; doubles with each."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", _checked_base_url(self.base_url))
        object.__setattr__(self, "api_key", _checked_key(self.api_key))
        _check_range("batch_size", self.batch_size, 1, MAX_TEXTS_PER_REQUEST)
        _check_range("max_batch_bytes", self.max_batch_bytes, 1)
        _check_range("max_concurrency", self.max_concurrency, 1)
        _check_range("max_retries", self.max_retries, 0)
        _check_range("backoff_seconds", self.backoff_seconds, 0)
        _check_positive("timeout", self.timeout)
        _check_positive("deadline_seconds", self.deadline_seconds)
        if self.dimensions is not None:
            _check_range("dimensions", self.dimensions, 1)

    def redact(self, text: str) -> str:
        """Replace the key in text that came from elsewhere."""
        return text.replace(self.api_key, "[api_key]") if self.api_key else text


def _checked_base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_valid = urlsplit(""), False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_valid:
        shown = repr(url) if "@" not in url else "that"
        msg = f"`base_url` must look like {DEFAULT_BASE_URL!r}, {shown} does not"
        raise ValueError(msg)
    if parts.username is not None or parts.password is not None:
        # Addresses appear in logs and errors, where a password must not.
        msg = "`base_url` must not carry a user name or password; use `api_key`"
        raise ValueError(msg)
    return url.rstrip("/")


def _checked_key(key: str | None) -> str | None:
    stripped = (key or "").strip()  # a key read from a file ends with a newline
    if not all("!" <= character <= "~" for character in stripped):
        msg = "`api_key` must consist of printable ASCII characters without spaces"
        raise ValueError(msg)
    return stripped or None


def _check_range(name: str, value: float, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        msg = f"`{name}` must be {allowed}, not {value!r}"
        raise ValueError(msg)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        msg = f"`{name}` must be above 0 seconds, not {value!r}"
        raise ValueError(msg)
