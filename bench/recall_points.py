"""The measurements of an index choice, and their plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Point", "write_plot"]


@dataclass(frozen=True, slots=True)
class Point:
    """The measurements of one choice with one `ef_search`."""

    choice: str
    ef_search: int
    recall: float
    returned: float
    """Rows that a search returned, on average."""
    milliseconds: list[float]

    @property
    def p50(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.milliseconds, n=20)[-1]

    @property
    def latency(self) -> str:
        return f"{self.p50:.1f} ms, {self.p95:.1f} ms"


def write_plot(points: Sequence[Point], path: Path, documents: int) -> None:
    """Plot recall over median latency as SVG; equal points give an equal file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "recall", "svg.fonttype": "none", "font.family": "sans-serif"}
    from matplotlib import pyplot

    plt: Any = pyplot
    figure, axes = plt.subplots(figsize=(8, 5))
    for name in dict.fromkeys(point.choice for point in points):
        line = [point for point in points if point.choice == name]
        axes.plot(
            [point.p50 for point in line],
            [point.recall for point in line],
            marker="o",
            label=name,
        )
        for point in line:
            at = (point.p50, point.recall)
            axes.annotate(
                str(point.ef_search), at, xytext=(4, -10), textcoords="offset points", fontsize=7
            )
    axes.set_xscale("log")
    axes.set_xlabel("median latency of a search, ms (one connection)")
    axes.set_ylabel("recall@10")
    axes.set_title(f"{documents:,} real texts, 1,024 dimensions; numbers are hnsw.ef_search")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
