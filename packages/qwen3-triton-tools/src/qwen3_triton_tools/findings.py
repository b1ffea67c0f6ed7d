"""Findings: the one record of what a check found, and how findings are printed."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

# An error makes a command exit with 1; a warning may cost correct vectors, speed, or trouble later.
Severity: TypeAlias = Literal["ok", "note", "warning", "error", "skipped"]
# A line of output, and the color that a terminal may show it in.
Line: TypeAlias = tuple[str, str | None]

SIGNS: dict[Severity, str] = {"ok": "✓", "note": "i", "warning": "!", "error": "✗", "skipped": "–"}
COLORS: dict[Severity, str] = {
    "ok": "green",
    "note": "blue",
    "warning": "yellow",
    "error": "red",
    "skipped": "cyan",
}
MAX_NAME_WIDTH = 30
MIN_WIDTH, MAX_WIDTH = 80, 120
USER_INFO = re.compile(r"(\w+://[^\s:/@]*):[^\s/@]*@")
PASSWORD = re.compile(r"(password\s*=\s*)('[^']*'|[^\s&]+)", re.IGNORECASE)
HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was checked.
        severity: How bad it is.
        message: What was observed or measured.
        expected: What would be right, where the message is a measurement.
        cause: Why it is probably so.
        remedy: What to do about it.
    """

    name: str
    severity: Severity
    message: str
    expected: str = ""
    cause: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Findings that belong together, under a title."""

    title: str
    findings: tuple[Finding, ...]


def ok(name: str, message: str, expected: str = "") -> Finding:
    return Finding(name, "ok", message, expected)


def note(name: str, message: str, remedy: str = "") -> Finding:
    return Finding(name, "note", message, remedy=remedy)


def warning(name: str, message: str, remedy: str = "") -> Finding:
    return Finding(name, "warning", message, remedy=remedy)


def failure(name: str, message: str, remedy: str = "") -> Finding:
    return Finding(name, "error", message, remedy=remedy)


def skipped(name: str, message: str, remedy: str = "") -> Finding:
    return Finding(name, "skipped", message, remedy=remedy)


def missing(name: str, message: str, remedy: str, *, is_required: bool) -> Finding:
    """Report that something does not exist, which is an error only if the user refers to it."""
    return Finding(name, "error" if is_required else "skipped", message, remedy=remedy)


def has_errors(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def render_findings(findings: Sequence[Finding], name_width: int | None = None) -> list[Line]:
    """Return a line per finding, with its cause and remedy below it."""
    if name_width is None:
        name_width = _name_width(findings)
    return [line for finding in findings for line in _render(finding, name_width)]


def render_sections(sections: Sequence[Section]) -> list[Line]:
    """Return the findings under their titles, and a summary."""
    everything = [finding for section in sections for finding in section.findings]
    width = _name_width(everything)
    lines: list[Line] = []
    for section in sections:
        lines += [(section.title, None), *render_findings(section.findings, width), ("", None)]
    return [*lines, (summarize(everything), None)]


def summarize(findings: Iterable[Finding]) -> str:
    """Return how many findings there are of each severity, such as `3 ok, 1 error`."""
    counts = Counter(finding.severity for finding in findings)
    words = {"error": "errors", "warning": "warnings", "note": "notes"}
    return ", ".join(
        f"{counts[severity]} {words.get(severity, severity) if counts[severity] > 1 else severity}"
        for severity in SIGNS
        if counts[severity]
    )


def mask_secrets(sections: Iterable[Section], secrets: Iterable[str]) -> list[Section]:
    """Replace secrets, and passwords in connection strings, by asterisks."""
    longest_first = sorted({secret for secret in secrets if secret}, key=len, reverse=True)

    def mask(text: str) -> str:
        for secret in longest_first:
            text = text.replace(secret, HIDDEN)
        return PASSWORD.sub(rf"\1{HIDDEN}", USER_INFO.sub(rf"\1:{HIDDEN}@", text))

    def mask_finding(finding: Finding) -> Finding:
        return replace(
            finding,
            message=mask(finding.message),
            cause=mask(finding.cause),
            remedy=mask(finding.remedy),
        )

    return [
        Section(section.title, tuple(map(mask_finding, section.findings))) for section in sections
    ]


def _name_width(findings: Iterable[Finding]) -> int:
    return min(max((len(finding.name) for finding in findings), default=0), MAX_NAME_WIDTH)


def _render(finding: Finding, name_width: int) -> list[Line]:
    color = COLORS[finding.severity]
    message = " ".join(finding.message.split())
    if finding.expected:
        message += f" (expected: {finding.expected})"
    indent = " " * (name_width + 6)
    head = f"  {SIGNS[finding.severity]} {finding.name:<{name_width}}  "
    lines: list[Line] = [(line, color) for line in _wrap(message, head, indent)]
    if finding.cause:
        lines += [(line, None) for line in _wrap(f"Cause: {finding.cause}", indent, indent)]
    if finding.remedy:
        # Not wrapped: remedies hold commands to copy.
        lines.append((f"{indent}-> {finding.remedy}", None))
    return lines


def _wrap(text: str, first_indent: str, indent: str) -> list[str]:
    columns = shutil.get_terminal_size((MAX_WIDTH, 24)).columns
    return textwrap.wrap(
        text,
        width=max(MIN_WIDTH, min(MAX_WIDTH, columns)),
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
