"""HTTP requests to the servers that the tools check."""

from __future__ import annotations

import functools
import json
import logging
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2

from .errors import UnreachableError

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
DEFAULT_PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}
# Answers are small; a port that streams more than this is not one of our servers.
MAX_ANSWER_BYTES = 64 * 2**20
# It logs every request at INFO, and `up` logs at that level: each poll would be a line.
logging.getLogger("httpx2").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whatever its status."""

    status: int
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object in the body; empty if the body is not one."""
        parsed = self.parsed
        return cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}

    @property
    def parsed(self) -> object:
        """The JSON value in the body, or None."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def excerpt(self) -> str:
        """The beginning of the body on one line."""
        return " ".join(self.body[:400].decode(errors="replace").split())[:160]


def request(
    url: str,
    *,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    timeout_seconds: float,
) -> Reply:
    """Send GET, or POST with `body` as JSON; an answer of any status is returned.

    Raises:
        UnreachableError: Nothing answers there, or not in HTTP.
    """
    method = "GET" if body is None else "POST"
    try:
        # Without the environment's proxies: a proxy would answer for the servers behind it.
        with (
            httpx2.Client(
                timeout=timeout_seconds,
                trust_env=False,
                follow_redirects=True,
                verify=ssl_context or _tls(),
            ) as client,
            client.stream(method, url, json=body, headers=headers) as response,
        ):
            content = b""
            for part in response.iter_bytes():
                content += part
                if len(content) > MAX_ANSWER_BYTES:
                    break
            return Reply(response.status_code, content)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise UnreachableError(_reason(error, url, timeout_seconds)) from None


def host_and_port(url: str) -> tuple[str, int]:
    """Return the host and port of a URL; the port defaults to that of the scheme."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.hostname or "", port or DEFAULT_PORTS.get(parts.scheme, 80)


def is_local(url: str) -> bool:
    """Return whether a URL names this machine."""
    return host_and_port(url)[0] in LOCAL_HOSTS


def accepts_connections(host: str, port: int, timeout_seconds: float = 1.0) -> bool:
    """Return whether a TCP connection can be opened."""
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


@functools.cache
def _tls() -> ssl.SSLContext:
    """Load the certificates once: that takes longer than a request."""
    return httpx2.create_ssl_context(trust_env=False)


def _reason(error: Exception, url: str, timeout_seconds: float) -> str:
    host, port = host_and_port(url)
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return f"Nothing listens at {host}:{port}."
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"The host name {host!r} cannot be resolved."
    if isinstance(error, httpx2.TimeoutException):
        return f"{host}:{port} did not answer within {timeout_seconds:g} s."
    if isinstance(error, httpx2.RemoteProtocolError):
        return f"The server at {host}:{port} does not speak HTTP."
    return f"{host}:{port} cannot be reached ({error})."
