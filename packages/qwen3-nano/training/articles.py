"""The record type that every text source is read into."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# One article in this many is held out, for sources with a held-out set. A hash of its text decides.
HELD_OUT_ONE_IN = 40


@dataclass(frozen=True, slots=True)
class Article:
    """A titled piece of text; `aliases` are other names of its subject."""

    source: str
    title: str
    text: str
    aliases: tuple[str, ...] = ()


def squeeze(text: str) -> str:
    """Replace every run of white space with one space."""
    return re.sub(r"\s+", " ", text).strip()


def is_question(title: str) -> bool:
    """Return whether a heading is a question that its section answers."""
    return title.endswith("?") and len(title.split()) >= 4


def held_out(article: Article) -> bool:
    """Return whether an article is held out for evaluation, which depends on its text only.

    WordNet and FOLDOC give a sample of their entries; from the manuals, every section headed by a
    question is held out, because questions with answers are rare and make the best evaluation.
    """
    if article.source in {"dict-wn", "dict-foldoc"}:
        digest = hashlib.sha256(article.text.encode()).digest()
        return int.from_bytes(digest[:4]) % HELD_OUT_ONE_IN == 0
    return is_question(article.title) and article.source != "red-trivia"


def write_articles(path: Path, articles: Iterable[Article]) -> int:
    """Write one JSON object per line, without duplicate texts, and return their number."""
    seen: set[str] = set()
    with path.open("w", encoding="utf-8") as file:
        for article in articles:
            key = article.text.lower()
            if key in seen:
                continue
            seen.add(key)
            file.write(json.dumps(asdict(article), ensure_ascii=False) + "\n")
    return len(seen)


def read_articles(path: Path) -> Iterator[Article]:
    """Read what `write_articles` wrote."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield Article(**{**record, "aliases": tuple(record["aliases"])})
