"""Other embedding engines on the gateway's weights, in their own environments."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environments import environment_python, parity_python

SCRIPT = Path(__file__).with_name("peer_engines.py")
# Engines with an environment of their own.
APART = ("infinity", "llama")


@dataclass(frozen=True, slots=True)
class Peer:
    """The results of one of them: the rate of every round, and the first text's vector."""

    texts_per_second: list[float]
    first: list[float]


def measure_peers(
    model_dir: Path,
    texts: Sequence[str],
    engines: Sequence[str] = ("sentence-transformers", "infinity"),
) -> dict[str, Peer]:
    """Embed the texts with each engine, one after the other.

    Raises:
        RuntimeError: The environment of the parity tests does not exist.
    """
    parity = parity_python()
    if parity is None:
        msg = "sentence-transformers is not installed for the comparison: run `make parity` first."
        raise RuntimeError(msg)
    pythons = {
        engine: environment_python(engine) if engine in APART else parity for engine in engines
    }
    with tempfile.TemporaryDirectory() as name:
        checkpoint, listed = Path(name) / "checkpoint", Path(name) / "texts.json"
        listed.write_text(json.dumps(list(texts)))
        _run(parity, "checkpoint", model_dir, checkpoint)
        return {
            engine: Peer(**json.loads(_run(python, engine, checkpoint, listed)))
            for engine, python in pythons.items()
        }


def _run(python: Path, *arguments: str | Path) -> str:
    done = subprocess.run([python, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{arguments[0]} failed:\n{done.stderr[-2000:]}"
        raise RuntimeError(msg)
    return done.stdout
