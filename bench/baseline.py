"""Another `/embed` server, given as the path of its `app.py`, in its own environment."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from environments import environment_python

START_SECONDS = 120.0


@contextmanager
def running_baseline(
    app: Path, *, triton_url: str, model: str, tokenizer_dir: Path
) -> Generator[str]:
    """Serve `app` with uvicorn in front of a Triton, and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "TRITON_URL": triton_url,
        "TRITON_MODEL": model,
        "TOKENIZER_PATH": str(tokenizer_dir),
        "EMBED_MODEL_ID": model,
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [
        environment_python("baseline"),
        "-m",
        "uvicorn",
        f"{app.stem}:app",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        [*command, "--log-level", "warning", "--no-access-log"],
        cwd=app.parent,
        env=os.environ | settings | {"PYTHONDONTWRITEBYTECODE": "1"},
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"The baseline at {url} does not respond.")
