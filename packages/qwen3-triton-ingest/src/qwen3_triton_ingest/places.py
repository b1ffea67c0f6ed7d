"""Places: which headings a chunk is under, and on which page and line of its file it begins.

A source gives a document's text with marks, in the order of the text: here a section begins, here a
page, here a line. The splitter asks `PlaceFinder` which of them apply where a chunk begins, and the
answer becomes part of the chunk's metadata. To give a format places, its reader only returns marks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

MarkKind: TypeAlias = Literal["heading", "page", "line"]

# Keys of a chunk's metadata. They replace those of the same name that its document has.
HEADINGS, PAGE, LINE = "headings", "page", "line"
MAX_HEADING_CHARACTERS = 200

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place that begins in a document's text, and ends where the next of its kind begins.

    Attributes:
        offset: Where it begins, in characters from 0. For a heading, the first character of the
            heading's own line, which is part of the text.
        kind: What begins here.
        value: The heading as plain text, or the number of the page or line, from 1. Lines that
            follow without a mark of their own are counted from it.
        level: Of a heading, from 1. A section ends at the next heading that is not deeper.
    """

    offset: int
    kind: MarkKind
    value: str | int
    level: int = 0


def context_of(headings: Sequence[str]) -> str:
    """Return what precedes a chunk under these headings when it is embedded."""
    return " > ".join(headings)


def with_context(context: str, text: str) -> str:
    """Return a chunk as it is embedded."""
    return f"{context}\n\n{text}" if context else text


class PlaceFinder:
    """Finds the places of one document's chunks."""

    def __init__(self, text: str, marks: Sequence[Mark]) -> None:
        self._text = text
        self._paths = _paths(marks)
        self._pages = _numbers(marks, "page")
        self._lines = _numbers(marks, "line")
        self._counted = (0, 0)  # the last offset and its line, from which the next is counted

    def find(self, begin: int, end: int) -> dict[str, Any]:
        """Return the metadata that says where the chunk `text[begin:end]` is.

        `headings` is the path of its first text that is not itself a heading, outermost first.
        What is unknown has no key.
        """
        place: dict[str, Any] = {}
        if path := self._path(begin, end):
            place[HEADINGS] = list(path)
        if page := _last(self._pages, begin):
            place[PAGE] = page[1]
        if mark := _last(self._lines, begin):
            place[LINE] = self._line(mark, begin)
        return place

    def _path(self, begin: int, end: int) -> tuple[str, ...]:
        found = _last(self._paths, begin)
        while found and found[0] == begin:  # the chunk begins with a heading: look behind it
            newline = self._text.find("\n", begin, end)
            if newline < 0:
                break
            begin = end - len(self._text[newline:end].lstrip())
            if begin == end:
                break
            found = _last(self._paths, begin)
        return found[1] if found else ()

    def _line(self, mark: tuple[int, int], begin: int) -> int:
        offset, line = max(mark, self._counted) if self._counted[0] <= begin else mark
        self._counted = (begin, line + self._text.count("\n", offset, begin))
        return self._counted[1]


def _paths(marks: Iterable[Mark]) -> list[tuple[int, tuple[str, ...]]]:
    """Return the path of each section, by where its heading begins."""
    paths: list[tuple[int, tuple[str, ...]]] = []
    levels: list[int] = []
    path: list[str] = []
    for mark in marks:
        if mark.kind != "heading":
            continue
        while levels and levels[-1] >= mark.level:
            levels.pop()
            path.pop()
        levels.append(mark.level)
        path.append(_shortened(str(mark.value)))
        paths.append((mark.offset, tuple(path)))
    return paths


def _shortened(heading: str) -> str:
    if len(heading) <= MAX_HEADING_CHARACTERS:
        return heading
    return heading[: MAX_HEADING_CHARACTERS - 1].rstrip() + "…"


def _numbers(marks: Iterable[Mark], kind: MarkKind) -> list[tuple[int, int]]:
    return [(mark.offset, int(mark.value)) for mark in marks if mark.kind == kind]


def _last(places: Sequence[tuple[int, _Value]], offset: int) -> tuple[int, _Value] | None:
    """Return the last place that begins at an offset or before it."""
    at = bisect_right(places, offset, key=lambda place: place[0])
    return places[at - 1] if at else None
