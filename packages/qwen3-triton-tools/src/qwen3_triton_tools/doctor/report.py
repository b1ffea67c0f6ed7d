"""Checks as text for people and as JSON for scripts, never with a secret in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from .checks import Check, Outcome, Section

SIGNS: dict[Outcome, str] = {"ok": "✓", "warning": "!", "failed": "✗", "skipped": "–"}
COLORS: dict[Outcome, str] = {
    "ok": "green",
    "warning": "yellow",
    "failed": "red",
    "skipped": "cyan",
}
WIDEST_NAME = 30
USER_INFO = re.compile(r"(\w+://[^\s:/@]*):[^\s/@]*@")
PASSWORD = re.compile(r"(password\s*=\s*)('[^']*'|[^\s&]+)", re.IGNORECASE)
HIDDEN = "***"


def without_secrets(sections: Iterable[Section], secrets: Iterable[str]) -> list[Section]:
    """Put stars where a text names a secret, or a URI with a password in it."""
    known = sorted({secret for secret in secrets if secret}, key=len, reverse=True)

    def mask(text: str) -> str:
        for secret in known:
            text = text.replace(secret, HIDDEN)
        return PASSWORD.sub(rf"\1{HIDDEN}", USER_INFO.sub(rf"\1:{HIDDEN}@", text))

    return [
        Section(
            section.title,
            tuple(
                replace(check, seen=mask(check.seen), remedy=mask(check.remedy))
                for check in section.checks
            ),
        )
        for section in sections
    ]


def as_document(sections: Sequence[Section]) -> dict[str, Any]:
    """Shape the report for `--json`."""
    return {
        "ok": not any_failed(sections),
        "counts": dict(_counts(sections)),
        "checks": [
            {"section": section.title, **asdict(check)}
            for section in sections
            for check in section.checks
        ],
    }


def any_failed(sections: Sequence[Section]) -> bool:
    """Say whether anything is wrong."""
    return bool(_counts(sections)["failed"])


def as_lines(sections: Sequence[Section]) -> list[tuple[str, str | None]]:
    """Give the lines of the report, each with the color that a terminal may show it in."""
    names = [len(check.name) for section in sections for check in section.checks]
    width = min(max(names, default=0), WIDEST_NAME)
    lines: list[tuple[str, str | None]] = []
    for section in sections:
        lines += [("", None)] if lines else []
        lines.append((section.title, None))
        for check in section.checks:
            lines += _check_lines(check, width)
    counts = _counts(sections)
    summary = ", ".join(f"{counts[outcome]} {outcome}" for outcome in SIGNS if counts[outcome])
    return [*lines, ("", None), (summary, None)]


def _check_lines(check: Check, width: int) -> list[tuple[str, str | None]]:
    color = COLORS[check.outcome]
    seen = " ".join(check.seen.split())
    lines: list[tuple[str, str | None]] = [
        (f"  {SIGNS[check.outcome]} {check.name:<{width}}  {seen}", color)
    ]
    if check.remedy:
        lines.append((f"    {'':<{width}}  -> {check.remedy}", None))
    return lines


def _counts(sections: Sequence[Section]) -> Counter[Outcome]:
    return Counter(check.outcome for section in sections for check in section.checks)
