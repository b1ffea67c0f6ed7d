"""Separate environments for what the gateway is compared with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# As in `make parity`: installed separately, so that a CPU build can be found.
TORCH = "torch==2.13.0"


def environment_python(name: str) -> Path:
    """Return the Python with `requirements/bench-NAME.txt` installed; create it if missing."""
    folder = ROOT / f".venv-{name}"
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        requirements = ROOT / "requirements" / f"bench-{name}.txt"
        if name == "infinity":
            subprocess.run([*install, TORCH], check=True)
        locked = ["--no-deps", "--require-hashes", "-r", requirements]
        subprocess.run([*install, *locked], check=True)
        done.touch()
    return python


def parity_python() -> Path | None:
    """Return the Python of `make parity`, which has sentence-transformers, if it exists."""
    folder = ROOT / ".venv-parity"
    return folder / "bin" / "python" if (folder / ".installed").exists() else None
