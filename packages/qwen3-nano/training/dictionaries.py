"""Readers of the dictionaries that Debian ships for dictd, and of fortune files."""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from articles import Article, squeeze

_DIGITS = {
    character: value
    for value, character in enumerate(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    )
}
_SENSE = re.compile(r"(?:^|\s)(?:(?:n|v|adj|adv)\s+)?(\d{1,2}):\s")
_SYNONYMS = re.compile(r"\[(?:syn|ant|also):[^\]]*\]")


def _number(text: str) -> int:
    value = 0
    for character in text:
        value = value * 64 + _DIGITS[character]
    return value


def _entries(root: Path, package: str) -> Iterator[tuple[list[str], str]]:
    """Yield the headwords and the raw text of every entry of a dictd database."""
    folder = root / package / "usr/share/dictd"
    name = package.removeprefix("dict-")
    with gzip.open(folder / f"{name}.dict.dz") as file:
        data = file.read()
    words: dict[tuple[int, int], list[str]] = defaultdict(list)
    for line in (folder / f"{name}.index").read_text(encoding="utf-8").splitlines():
        word, offset, length = line.split("\t")[:3]
        if not word.startswith("00-database"):
            words[_number(offset), _number(length)].append(word)
    for (offset, length), headwords in words.items():
        yield headwords, data[offset : offset + length].decode("utf-8", "replace")


def wordnet(root: Path) -> Iterator[Article]:
    """Yield one article per sense: its gloss with its examples."""
    for headwords, raw in _entries(root, "dict-wn"):
        text = squeeze(raw.partition("\n")[2])
        starts = list(_SENSE.finditer(text))
        ends = [match.start() for match in starts[1:]] + [len(text)]
        for match, end in zip(starts, ends, strict=True):
            sense = text[match.end() : end]
            synonyms = re.search(r"\[syn: ([^\]]*)\]", sense)
            names = re.findall(r"\{([^}]*)\}", synonyms[1]) if synonyms else []
            names = [re.sub(r"\(.*?\)", "", name) for name in names]
            gloss = squeeze(_SYNONYMS.sub("", sense)).strip("; ")
            if len(gloss) > 10:
                title = raw.partition("\n")[0].strip() or headwords[0]
                yield Article("dict-wn", title, gloss, tuple(n for n in names if n != title))


def gcide(root: Path) -> Iterator[Article]:
    """Yield one article per entry of the Collaborative International Dictionary of English."""
    for headwords, raw in _entries(root, "dict-gcide"):
        text = re.sub(r"^.*?\\[^\\]*\\,?", "", raw, count=1, flags=re.DOTALL)
        text = re.sub(r"\[(?:1913 Webster|Webster 1913 Suppl\.|PJC|WordNet 1\.5)[^\]]*\]", "", text)
        text = re.sub(r"^[^\n]*?\[[^\]]*\]", "", text, count=1)  # the etymology
        text = re.sub(r"--[A-Z][\w. ]*\.", "", text.replace("{", "").replace("}", ""))
        text = re.sub(r"^\([^)]*\),? ?", "", squeeze(text))  # the pronunciation
        if len(text) > 30:
            yield Article("dict-gcide", headwords[0], text, tuple(headwords[1:]))


def plain(root: Path, package: str) -> Iterator[Article]:
    """Yield the entries of a dictionary without markup, such as FOLDOC."""
    for headwords, raw in _entries(root, package):
        head, _, body = raw.partition("\n")
        text = re.sub(r"\(\d{4}-\d\d-\d\d\)|\{\([^)]*\)\}", "", body)
        text = squeeze(text.replace("{", "").replace("}", ""))
        if len(text) > 40:
            title = squeeze(head) or headwords[0]
            yield Article(package, title, text, tuple(w for w in headwords if w != title))


def fortunes(root: Path) -> Iterator[Article]:
    """Yield the sayings and quotations of the fortune files, by subject."""
    folder = root / "fortunes/usr/share/games/fortunes"
    for path in sorted(folder.glob("*.u8")):
        if path.stem in {"ascii-art", "drugs", "ethnic", "men-women", "off", "sex"}:
            continue
        for saying in path.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            text = squeeze(saying)
            if 40 < len(text) < 1500:
                yield Article("fortunes", path.stem, text)
