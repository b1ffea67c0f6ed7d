"""Requests generated from the OpenAPI document: every answer is one that the document describes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qwen3_nano
import schemathesis_hooks
from gateway_process import running_gateway
from reranker_graph import write_reranker

KEY = "long-enough-key"
EXAMPLES = 15
HOOKS = schemathesis_hooks.__name__
SUPPORT = Path(schemathesis_hooks.__file__).parent


@pytest.mark.campaign
@pytest.mark.parametrize("flags", [(), ("--api-keys", KEY)], ids=["open", "keys"])
def test_generated_requests_get_described_answers(flags: tuple[str, ...], tmp_path: Path) -> None:
    headers = ("--header", f"Authorization: Bearer {KEY}") if flags else ()
    reranker = ("--rerank-model-dir", str(write_reranker(tmp_path / "reranker")))
    embedder = ("--model-dir", str(qwen3_nano.model_dir()))
    with running_gateway(*embedder, *reranker, *flags) as gateway:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"),
            *("--checks", "all", "--phases", "coverage,fuzzing", "--continue-on-failure"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--generation-database", "none"),
            *("--suppress-health-check", "all", "--no-color"),
            *("--request-timeout", "60"),
            *headers,
        ]
        environment = {**os.environ, "PYTHONPATH": str(SUPPORT), "SCHEMATHESIS_HOOKS": HOOKS}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
