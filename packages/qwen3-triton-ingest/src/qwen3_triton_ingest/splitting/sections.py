"""Texts to sections that a splitter takes in linear time. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["cut_into_sections"]

# Within a run of letters without any boundary, which tokenizers take as one word, time grows with
# the square of the length: 20,000 rare Chinese characters take 0.7 s, 80,000 take 10 s.
_LONGEST_RUN = 2048
# Neither white space nor punctuation, from its first character on.
_BOUNDARY = r"\s!-/:-@\[-^`{-~\u2010-\u205e\u3000-\u303f\uff01-\uff0f\uff1a-\uff20"
_RUN = re.compile(rf"(?<![^{_BOUNDARY}])[^{_BOUNDARY}]{{{_LONGEST_RUN + 1},}}")
# Of places to cut at, the first that is found: before headings, between paragraphs, lines,
# sentences, words. Each with what of it stays with the text before.
_PLACES = (("\n#", 1), ("\n\n", 2), ("\n", 1), (". ", 2), ("。", 1), (" ", 1))


def cut_into_sections(text: str, *, longest: int) -> Iterator[str]:
    """Cut a text where it would take too long to split, or else hardly ever.

    Joined, the sections are the text. A section has at most `longest` characters, and no run of
    more than 2,048 without white space or punctuation.
    """
    begin = 0
    for run in _RUN.finditer(text):
        # What stands before a run keeps the run's first piece, and the last one what follows.
        for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
            yield from _cut_to_length(text, begin, cut, longest)
            begin = cut
    yield from _cut_to_length(text, begin, len(text), longest)


def _cut_to_length(text: str, begin: int, end: int, longest: int) -> Iterator[str]:
    while end - begin > longest:
        cut = _best_cut(text, begin + longest // 2, begin + longest)
        yield text[begin:cut]
        begin = cut
    if begin < end:
        yield text[begin:end]


def _best_cut(text: str, low: int, high: int) -> int:
    """Return the last of the best places to cut at, `high` where there is none."""
    for place, kept in _PLACES:
        found = text.rfind(place, low, high)
        if found >= 0:
            return found + kept
    return high
