"""Hybrid search against vectors alone in German, Czech and Chinese, with the loader's defaults.

    apt-get download manpages-de manpages-cs manpages-zh installation-guide-amd64
    for package in *.deb; do dpkg-deb --extract $package translated; done
    PYTHONPATH=tests/support:examples python bench/languages.py translated/usr/share

The documents are manual pages and sections of Debian's installation guide. A page is asked for by
the description in its heading, a section by its title, and neither is part of the document. The
demo's English texts are asked for in other words, which is where words harm most. Mean reciprocal
rank says how high the document is among the first ten hits.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import click

import demo
from demo.embedded_postgres import embedded_postgres
from gateway_process import running_gateway
from qwen3_triton_ingest import (
    GatewayOptions,
    IndexOptions,
    LoadOptions,
    Searcher,
    SplitOptions,
    load,
)
from qwen3_triton_ingest.search import SearchMode

LANGUAGES = {"English": "en", "German": "de", "Czech": "cs", "Chinese": "zh_CN"}
MODES: tuple[SearchMode, ...] = ("vector", "text", "hybrid")
K = 10
LENGTH = 600  # characters of a document
LEAST_LENGTH = 150
MOST_DOCUMENTS = 250
TARGET = 0.9


@dataclass(frozen=True)
class Asked:
    """A document, and what is asked to find it."""

    question: str
    text: str


def manual_pages(folder: Path) -> Iterator[Asked]:
    """Yield the manual pages of a language, each with the description in its heading."""
    for path in sorted(folder.glob("man[1-8]/*.gz")):
        with suppress(UnicodeDecodeError):  # some are in the encodings of long ago
            _, *sections = re.split(
                r"^\.SH\s+", gzip.decompress(path.read_bytes()).decode(), flags=re.M
            )
            heading, _, texts = (*sections[:2], sections[2:]) if len(sections) > 2 else ("", "", [])
            _, _, description = _plain(heading.partition("\n")[2]).partition(" - ")
            text = _plain("\n".join(section.partition("\n")[2] for section in texts))
            if description and len(text) >= LEAST_LENGTH:
                yield Asked(description, text[:LENGTH])


def _plain(source: str) -> str:
    """Return text without the marks of roff."""
    lines = (line for line in source.splitlines() if not line.startswith((r".\"", "'\\\"")))
    text = " ".join(re.sub(r"^\.[A-Za-z]+ ?", "", line) for line in lines)
    text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\[,/&|^]|\\s[-+]?\d", "", text)
    text = re.sub(r"\\\(..|\\\[[^]]*\]", " ", text).replace(r"\-", "-").replace("\\", "")
    return " ".join(text.split())


def guide_sections(folder: Path) -> Iterator[Asked]:
    """Yield the sections of the installation guide in a language, each with its title."""
    for path in sorted(folder.glob("*.html")):
        page = path.read_text("utf-8").partition('<div class="navfooter">')[0]
        page = re.sub(r'<div class="toc">.*?</div>', " ", page, flags=re.S)
        _, *parts = re.split(r'<h[1-5] class="title">', page)
        for part in parts:
            heading, _, body = re.sub(r"<table.*?</table>", " ", part, flags=re.S).partition("</h")
            title = re.sub(r"^\S+\s", "", _bare(heading))  # without the number
            text = _bare(body.partition(">")[2])
            if len(text) >= LEAST_LENGTH:
                yield Asked(title, text[:LENGTH])


def _bare(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def paraphrases() -> Iterator[Asked]:
    """Yield the demo's texts, each with a question that avoids its words."""
    for line in (Path(demo.__path__[0]) / "documents.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        yield Asked(entry["question"], entry["text"])


def collections(share: Path) -> Iterator[tuple[str, str, list[Asked]]]:
    """Yield the name, the text search configuration and the documents of each collection."""
    yield "English, paraphrased", "auto", list(paraphrases())
    # As in a language for which PostgreSQL has neither a stemmer nor stop words.
    yield "English, paraphrased, with `simple`", "simple", list(paraphrases())
    for name, code in LANGUAGES.items():
        guide = guide_sections(share / "doc" / "installation-guide-amd64" / code)
        for kind, found in ("guide", guide), ("manual pages", manual_pages(share / "man" / code)):
            documents = list({each.text: each for each in found}.values())
            if documents:
                step = len(documents) // MOST_DOCUMENTS or 1
                yield f"{name}, {kind}", "auto", documents[::step][:MOST_DOCUMENTS]


def mean_reciprocal_rank(searcher: Searcher, documents: list[Asked], mode: SearchMode) -> float:
    """Return the mean over all documents of 1 / place, 0 where one is not among the first ten."""
    total = 0.0
    for number, asked in enumerate(documents):
        found = [hit.doc_id for hit in searcher.search(asked.question, mode=mode, k=K)]
        total += 1 / (1 + found.index(str(number))) if str(number) in found else 0.0
    return total / len(documents)


@click.command()
@click.argument("share", type=click.Path(path_type=Path, exists=True))
def main(share: Path) -> None:
    """Measure all collections and print a table in Markdown."""
    click.echo("| texts | documents | vector | text | hybrid | hybrid to vector |  |")
    click.echo("|" + "---|" * 7)
    missed = False
    with embedded_postgres() as dsn, running_gateway() as gateway:
        for number, (name, config, documents) in enumerate(collections(share)):
            options = LoadOptions(
                gateway=GatewayOptions(url=gateway.url),
                split=SplitOptions(chunk_tokens=0),
                index=IndexOptions(text_search_config=config),
            )
            with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
                for place, each in enumerate(documents):
                    print(json.dumps({"id": str(place), "text": each.text}), file=file)
                file.flush()
                load([file.name], dsn=dsn, table=f"texts_{number}", options=options)
            with Searcher(dsn, f"texts_{number}", gateway=options.gateway) as searcher:
                ranks = {mode: mean_reciprocal_rank(searcher, documents, mode) for mode in MODES}
            ratio = ranks["hybrid"] / ranks["vector"]
            missed |= ratio < TARGET
            cells = " | ".join(f"{ranks[mode]:.3f}" for mode in MODES)
            verdict = "missed" if ratio < TARGET else "met"
            click.echo(f"| {name} | {len(documents)} | {cells} | {ratio:.2f} | {verdict} |")
    sys.exit(missed)


if __name__ == "__main__":
    main()
