"""`qwen3-triton model verify` as a script calls it, and what its report says."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from qwen3_triton_gateway.cli import main


def verify(target: str, *flags: object, env: dict[str, str] | None = None) -> tuple[int, Any]:
    """Run the command, and return its exit code and its report."""
    arguments = ["model", "verify", target, "--json", *map(str, flags)]
    result = CliRunner().invoke(main, arguments, env=env)
    assert result.stdout, result.output
    return result.exit_code, json.loads(result.stdout)


def outcome(report: Any, name: str) -> Any:
    """Return the check with this name."""
    return next(check for check in report["checks"] if check["name"] == name)


def names(report: Any, status: str) -> set[str]:
    """Return the names of the checks with this status."""
    return {check["name"] for check in report["checks"] if check["status"] == status}
