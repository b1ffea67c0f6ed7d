"""What a check says: one frozen record, and the few ways to make it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it stands, what was seen, and how to mend it."""

    name: str
    outcome: Outcome
    seen: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Checks that belong together, under a title."""

    title: str
    checks: tuple[Check, ...]


def ok(name: str, seen: str) -> Check:
    """Record that all is well."""
    return Check(name, "ok", seen)


def warning(name: str, seen: str, remedy: str = "") -> Check:
    """Record what works now and may hurt later."""
    return Check(name, "warning", seen, remedy)


def failed(name: str, seen: str, remedy: str = "") -> Check:
    """Record what is wrong, and the way out."""
    return Check(name, "failed", seen, remedy)


def skipped(name: str, seen: str, remedy: str = "") -> Check:
    """Record what could not be checked, and why."""
    return Check(name, "skipped", seen, remedy)


def absent(name: str, seen: str, remedy: str, *, named: bool) -> Check:
    """Fail over what the user named and is not there; skip what is only not there."""
    return Check(name, "failed" if named else "skipped", seen, remedy)


def readable_size(size_bytes: float) -> str:
    """Write a size as people read it."""
    if size_bytes < 2**30:
        return f"{size_bytes / 2**20:.1f} MiB"
    return f"{size_bytes / 2**30:.1f} GiB"


def version_tuple(text: str) -> tuple[int, ...]:
    """Read the leading numbers of a version: `0.8.4-dev` is (0, 8, 4)."""
    numbers: list[int] = []
    for part in text.strip().split("."):
        digits = ""
        for character in part:
            if not character.isdigit():
                break
            digits += character
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
