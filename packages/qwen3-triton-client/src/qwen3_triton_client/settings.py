"""The settings of a client, checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

InputType = Literal["document", "query"]

BASE_URL_VARIABLE = "QWEN3_TRITON_URL"
API_KEY_VARIABLE = "QWEN3_TRITON_API_KEY"
DEFAULT_BASE_URL = "http://localhost:8101"
MAX_TEXTS_PER_REQUEST = 2048  # the gateway refuses more
# A request costs the client as much as about twenty short texts do, so many short texts share one.
# Long texts are limited by their bytes (about 16,000 tokens), so that a request ends well before
# the gateway's deadline.
DEFAULT_BATCH_SIZE = 128
DEFAULT_MAX_BATCH_BYTES = 1 << 16
DEFAULT_MAX_CONCURRENCY = 8
# Above the gateway's own limit of 120 s, so that a slow request ends with its 504. If the client
# hung up first, the gateway would still be computing what the client asks for again.
DEFAULT_TIMEOUT_SECONDS = 130.0
DEFAULT_DEADLINE_SECONDS = 300.0
# While the gateway itself is down, waits are random: up to 0.5, 1, 2 ... 16, 16 s, half of that on
# average, so that all but one batch in 3,000 outlast a restart of 15 s. While only its Triton is
# down, they add up to at least 66 s.
DEFAULT_MAX_RETRIES = 10
DEFAULT_BACKOFF_SECONDS = 0.5


def _base_url_from_environment() -> str:
    return os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL


def _api_key_from_environment() -> str | None:
    return os.environ.get(API_KEY_VARIABLE)


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """The settings of a client; clients with equal settings are interchangeable.

    Attributes:
        base_url: Address of the gateway, without `/embed`; a path prefix is kept. Default:
            `QWEN3_TRITON_URL`, else `http://localhost:8101`.
        api_key: Sent as `Authorization: Bearer`. It is pickled with the client but never shown.
            Default: `QWEN3_TRITON_API_KEY`, else none.
        model: Model name to request; None accepts whatever the gateway serves.
        dimensions: Length of the vectors; None uses the gateway's default.
        instruction: The task that queries are for; None uses the gateway's default. Documents
            never carry an instruction.
        truncate: Whether texts that are too long are cut (True) or refused (False); None uses the
            gateway's default.
        batch_size: Maximum number of texts per request.
        max_batch_bytes: Maximum bytes of text per request, in UTF-8; a larger text is sent alone.
        max_concurrency: Maximum number of requests in flight, over all threads or over all tasks
            of an event loop.
        timeout: Seconds for one try, from its first byte to its last.
        max_retries: Retries after the first try.
        deadline_seconds: Seconds for all tries of a request and the waits between them.
        backoff_seconds: Upper bound of the first random wait, in seconds; doubles with each retry.

    Raises:
        ValueError: A setting is out of range. The message names it, but never the key.
    """

    base_url: str = field(default_factory=_base_url_from_environment)
    api_key: str | None = field(default_factory=_api_key_from_environment, repr=False)
    model: str | None = None
    dimensions: int | None = None
    instruction: str | None = None
    truncate: bool | None = None
    batch_size: int = DEFAULT_BATCH_SIZE
    max_batch_bytes: int = DEFAULT_MAX_BATCH_BYTES
    max_concurrency: int = DEFAULT_MAX_CONCURRENCY
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    max_retries: int = DEFAULT_MAX_RETRIES
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS
    backoff_seconds: float = DEFAULT_BACKOFF_SECONDS

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
        """Replace the key in a text from elsewhere."""
        return text.replace(self.api_key, "[api_key]") if self.api_key else text


def _checked_base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_valid = urlsplit(""), False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_valid:
        shown = f", not {url!r}" if "@" not in url else ""  # which may hold a password
        msg = f"`base_url` must look like {DEFAULT_BASE_URL!r}{shown}."
        raise ValueError(msg)
    if parts.username is not None or parts.password is not None:
        # Addresses appear in logs and errors, where a password must not.
        msg = "`base_url` must not contain a user name or password. Use `api_key` instead."
        raise ValueError(msg)
    return url.rstrip("/")


def _checked_key(key: str | None) -> str | None:
    stripped = (key or "").strip()  # a key read from a file ends with a newline
    if not all("!" <= character <= "~" for character in stripped):
        msg = "`api_key` must consist of printable ASCII characters without spaces."
        raise ValueError(msg)
    return stripped or None


def _check_range(name: str, value: float, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"between {low} and {high}"
        msg = f"`{name}` must be {allowed}, not {value!r}."
        raise ValueError(msg)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        msg = f"`{name}` must be above 0 seconds, not {value!r}."
        raise ValueError(msg)
