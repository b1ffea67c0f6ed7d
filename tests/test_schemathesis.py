"""Requests generated from the OpenAPI document: every answer is one that the document describes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway_process import running_gateway

KEY = "long-enough-key"
EXAMPLES = 15


@pytest.mark.campaign
@pytest.mark.parametrize("flags", [(), ("--api-keys", KEY)], ids=["open", "keys"])
def test_generated_requests_get_described_answers(flags: tuple[str, ...], tmp_path: Path) -> None:
    headers = ("--header", f"Authorization: Bearer {KEY}") if flags else ()
    with running_gateway(*flags) as gateway:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"),
            *("--checks", "all", "--phases", "coverage,fuzzing", "--continue-on-failure"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--generation-database", "none"),
            *("--suppress-health-check", "all", "--no-color"),
            *headers,
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
