"""Check that every public name of the published packages has a complete type.

Runs `pyright --verifytypes` for each package and prints what is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LLAMA_INDEX = "llama_index.embeddings.qwen3_triton"
PACKAGES = (
    *("langchain_qwen3_triton", LLAMA_INDEX, "qwen3_triton_client", "qwen3_triton_ingest"),
    *("qwen3_triton_gateway", "qwen3_triton_tools"),
)
# About base classes of dependencies without types.
UNTYPED_BASES = ("Type of metaclass unknown", "Type of base class unknown")


def main() -> int:
    """Print the gaps of all packages; return 1 if there are any."""
    with ThreadPoolExecutor(2) as pool:
        gaps = [gap for found in pool.map(find_gaps, PACKAGES) for gap in found]
    print("\n".join(gaps) or f"The public types of {len(PACKAGES)} packages are complete.")
    return 1 if gaps else 0


def find_gaps(package: str) -> list[str]:
    """Return a line for each public name of the package whose type is incomplete."""
    scripts = Path(sys.executable).parent
    # pyright looks for the package with the first Python on the path.
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    command = [
        str(scripts / "pyright"),
        "--verifytypes",
        package,
        "--ignoreexternal",
        "--outputjson",
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    report = json.loads(run.stdout)
    completeness = report["typeCompleteness"]
    if "pyTypedPath" not in completeness:
        return [f"{package}: no py.typed file found"]
    return list(_describe(package, completeness["symbols"]))


def _describe(package: str, symbols: list[dict[str, Any]]) -> Iterator[str]:
    for symbol in symbols:
        # `llama_index.core` shares a namespace with the adapter, so pyright does not take it for
        # external. Its own gaps make what inherits from it "partially unknown".
        if not symbol["name"].startswith(f"{package}."):
            continue
        for diagnostic in symbol["diagnostics"]:
            message = diagnostic["message"].splitlines()[0]
            is_inherited = package == LLAMA_INDEX and message.endswith("is partially unknown")
            if (
                diagnostic["severity"] == "error"
                and not is_inherited
                and message not in UNTYPED_BASES
            ):
                yield f"{symbol['name']}: {message}"


if __name__ == "__main__":
    sys.exit(main())
