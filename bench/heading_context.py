"""Whether chunks are found better with their headings before the embedded text.

    PYTHONPATH=tests/support:examples python bench/heading_context.py manuals

The manuals are those of html_pages.py, split as a load does, embedded by the nano model through the
gateway, and searched exactly. Questions are the titles of sections and the entries of the manuals'
own indexes; an answer is right if it is of a page that the section or the index names.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import click
import numpy as np
import numpy.typing as npt
from html_pages import MANUALS, NO_PAGES
from report import machine

from gateway_process import running_gateway
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest.config import GatewayOptions, ReadOptions, SplitOptions
from qwen3_triton_ingest.documents import ChunkText, Document, Origin
from qwen3_triton_ingest.sources.html_files import read_html
from qwen3_triton_ingest.splitting import Splitter, load_tokenizer

INDEXES = {"postgresql-doc-15": "bookindex.html", "python3.11-doc": "genindex-all.html"}
HEADER = (
    "",
    "questions",
    "chunks",
    "MRR@10 without",
    "with headings",
    "in the first three without",
    "with headings",
)
K, SHOWN = 10, 3
# A title or entry of one word is not a question.
FEWEST_WORDS = 2
_NUMBER = re.compile(r"^(?:chapter|appendix|part)?\s*[\dA-Z]{0,2}(?:\.\d+)*\.\s+", re.I)

Vectors = npt.NDArray[np.float32]
Questions = dict[str, set[str]]
"""The pages with an answer, by question."""


@dataclass(frozen=True)
class Passage:
    """A chunk, and the name of its page."""

    page: str
    chunk: ChunkText


def passages(folder: Path, splitter: Splitter, count: int) -> list[Passage]:
    """Split pages at equal distances in the sorted list of all."""
    files = sorted(path for path in folder.rglob("*.html") if not NO_PAGES.fullmatch(path.stem))
    found: list[Passage] = []
    for at in range(min(count, len(files))):
        path = files[at * len(files) // min(count, len(files))]
        page = read_html(str(path), ReadOptions())
        document = Document("d", page.text, Origin("s", "p"), markup="markdown", marks=page.marks)
        name = str(path.relative_to(folder))
        found += [Passage(name, chunk) for chunk in splitter.split(document)]
    return found


def titles(chunks: list[Passage]) -> Questions:
    """Return the titles of sections, and the pages that have them."""
    questions: Questions = {}
    for each in chunks:
        for heading in each.chunk.place.get("headings", [])[-1:]:
            title = _NUMBER.sub("", heading)
            if len(title.split()) >= FEWEST_WORDS:
                questions.setdefault(title, set()).add(each.page)
    return questions


def index_entries(index: Path, pages: set[str]) -> Questions:
    """Return the entries of an index that lead to some of the pages."""
    tree = import_module("lxml.html").fromstring(index.read_bytes())
    questions: Questions = {}
    for entry in tree.iter("dt", "li"):
        links = [link for link in entry.iterchildren("a") if link.get("href")]
        found = pages.intersection(unquote(link.get("href").partition("#")[0]) for link in links)
        # DocBook's links are the titles of pages, Sphinx's are the entry.
        words = (
            (entry.text or "")
            if entry.tag == "dt"
            else "".join(links[0].itertext())[:99]
            if links
            else ""
        )
        text = " ".join(words.replace(",", " ").split())
        if found and len(text.split()) >= FEWEST_WORDS:
            questions.setdefault(text, set()).update(found)
    return questions


def score(
    vectors: Vectors, owners: list[str], asked: Vectors, answers: list[set[str]]
) -> tuple[float, float]:
    """Return the MRR@10 by page, and how often one of the first three chunks is right."""
    order = np.argsort(-(asked @ vectors.T), axis=1)[:, : 5 * K]
    ranks: list[float] = []
    shown: list[bool] = []
    rows: list[list[int]] = order.tolist()
    for row, right in zip(rows, answers, strict=True):
        pages = list(dict.fromkeys(owners[at] for at in row))[:K]
        ranks.append(next((1 / (at + 1) for at, page in enumerate(pages) if page in right), 0.0))
        shown.append(any(owners[at] in right for at in row[:SHOWN]))
    return float(np.mean(ranks)), float(np.mean(shown))


def with_headings(chunk: ChunkText) -> str:
    return "\n\n".join([" > ".join(chunk.place.get("headings", ())), chunk.text]).lstrip()


@click.command()
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pages", default=200, show_default=True, help="Pages of each manual.")
@click.option("--questions", default=300, show_default=True, help="Questions of each kind.")
@click.option("--chunk-tokens", default=512, show_default=True)
def main(root: Path, pages: int, questions: int, chunk_tokens: int) -> None:
    """Measure retrieval with and without headings on the manuals under ROOT."""
    print(
        machine(), "", f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|", sep="\n", flush=True
    )
    with running_gateway() as gateway, EmbeddingClient(gateway.url) as client:
        options = SplitOptions(chunk_tokens=chunk_tokens)
        splitter = Splitter(options, load_tokenizer(options, GatewayOptions(url=gateway.url)))
        for manual, name in MANUALS.items():
            folder = root / "usr/share/doc" / name
            found = passages(folder, splitter, pages)
            owners = [each.page for each in found]
            sides = [
                client.embed(texts).to_numpy()
                for texts in (
                    [p.chunk.text for p in found],
                    [with_headings(p.chunk) for p in found],
                )
            ]
            kinds = {"titles": titles(found)}
            if manual in INDEXES:
                kinds["index"] = index_entries(folder / INDEXES[manual], set(owners))
            for kind, every in kinds.items():
                chosen = random.Random(7).sample(sorted(every), min(questions, len(every)))
                asked = client.embed(chosen, input_type="query").to_numpy()
                answers = [every[question] for question in chosen]
                scores = [score(side, owners, asked, answers) for side in sides]
                cells = (
                    f"`{manual}`, {kind}",
                    f"{len(chosen)}",
                    f"{len(found):,}",
                    *(f"{mrr:.3f}" for mrr, _ in scores),
                    *(f"{share:.3f}" for _, share in scores),
                )
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
