"""What reranking costs and what it brings: latency and quality by the number of candidates.

    PYTHONPATH=tests/support:examples .venv/bin/python bench/rerank_quality.py \
        --page docs/rerank.md --plot docs/rerank.svg
    PYTHONPATH=tests/support:examples .venv/bin/python bench/rerank_quality.py --url http://gpu-box:8101

The demo's paragraphs are searched with their titles, or with questions that avoid the words of the
answers; the nano models have seen neither. A search embeds it, takes the candidates with the
highest cosine of all (no index, so none is missed), and reranks them, one search at a time. Without
`--url`, the nano models run in the gateway's process.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from report import machine
from rich.progress import track

import qwen3_nano
import qwen3_nano_reranker
from demo.documents import Document, load_documents
from gateway_process import GatewayProcess, running_gateway
from qwen3_triton_client import EmbeddingClient

COUNTS = (0, 10, 20, 50, 100)
RANKS = 10
KEPT = 5  # what a chain usually passes on to the language model
BLOCK = re.compile(r"(?<=<!-- cost -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass
class Point:
    """What searches with one number of candidates took and found."""

    candidates: int
    seconds: list[float] = field(default_factory=list[float])
    ranks: list[int] = field(default_factory=list[int])
    """The rank of each question's own paragraph among all, from 0."""

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.seconds) * 1000

    @property
    def p95_ms(self) -> float:
        return float(np.percentile(self.seconds, 95)) * 1000

    @property
    def ndcg(self) -> float:
        """nDCG@10, where one paragraph is relevant."""
        return statistics.mean(1 / np.log2(r + 2) if r < RANKS else 0.0 for r in self.ranks)

    def share(self, first: int) -> float:
        """Return the share of questions whose paragraph is among the `first`."""
        return statistics.mean(rank < first for rank in self.ranks)


class Search:
    """Searches of a corpus that is in memory."""

    def __init__(self, client: EmbeddingClient, corpus: Sequence[Document]) -> None:
        self._client = client
        self._texts = [document.text for document in corpus]
        self._vectors: NDArray[np.float32] = client.embed(self._texts).to_numpy()

    def run(self, query: str, candidates: int) -> tuple[list[int], dict[int, float]]:
        """Return all documents by cosine, and the scores of the first `candidates` of them."""
        vector = self._client.embed([query], input_type="query").to_numpy()[0]
        order: list[int] = np.argsort(-(self._vectors @ vector), kind="stable").tolist()
        chosen = order[:candidates]
        if not chosen:
            return order, {}
        found = self._client.rerank(query, [self._texts[place] for place in chosen])
        return order, {chosen[each.index]: each.raw_score for each in found.documents}


def rerank(order: Sequence[int], scores: dict[int, float], candidates: int) -> list[int]:
    """Order the first `candidates` by their scores; the others follow as they were."""
    first = sorted(order[:candidates], key=lambda place: -scores[place])
    return [*first, *order[candidates:]]


def measure(search: Search, queries: Sequence[str], count: int, timed: int) -> list[Point]:
    """Search with `count` evenly spread queries, each of the paragraph at its place.

    The first `timed` search with every number of candidates.
    """
    points = {candidates: Point(candidates) for candidates in COUNTS}
    places: list[int] = np.linspace(0, len(queries) - 1, count).astype(int).tolist()
    np.random.default_rng(0).shuffle(places)
    search.run(queries[0], COUNTS[-1])  # warms up
    for number, place in enumerate(track(places, "Search", disable=not sys.stdout.isatty())):
        order: list[int] = []
        scores: dict[int, float] = {}
        for candidates in COUNTS if number < timed else COUNTS[-1:]:
            began = time.perf_counter()
            order, scores = search.run(queries[place], candidates)
            points[candidates].seconds.append(time.perf_counter() - began)
        for candidates, point in points.items():
            # A score does not depend on how many are reranked together.
            point.ranks.append(rerank(order, scores, candidates).index(place))
    return list(points.values())


def render(points: Sequence[Point], what: str, picture: str) -> str:
    """Write the points as a table, below what was measured and its plot."""
    lines = [
        f"{what}; {machine()}",
        "",
        *([f"![nDCG@10 against the latency of a search]({picture})", ""] if picture else []),
        "| candidates | nDCG@10 | the answer is first | among the first 5 | p50 | p95 |",
        "|---|---|---|---|---|---|",
    ]
    for point in points:
        cells = [
            str(point.candidates) if point.candidates else "none: embeddings alone",
            f"{point.ndcg:.3f}",
            f"{point.share(1):.0%}",
            f"{point.share(KEPT):.0%}",
            f"{point.p50_ms:.0f} ms",
            f"{point.p95_ms:.0f} ms",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_plot(points: Sequence[Point], path: Path) -> None:
    """Plot nDCG@10 over median latency as SVG; equal points give an equal file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "rerank", "svg.fonttype": "none", "font.family": "sans-serif"}
    from matplotlib import pyplot

    plt: Any = pyplot
    figure, axes = plt.subplots(figsize=(8, 4.5))
    axes.plot([each.p50_ms for each in points], [each.ndcg for each in points], marker="o")
    for point in points:
        label = f"{point.candidates} candidates" if point.candidates else "embeddings alone"
        at = (point.p50_ms, point.ndcg)
        axes.annotate(label, at, xytext=(8, -12), textcoords="offset points", fontsize=9)
    axes.set_xlim(0, 1.2 * max(each.p50_ms for each in points))  # room for the last label
    axes.margins(y=0.15)
    axes.set_xlabel("median latency of a search, ms (one caller)")
    axes.set_ylabel("nDCG@10")
    axes.set_title("Nano models: what reranking more candidates costs and brings")
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


@click.command()
@click.option("--url", help="A gateway with both models; by default one is started.")
@click.option("--by", type=click.Choice(["title", "question"]), default="title", show_default=True)
@click.option("--searches", default=312, show_default=True, help="Of the demo's 312.")
@click.option("--timed", default=30, show_default=True, help="How many of them are timed.")
@click.option("--page", type=click.Path(path_type=Path), help="Put the table into this page.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write the plot, as SVG.")
def main(
    *,
    url: str | None,
    by: str,
    searches: int,
    timed: int,
    page: Path | None,
    plot: Path | None,
) -> None:
    """Measure searches with 0 to 100 candidates, and print a table."""
    corpus = load_documents()
    with ExitStack() as resources:
        models = f"The models of {url}"
        if url is None:
            models = "The nano models in the gateway's process"
            url = resources.enter_context(_nano_gateway()).url
        client = resources.enter_context(EmbeddingClient(url))
        queries = [getattr(document, by) for document in corpus]
        points = measure(Search(client, corpus), queries, searches, timed)
    share = f"all {searches}" if searches == len(corpus) else f"{searches}"
    what = f"{models}; searches for {share} of the demo's paragraphs by {by}"
    click.echo(render(points, what, ""))
    if page:
        block = render(points, what, os.path.relpath(plot, page.parent) if plot else "")
        page.write_text(BLOCK.sub(lambda _: block, page.read_text()))
    if plot:
        write_plot(points, plot)


def _nano_gateway() -> AbstractContextManager[GatewayProcess]:
    return running_gateway(
        *("--model-dir", str(qwen3_nano.model_dir())),
        *("--rerank-model-dir", str(qwen3_nano_reranker.model_dir())),
        *("--threads", "0"),  # one per core, unlike in the tests
    )


if __name__ == "__main__":
    main()
