"""Derive the training texts from the articles: documents, crops, and queries of many kinds.

    python texts.py WORK

Reads WORK/train.jsonl, writes WORK/texts.jsonl, in groups that belong together, the groups
shuffled.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from articles import Article, read_articles

SEED = 20

# Maximum number of articles from these sources; others are used whole.
LIMITS = {
    "dict-foldoc": 6_000, "dict-gcide": 20_000, "dict-jargon": 1_000, "dict-vera": 1_000,
    "factbook": 4_000, "fortunes": 4_000, "gimp-help-en": 1_200, "libreoffice-help-en-us": 1_500,
    "lilypond-doc-html": 1_500, "maxima-doc": 800, "perl-doc": 1_200, "postgresql-doc-15": 1_200,
    "python3.11-doc": 2_000, "sqlite3-doc": 1_000,
}  # fmt: skip

_WHAT_IS = (
    "What is {}?", "what is {}", "What does {} mean?", "define {}", "{} meaning", "{} definition",
    "what are {}",
    "how does {} work", "How does {} work?", "who was {}", "Who is {}?", "where is {}",
    "tell me about {}",
    "explain {}", "history of {}", "types of {}", "examples of {}", "why is {} important?",
    "how to use {}",
    "how is {} made", "what causes {}", "difference between {} and", "uses of {}",
    "when was {} invented",
    "who invented {}", "facts about {}", "Why do we need {}?", "how do I get {}",
    "introduction to {}",
)  # fmt: skip
_WHICH = (
    "What do you call {}?", "what is the word for {}", "which word means {}",
    "Which term describes {}?",
    "what is {}?", "name of {}", "looking for {}", "How do you say {}?",
)  # fmt: skip
_WHY = (
    "Why {}?", "How come {}?", "How {}?", "What happens when {}?", "is it true that {}?",
    "when {}?", "why is it that {}",
    "Does {}?", "What explains that {}?", "who says {}?", "Where {}?", "what does it mean that {}",
)  # fmt: skip
_STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "to",
        "in",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "and",
        "or",
        "for",
        "with",
        "on",
        "at",
        "by",
        "from",
        "as",
        "that",
        "which",
        "this",
        "it",
        "its",
        "his",
        "her",
        "their",
        "not",
        "but",
        "if",
        "has",
        "have",
        "had",
        "can",
        "may",
        "will",
        "would",
        "used",
        "than",
        "then",
        "so",
        "such",
        "into",
        "who",
        "when",
        "other",
        "some",
        "any",
        "all",
        "also",
        "these",
        "those",
        "they",
        "he",
        "she",
        "you",
        "we",
        "i",
        "no",
        "do",
        "does",
        "did",
        "one",
        "more",
        "most",
        "only",
        "about",
    ]
)


@dataclass(frozen=True, slots=True)
class Text:
    """A training text; a query is also trained after the instruction."""

    text: str
    query: bool


def _keywords(rng: random.Random, text: str) -> str:
    """Return a few content words of the text in order, as people type into a search box."""
    words = [w.strip(".,;:()\"'") for w in text.split()]
    words = [w for w in words if len(w) > 2 and w.lower() not in _STOP_WORDS]
    chosen = sorted(rng.sample(range(len(words)), min(len(words), rng.randint(2, 6))))
    picked = " ".join(words[i] for i in chosen)
    return picked.lower() if rng.random() < 0.7 else picked


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", text) if len(s.split()) >= 4]


def _ask_about(rng: random.Random, phrase: str, templates: tuple[str, ...]) -> str:
    """Turn a phrase into a question, not always grammatically, like real queries."""
    words = phrase.rstrip(".!?;").split()[:18]
    phrase = " ".join(words)
    # "The river" becomes "the river", but "NATO" and "I" stay.
    if len(phrase) > 1 and phrase[1].islower():
        phrase = phrase[0].lower() + phrase[1:]
    return rng.choice(templates).format(phrase)


def _of_dictionary(rng: random.Random, article: Article) -> Iterator[Text]:
    gloss = article.text.partition('; "')[0]
    name = rng.choice((article.title, *article.aliases))
    yield Text(article.text, query=False)
    chance = rng.random()
    if chance < 0.12:
        yield Text(f"{article.title}: {gloss}", query=False)
    elif chance < 0.2:
        yield Text(gloss, query=False)
    elif chance < 0.27:
        yield Text(_ask_about(rng, gloss, _WHICH), query=True)
    elif chance < 0.35:
        yield Text(_keywords(rng, gloss), query=True)
    if rng.random() < 0.45:
        yield Text(name, query=True)
    if rng.random() < 0.15:
        yield Text(_ask_about(rng, name, _WHAT_IS), query=True)


def _of_paragraph(rng: random.Random, article: Article) -> Iterator[Text]:
    yield Text(article.text, query=False)
    if 1 <= len(article.title.split()) <= 15:
        yield Text(article.title, query=True)
        if rng.random() < 0.2:
            yield Text(_ask_about(rng, article.title, _WHAT_IS), query=True)
    sentences = _sentences(article.text)
    if not sentences:
        return
    # The encyclopedia is closest to what people ask about, and there is little of it.
    for _ in range(3 if article.source == "enwiki-sample" else 1):
        sentence = rng.choice(sentences)
        yield Text(_keywords(rng, sentence), query=True)
        yield Text(_ask_about(rng, sentence, _WHY), query=True)
    if len(sentences) > 1:
        yield Text(sentence, query=rng.random() < 0.3)
    if len(sentences) > 3:
        start = rng.randrange(len(sentences) - 2)
        yield Text(" ".join(sentences[start : start + rng.randint(2, 3)]), query=False)


def groups(articles: Iterator[Article], rng: random.Random) -> list[list[Text]]:
    """Return the training texts, grouped by article."""
    shuffled = list(articles)
    rng.shuffle(shuffled)
    used: dict[str, int] = {}
    made: list[list[Text]] = []
    seen: set[str] = set()
    for article in shuffled:
        used[article.source] = used.get(article.source, 0) + 1
        if used[article.source] > LIMITS.get(article.source, sys.maxsize):
            continue
        dictionary = article.source in {"dict-wn", "dict-gcide"}
        of_article = (_of_dictionary if dictionary else _of_paragraph)(rng, article)
        fresh = [t for t in of_article if len(t.text) > 1 and t.text not in seen]
        seen.update(t.text for t in fresh)
        made.append(fresh)
    return made


def main() -> None:
    work = Path(sys.argv[1])
    rng = random.Random(SEED)
    made = groups(read_articles(work / "train.jsonl"), rng)
    with (work / "texts.jsonl").open("w", encoding="utf-8") as file:
        for number, group in enumerate(made):
            for text in group:
                record = {"group": number, "query": text.query, "text": text.text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(len(made), "groups,", sum(map(len, made)), "texts")


if __name__ == "__main__":
    main()
