"""The product as users run it: a child process in its own environment, called over HTTP."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMMAND = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "qwen3-triton"
START_SECONDS = 600.0

Vectors = NDArray[np.float32]


def product(*arguments: str) -> Any:
    """Run a command with `--json`, and return what it printed."""
    done = subprocess.run([COMMAND, *arguments], capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    return json.loads(done.stdout)


@contextmanager
def running(command: str, *flags: str | Path, log: Path) -> Generator[str]:
    """Run `qwen3-triton up` or `serve` on free ports and yield the URL of the gateway."""
    ports = ["--port"]
    if command == "up":
        ports += ["--http-port", "--grpc-port", "--metrics-port"]
    free = [word for port in ports for word in (port, "0")]
    with log.open("wb") as output:
        process = subprocess.Popen([COMMAND, command, *flags, *free], stdout=output, stderr=output)
        try:
            yield _wait_ready(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        listening = re.search(r"running on (http://[\d.]+:\d+)", log.read_text())
        if listening:
            try:
                urllib.request.urlopen(f"{listening[1]}/health/ready", timeout=5)
            except (urllib.error.URLError, OSError):
                pass
            else:
                return listening[1]
        time.sleep(0.1)
    raise AssertionError(f"The product did not start:\n{log.read_text()[-3000:]}")


def embed(url: str, texts: list[str], **fields: Any) -> Vectors:
    """Embed texts through the running product."""
    body = json.dumps({"texts": texts, "encoding_format": "base64", **fields}).encode()
    request = urllib.request.Request(f"{url}/embed", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=3600) as response:
        rows = json.load(response)["embeddings"]
    return np.stack([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows])


def worst_cosine(left: Vectors, right: Vectors) -> float:
    a, b = left.astype(np.float64), right.astype(np.float64)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosines.min())


def info(url: str) -> dict[str, Any]:
    """Return what the running product says of itself."""
    with urllib.request.urlopen(f"{url}/info", timeout=30) as response:
        return json.load(response)


TRITON = """
import sys
import tempfile
from pathlib import Path
from qwen3_triton_tools.local_triton import LocalTriton, write_repository
with tempfile.TemporaryDirectory() as folder:
    for argument in sys.argv[1:]:
        name, _, model = argument.partition("=")
        write_repository(Path(model), Path(folder), model_name=name, max_batch_size=8)
    with LocalTriton(model_repository=Path(folder), ready_timeout_seconds=600) as triton:
        print(triton.grpc_url, triton.http_url, flush=True)
        sys.stdin.read()
        sys.stderr.write(triton.end_reason)
"""


@contextmanager
def running_triton(models: dict[str, Path]) -> Generator[dict[str, str]]:
    """Run a local Triton with models by their names, and yield its addresses by their schemes."""
    arguments = [f"{name}={folder}" for name, folder in models.items()]
    command = [COMMAND.with_name("python"), "-c", TRITON, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            urls = process.stdout.readline().split()
            assert urls, "Triton did not start; its log is above."
            yield {url.partition(":")[0]: url for url in urls}
        finally:
            process.stdin.close()  # it ends then


def score(url: str, pairs: list[tuple[str, str]]) -> NDArray[np.float64]:
    """Score pairs of a query and a document in one request, in their order."""
    queries, documents = zip(*pairs, strict=True)
    body = json.dumps({"text_1": queries, "text_2": documents, "truncate": True}).encode()
    request = urllib.request.Request(f"{url}/score", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=3600) as response:
        data = json.load(response)["data"]
    return np.array([entry["score"] for entry in data])


def rows_per_batch(url: str) -> float:
    """Return how many pairs the model was given at a time, on average."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    totals = {"sum": 0.0, "count": 0.0}
    for line in lines:
        found = re.match(r"qwen3_triton_rerank_batch_rows_(sum|count)\{.*\} (\S+)", line)
        if found:
            totals[found[1]] += float(found[2])
    return totals["sum"] / totals["count"]
