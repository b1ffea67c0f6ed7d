"""The rows and the plot of CPUs in docs/sizing.md, from what `qwen3-triton tune` measured.

.venv/bin/python bench/heavy.py build/heavy-28 --layers 28
.venv/bin/qwen3-triton tune --model-dir build/heavy-28 --int8 --minutes 15 --json > build/tune.json
.venv/bin/python bench/cpu_rows.py build/tune.json
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"(?<=<!-- cpu -->\n).*?(?=<!-- end -->)", re.DOTALL)
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
DEFAULT_BATCH_TOKENS = 8192
COLORS = ("#4c72b0", "#dd8452")


def label(row: dict[str, Any]) -> str:
    """Name a candidate by what differs from the defaults."""
    threads, tokens = row["threads"], row["max_batch_tokens"]
    parts = [TITLES[row["engine"]], row["precision"]]
    parts += [f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []
    parts += [f"{tokens} tokens per batch"] if tokens != DEFAULT_BATCH_TOKENS else []
    return ", ".join(parts)


def render(report: dict[str, Any], rows: list[dict[str, Any]], model: str) -> str:
    """Write the machine, and the rows as a table."""
    machine, first = report["machine"], rows[0]
    lines = [
        f"{model}; {machine['cores']} cores of {machine['processor']}; {report['texts']} texts of "
        f"{first['tokens_per_second'] / first['texts_per_second']:.0f} tokens on average:",
        "",
        "| engine, precision | texts/s | tokens/s | a lone query | memory | cosine to float32 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"**{label(row)}**" if row["recommended"] else label(row),
            f"{row['texts_per_second']:.1f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['lone_query_ms']:.0f} ms",
            f"{row['memory_bytes'] / 2**30:.1f} GiB",
            f"{row['loss']['lowest_cosine']:.5f} at least" if row["loss"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot texts per second and the time of a query as SVG; equal rows give an equal file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "cpu", "svg.fonttype": "none", "font.family": "sans-serif"}
    from matplotlib import pyplot

    plt: Any = pyplot
    names = [label(row) for row in rows]
    figure, panels = plt.subplots(1, 2, figsize=(10, 0.6 + 0.4 * len(rows)), sharey=True)
    sides = (
        ("texts_per_second", "texts per second (more is better)", "%.1f"),
        ("lone_query_ms", "a lone query, ms (less is better)", "%.0f"),
    )
    for axes, color, (key, title, form) in zip(panels, COLORS, sides, strict=True):
        bars = axes.barh(names, [row[key] for row in rows], color=color)
        axes.bar_label(bars, fmt=form, padding=3)
        axes.set_xlabel(title)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()  # the first row on top
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


@click.command()
@click.argument("report", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--model",
    default="The 28 layers of Qwen3-Embedding-0.6B with random weights",
    show_default=True,
    help="What was measured.",
)
@click.option("--page", default=DOCS / "sizing.md", type=click.Path(path_type=Path))
@click.option("--plot", default=DOCS / "cpu.svg", type=click.Path(path_type=Path))
def main(*, report: Path, model: str, page: Path, plot: Path) -> None:
    """Put the rows of REPORT, from `qwen3-triton tune --json`, into the page, and plot them."""
    document = json.loads(report.read_text())
    rows = [row for row in document["candidates"] if not row["problem"]]
    block = render(document, rows, model)
    page.write_text(BLOCK.sub(lambda _: block, page.read_text()))
    write_plot(rows, plot)


if __name__ == "__main__":
    main()
