"""The gateway and Triton, as child processes of the demo."""

import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import qwen3_nano_reranker
from demo.supervised import Supervised, start_supervised
from qwen3_triton_tools.local_triton.process import free_ports

_START_ATTEMPTS = 3
_POLL_SECONDS = 0.1
_REQUEST_TIMEOUT_SECONDS = 5.0
_STOP_SECONDS = 30.0
# Settings of the user's own gateway must not affect the demo's.
_FOREIGN_SETTINGS = ("EMBED_", "RERANK_", "TRITON_", "TOKENIZER_PATH", "QWEN3_TRITON_URL")


class StackError(RuntimeError):
    """The gateway or Triton did not start, or exited. The message has the end of their log."""


class _PortTakenError(StackError):
    """Another process took a port between its choice and its use."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The servers' ports on 127.0.0.1."""

    gateway: int
    triton_http: int
    triton_grpc: int
    triton_metrics: int


class EmbeddingStack:
    """The nano models behind the gateway: in a real Triton, or in the gateway's own process.

    As a context manager, it starts the servers without waiting for them, and stops them on exit.

    Args:
        with_triton: Start Triton too. Otherwise the gateway runs the model in-process.
    """

    def __init__(self, *, with_triton: bool) -> None:
        self.with_triton = with_triton
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.stop()

    @property
    def ports(self) -> Ports:
        """The ports in use; final once `wait_until_ready` has returned."""
        return self._ports

    @property
    def base_url(self) -> str:
        """The gateway's address; final once `wait_until_ready` has returned."""
        return f"http://127.0.0.1:{self._ports.gateway}"

    def has_ended(self) -> bool:
        return self._server.has_ended()

    def log_tail(self) -> str:
        """Return the end of the gateway's and Triton's log."""
        return self._server.log_tail()

    def wait_until_ready(self, timeout_seconds: float, on_wait: Callable[[str], None]) -> None:
        """Wait until the gateway serves both models; call `on_wait` with what is missing.

        Raises:
            StackError: A server exited, or was not ready in time.
        """
        deadline = time.monotonic() + timeout_seconds
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                self._wait(deadline, on_wait)
            except _PortTakenError:
                if attempt == _START_ATTEMPTS:
                    raise
                self._server.stop()
                self._start()
            else:
                return

    def _start(self) -> None:
        self._ports = Ports(*free_ports(4))
        self._server: Supervised = start_supervised(
            [sys.executable, "-m", "qwen3_triton_gateway", *self._arguments()],
            directory=Path(tempfile.mkdtemp(prefix="qwen3-demo-")),
            environment=_clean_environment(),
            stop_seconds=_STOP_SECONDS,
        )

    def _arguments(self) -> list[str]:
        ports = self._ports
        gateway = ["--host", "127.0.0.1", "--port", str(ports.gateway)]
        if not self.with_triton:
            reranker = str(qwen3_nano_reranker.model_dir())
            return ["serve", *gateway, "--rerank-model-dir", reranker]
        return [
            *("up", "--rerank", *gateway, "--http-port", str(ports.triton_http)),
            *("--grpc-port", str(ports.triton_grpc), "--metrics-port", str(ports.triton_metrics)),
        ]

    def _wait(self, deadline: float, on_wait: Callable[[str], None]) -> None:
        while not (state := _ask_readiness(self.base_url)).ready:
            if self.has_ended():
                raise self._failure("exited at once")
            if time.monotonic() > deadline:
                raise self._failure("was not ready in time")
            on_wait(state.reason)
            time.sleep(_POLL_SECONDS)

    def _failure(self, what: str) -> StackError:
        log = self.log_tail()
        kind = _PortTakenError if "already in use" in log.lower() else StackError
        command = "qwen3-triton " + " ".join(self._arguments())
        return kind(f"`{command}` {what}. The end of its log:\n{log}")


@dataclass(frozen=True, slots=True)
class _Readiness:
    ready: bool
    reason: str = ""


def _ask_readiness(base_url: str) -> _Readiness:
    # Local addresses must not go through a proxy of the user's environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{base_url}/health/ready", timeout=_REQUEST_TIMEOUT_SECONDS):
            return _Readiness(ready=True)
    except urllib.error.HTTPError as error:
        with error:
            return _Readiness(ready=False, reason=_reason(error.read()))
    except (OSError, HTTPException):
        return _Readiness(ready=False, reason="waiting for the gateway to listen")


def _reason(body: bytes) -> str:
    """Return the reason in a negative health response, or a generic one."""
    try:
        answer: Any = json.loads(body)
    except ValueError:
        return "not ready yet"
    if not isinstance(answer, dict):
        return "not ready yet"
    fields = cast("dict[str, object]", answer)
    return str(fields.get("reason") or "not ready yet")


def _clean_environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_SETTINGS)
    }
