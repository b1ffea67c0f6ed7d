"""What a check found: how bad it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

# An error keeps the gateway from serving the model; a warning may cost right vectors or speed.
Severity: TypeAlias = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence of what is, and one of what to do; `remedy` may be empty in a note."""

    severity: Severity
    message: str
    remedy: str = ""


def has_errors(findings: list[Finding]) -> bool:
    """Say whether anything keeps the gateway from serving the model."""
    return any(finding.severity == "error" for finding in findings)
