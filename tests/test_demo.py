"""`make demo` as people run it, without the installation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.stack

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_demo_finds_answers_through_both_frameworks_and_leaves_nothing(tmp_path: Path) -> None:
    # In a temporary folder of its own, anything left behind shows.
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=EXAMPLES,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for framework in ("LangChain", "LlamaIndex"):
        assert f"Index with {framework}   312 documents" in done.stdout
        assert f"{framework}: " in done.stdout
    assert "Start Triton with the nano models and the gateway" in done.stdout
    reranked = done.stdout.partition("Searches by title, reranked")[2]
    before, after = zip(*re.findall(r"rank (\d+) │ +rank (\d+)", reranked), strict=True)
    assert sum(1 / int(rank) for rank in after) > sum(1 / int(rank) for rank in before)
    assert [path.name for path in tmp_path.iterdir()] == []
