"""Ask over HTTP, and say in plain words why nobody answered."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
DEFAULT_PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}
# Answers are small; whatever streams without end at a port is not ours.
MAX_ANSWER_BYTES = 64 * 2**20

# Straight to the address: a proxy would answer for those behind it.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class UnreachableError(Exception):
    """Nobody answers there, or not in HTTP; the message says which."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of any status."""

    status: int
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object that it holds, empty where it holds none."""
        parsed = self.parsed
        return cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}

    @property
    def parsed(self) -> object:
        """The JSON that it holds, or None."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def excerpt(self) -> str:
        """Its beginning on one line."""
        return " ".join(self.body[:400].decode(errors="replace").split())[:160]


def ask(
    url: str,
    *,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float,
) -> Reply:
    """GET, or POST `body` as JSON; any status is an answer.

    Raises:
        UnreachableError: nobody answers, or not in HTTP.
    """
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    where = host_and_port(url)
    try:
        request = urllib.request.Request(url, data, sent)
        with _direct.open(request, timeout=timeout_seconds) as response:
            return Reply(response.status, response.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read(MAX_ANSWER_BYTES))
    except urllib.error.URLError as error:
        raise UnreachableError(_reason(error.reason, where, timeout_seconds)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnreachableError(_reason(error, where, timeout_seconds)) from None


def host_and_port(url: str) -> tuple[str, int]:
    """Read host and port of a URL, with the scheme's port where it names none."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.hostname or "", port or DEFAULT_PORTS.get(parts.scheme, 80)


def is_local(url: str) -> bool:
    """Say whether a URL names this machine."""
    return host_and_port(url)[0] in LOCAL_HOSTS


def listens(host: str, port: int, timeout_seconds: float = 1.0) -> bool:
    """Say whether somebody takes connections there."""
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def _reason(error: object, where: tuple[str, int], timeout_seconds: float) -> str:
    host, port = where
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {host}:{port}"
    if isinstance(error, socket.gaierror):
        return f"the name {host!r} cannot be resolved"
    if isinstance(error, TimeoutError):
        return f"{host}:{port} gave no answer within {timeout_seconds:g} s"
    if isinstance(error, http.client.HTTPException):
        return f"what listens at {host}:{port} does not speak HTTP"
    return f"{host}:{port} cannot be reached ({error})"
