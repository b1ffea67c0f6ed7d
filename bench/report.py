"""Rows of measurements and targets, on a terminal and as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qwen3_triton_gateway import __version__


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: both sides in words, the ratio or difference, and its target."""

    what: str
    ours: str
    other: str
    result: str
    target: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "missed", None: ""}[self.met]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format a median with its range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


SIDES = ("", "the gateway", "compared with")
RESULT = ("measured", "target", "")


def show(rows: Sequence[Row], console: Console, header: Sequence[str] = SIDES) -> None:
    """Print the rows as a table."""
    table = Table(*header, *RESULT)
    for row in rows:
        table.add_row(row.what, row.ours, row.other, row.result, row.target, row.verdict)
    console.print(table)


def write_markdown(rows: Sequence[Row], path: Path, header: Sequence[str] = SIDES) -> None:
    """Write the rows as Markdown, with the machine and the commit."""
    titles = (*header, *RESULT)
    lines = [
        machine(),
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
    ]
    for row in rows:
        cells = (row.what, row.ours, row.other, row.result, row.target, row.verdict)
        lines.append("| " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def machine() -> str:
    """Describe the machine and the commit of a measurement."""
    cpu = next(
        (
            line.partition(": ")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"{os.cpu_count()} cores of {cpu}, Python {platform.python_version()}, "
        f"version {__version__}, commit {commit}, {date.today():%B %Y}."
    )
