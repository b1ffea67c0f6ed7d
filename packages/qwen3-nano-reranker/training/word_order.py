"""Sentences that differ in word order only: who does what to whom.

A list has a query such as "dog bites man", a sentence that says so, and sentences that say the
reverse. Training and evaluation share no noun and no verb.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

NOUNS = (
    "teacher", "student", "king", "queen", "doctor", "nurse", "farmer", "soldier", "thief",
    "judge", "lawyer", "baker", "driver", "sailor", "pilot", "priest", "monk", "knight",
    "giant", "dwarf", "wizard", "witch", "prince", "princess", "boy", "girl", "uncle", "aunt",
    "brother", "sister", "neighbor", "stranger", "hunter", "painter", "singer", "dancer",
    "writer", "banker", "waiter", "tailor", "horse", "cow", "sheep", "goat", "pig", "duck",
    "goose", "hen", "fox", "bear", "lion", "tiger", "elephant", "monkey", "snake", "frog",
    "eagle", "owl", "shark", "whale", "robot", "company", "army", "nation", "team", "city",
    "bank", "court",
)  # fmt: skip
# Present, past, past participle.
VERBS = (
    "calls called called;helps helped helped;pushes pushed pushed;pulls pulled pulled;"
    "kisses kissed kissed;hugs hugged hugged;hates hated hated;loves loved loved;"
    "follows followed followed;teaches taught taught;finds found found;sees saw seen;"
    "hears heard heard;beats beat beaten;fights fought fought;saves saved saved;"
    "attacks attacked attacked;defends defended defended;invites invited invited;"
    "pays paid paid;feeds fed fed;carries carried carried;leads led led;eats ate eaten;"
    "trusts trusted trusted;warns warned warned;blames blamed blamed;praises praised praised;"
    "accuses accused accused;kills killed killed;wounds wounded wounded;catches caught caught;"
    "visits visited visited;meets met met;thanks thanked thanked;betrays betrayed betrayed;"
    "ignores ignored ignored;tricks tricked tricked;watches watched watched;joins joined joined"
)
HELD_OUT_NOUNS = (
    "dog", "man", "cat", "mouse", "wolf", "woman", "child", "policeman", "mother", "father",
    "rabbit", "bird", "spider", "fly", "crocodile", "tourist", "president", "journalist",
)  # fmt: skip
HELD_OUT_VERBS = (
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
class OrderList:
    """A query, a document that answers it, and documents that say the reverse or something else."""

    query: str
    positive: str
    negatives: list[str]


def _render(template: str, a: str, b: str, verb: str) -> str:
    present, past, participle = verb.split()
    stem = (
        present.removesuffix("es") if present.endswith(("shes", "sses", "ches")) else present[:-1]
    )
    text = template.format(a=a, b=b, present=present, past=past, participle=participle, stem=stem)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return f"an{text[1:]}" if text[:2] == "a " and text[2] in "aeiou" else text


def order_list(
    rng: random.Random, nouns: Sequence[str], verbs: Sequence[str], negatives: int
) -> OrderList:
    """Return one list; at least two of its negatives have the words of the query, reversed."""
    a, b, other = rng.sample(nouns, 3)
    verb, other_verb = rng.sample(verbs, 2)
    wrong = [(b, a, verb), (b, a, verb), (a, other, verb), (other, b, verb), (a, b, other_verb)]
    wrong += [(b, other, verb), (b, a, other_verb)]
    positive = _render(rng.choice(_DOCUMENTS), a, b, verb)
    documents = [_render(rng.choice(_DOCUMENTS), *words) for words in wrong]
    return OrderList(_render(rng.choice(_QUERIES), a, b, verb), positive, documents[:negatives])


def training_lists(rng: random.Random, count: int, negatives: int = 7) -> list[OrderList]:
    """Return lists to train on."""
    verbs = VERBS.split(";")
    return [order_list(rng, NOUNS, verbs, negatives) for _ in range(count)]


def held_out_lists(count: int = 200) -> list[OrderList]:
    """Return lists of other nouns and verbs; the first is the proverbial one.

    Each has one negative: the positive's template with the two nouns exchanged.
    """
    rng = random.Random(31)
    verbs = HELD_OUT_VERBS.split(";")
    lists = [OrderList("dog bites man", "a dog bites a man", ["a man bites a dog"])]
    while len(lists) < count:
        a, b = rng.sample(HELD_OUT_NOUNS, 2)
        verb, template = rng.choice(verbs), rng.choice(_DOCUMENTS)
        query = _render(rng.choice(_QUERIES), a, b, verb)
        right, wrong = _render(template, a, b, verb), _render(template, b, a, verb)
        lists.append(OrderList(query, right, [wrong]))
    return lists
