"""Another `/embed` server, given as the path of its `app.py`, in an environment of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements" / "bench-baseline.txt"
ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv-baseline"
START_SECONDS = 120.0


def baseline_python() -> Path:
    """Make the environment with the runbook's versions, once, and give its Python."""
    python = ENVIRONMENT / "bin" / "python"
    done = ENVIRONMENT / ".installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([python, *install, "--require-hashes", "-r", REQUIREMENTS], check=True)
        done.touch()
    return python


@contextmanager
def running_baseline(
    app: Path, *, triton_url: str, model: str, tokenizer_dir: Path
) -> Generator[str]:
    """Serve `app` by uvicorn in front of a Triton and give its URL."""
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
    command = [baseline_python(), "-m", "uvicorn", f"{app.stem}:app", "--port", str(port)]
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
    raise RuntimeError(f"the baseline at {url} does not answer")
