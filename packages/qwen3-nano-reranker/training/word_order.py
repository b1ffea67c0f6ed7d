"""Sentences that differ in word order only: who does what to whom."""

from __future__ import annotations

import random
from dataclasses import dataclass

NOUNS = (
    "dog", "man", "cat", "mouse", "wolf", "woman", "child", "policeman", "mother", "father",
    "rabbit", "bird", "spider", "fly", "crocodile", "tourist", "president", "journalist",
)  # fmt: skip
VERBS = (
    "bites bit bitten;chases chased chased;hits hit hit;kicks kicked kicked;scares scared scared;"
    "licks licked licked;arrests arrested arrested;interviews interviewed interviewed"
)

_QUERIES = (
    "{a} {present} {b}", "{a} {past} {b}", "a {a} {present} a {b}", "the {a} {past} the {b}",
    "which {a} {past} the {b}?", "{b} {participle} by {a}", "Who {past} the {b}? The {a}",
    "the {b} was {participle} by the {a}", "why did a {a} {stem} a {b}",
)  # fmt: skip
_DOCUMENTS = (
    "a {a} {present} a {b}", "The {a} {past} the {b}.", "A {a} {past} a {b}.",
    "The {b} was {participle} by the {a}.", "Yesterday a {a} {past} a {b} in the street.",
    "It is said that the {a} {present} the {b}.", "A {b} is {participle} by a {a}.",
    "The old {a} {past} the young {b}, and nobody knows why.",
    "There was a {a} that {past} a {b}.", "In this story, the {a} {present} the {b}.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """A query, a sentence that says the same, and the sentence with its two nouns exchanged."""

    query: str
    right: str
    reversed: str


def _render(template: str, a: str, b: str, verb: str) -> str:
    present, past, participle = verb.split()
    stem = (
        present.removesuffix("es") if present.endswith(("shes", "sses", "ches")) else present[:-1]
    )
    text = template.format(a=a, b=b, present=present, past=past, participle=participle, stem=stem)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return f"an{text[1:]}" if text[:2] == "a " and text[2] in "aeiou" else text


def orders(count: int = 200) -> list[Order]:
    """Return queries and sentences; the first is the proverbial one."""
    rng = random.Random(31)
    verbs = VERBS.split(";")
    made = [Order("dog bites man", "a dog bites a man", "a man bites a dog")]
    while len(made) < count:
        a, b = rng.sample(NOUNS, 2)
        verb, template = rng.choice(verbs), rng.choice(_DOCUMENTS)
        query = _render(rng.choice(_QUERIES), a, b, verb)
        made.append(Order(query, _render(template, a, b, verb), _render(template, b, a, verb)))
    return made
