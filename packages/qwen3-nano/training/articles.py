"""The one record that every source of text is read into."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Out of this many articles of a source that has a held-out set, one goes there, chosen by a hash
# of its text.
HELD_OUT_ONE_IN = 40


@dataclass(frozen=True, slots=True)
class Article:
    """A titled piece of text; `aliases` are other names of what it is about."""

    source: str
    title: str
    text: str
    aliases: tuple[str, ...] = ()


def squeeze(text: str) -> str:
    """Turn every run of white space into one space."""
    return re.sub(r"\s+", " ", text).strip()


def is_question(title: str) -> bool:
    """Say whether a heading is a question that its section answers."""
    return title.endswith("?") and len(title.split()) >= 4


def held_out(article: Article) -> bool:
    """Say whether an article is kept for evaluation, a decision that depends on its text only.

    WordNet and FOLDOC give a sample of their entries; from the manuals, every section headed by a
    question is kept, because questions with answers are rare and are what an evaluation wants.
    """
    if article.source in {"dict-wn", "dict-foldoc"}:
        digest = hashlib.sha256(article.text.encode()).digest()
        return int.from_bytes(digest[:4]) % HELD_OUT_ONE_IN == 0
    return is_question(article.title) and article.source != "red-trivia"


def write_articles(path: Path, articles: Iterable[Article]) -> int:
    """Write one JSON object a line, each text once, and return how many."""
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
