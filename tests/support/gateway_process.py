"""The gateway as users run it: a child process on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

import qwen3_nano
from qwen3_triton_tools.local_triton.process import free_ports

LISTENING = re.compile(r"running on (http://[\d.]+:\d+)")
START_SECONDS = 120.0
# Time limit of a request, for those that hang.
ANSWER_SECONDS = 60.0
# These gateways have no other callers, so they need not keep listening after SIGTERM. What engine
# `auto` takes depends on the machine, and so do the vectors' last bits. Other tests have the other
# cores, so a second thread only costs: a quarter of the CPU, for this model.
DEFAULTS = (
    *("--port", "0", "--shutdown-delay-s", "0"),
    *("--engine", "onnxruntime", "--threads", "1"),
)
TOKENIZER = ("--tokenizer-path", str(qwen3_nano.model_dir()))


def triton_flags(url: str, model: str = qwen3_nano.MODEL_ID) -> tuple[str, ...]:
    """Return the flags that point a gateway at a model of a Triton."""
    return ("--triton-url", url, *model_flags(model))


def model_flags(model: str = qwen3_nano.MODEL_ID) -> tuple[str, ...]:
    """Return what `triton_flags` does, but for the Triton."""
    return ("--triton-model", model, "--model-id", model, *TOKENIZER)


class GatewayProcess:
    """A running `qwen3-triton serve`, or `up`.

    Attributes:
        url: Known once it listens.
        api_key: What its own requests send.
    """

    def __init__(self, *flags: str, command: str = "serve") -> None:
        self.log_path = Path(tempfile.mkstemp(prefix="gateway-", suffix=".log")[1])
        clean = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qwen3_triton_gateway", command, *DEFAULTS, *flags],
                stdout=log,
                stderr=log,
                env=clean,
            )
        self.url = ""
        self.api_key = ""

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_listening(self) -> None:
        self._poll(self._find_url)

    def wait_ready(self) -> None:
        self.wait_listening()
        self._poll(self.is_ready)

    def is_ready(self) -> bool:
        try:
            return self._get("/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def is_complete(self) -> bool:
        """Return whether requests for every model are answered."""
        return self.health()["status"] == "ok"

    def health(self) -> dict[str, Any]:
        return self._get("/health").json()

    def info(self) -> dict[str, Any]:
        return self._get("/info").json()

    def metric(self, name: str, **labels: str) -> float:
        """Read a metric, summed over the labels that are not given."""
        text = self._get("/metrics").text
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
        return sum(
            sample.value
            for sample in samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def stop(self) -> int:
        """Stop cleanly, or by force after a while, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.log_path.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill it, as a crash would: nothing is finished."""
        self.process.kill()
        self.process.wait()
        self.log_path.unlink(missing_ok=True)

    def _get(self, path: str) -> httpx2.Response:
        # To load the certificates, unused here, takes longer than the rest of a poll.
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return httpx2.get(self.url + path, headers=headers, timeout=ANSWER_SECONDS, verify=False)

    def _find_url(self) -> bool:
        found = LISTENING.search(self.log)
        if found:
            self.url = found[1]
        return bool(found)

    def _poll(self, condition: object) -> None:
        assert callable(condition)
        end = time.monotonic() + START_SECONDS
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"The gateway did not become ready:\n{self.log[-3000:]}")
            time.sleep(0.05)


class MortalGateway:
    """A gateway that can be killed and restarted on the same port.

    Attributes:
        process: The one that runs now.
        port: That of all of them.
    """

    def __init__(self, *flags: str) -> None:
        self.port = free_ports(1)[0]
        self._flags = (*flags, "--port", str(self.port))
        self.process = GatewayProcess(*self._flags)

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def texts(self) -> float:
        """The number of texts embedded since the start."""
        return self.process.metric("qwen3_triton_texts_total")

    def wait_ready(self) -> None:
        self.process.wait_ready()

    def kill(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        self.process = GatewayProcess(*self._flags)
        self.process.wait_ready()

    def stop(self) -> None:
        self.process.stop()


@contextmanager
def running_gateway(*flags: str, command: str = "serve") -> Generator[GatewayProcess]:
    """Run a gateway with these flags for the length of a `with` block, ready from its start."""
    gateway = GatewayProcess(*flags, command=command)
    try:
        gateway.wait_ready()
        yield gateway
    finally:
        gateway.stop()


def running_stack(*flags: str) -> AbstractContextManager[GatewayProcess]:
    """Run a gateway and its own Triton, as `qwen3-triton up` does."""
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    return running_gateway(*ports, *flags, command="up")


def _is_setting(name: str) -> bool:
    """Return whether a variable is a setting: those of the caller must not affect the tests."""
    return name.startswith(("EMBED_", "RERANK_", "TRITON_")) or name == "TOKENIZER_PATH"
