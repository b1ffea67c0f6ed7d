"""Readers of the manuals: HTML, DocBook, POD and Mallard pages, cut into sections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from articles import Article, squeeze

MAX_CHARACTERS = 1600  # about as much as the teacher reads of a text (256 word pieces)
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "dt", "title"})
_SKIPPED = frozenset(
    {"script", "style", "pre", "table", "nav", "screen", "programlisting", "code-block"}
)
_BLOCKS = frozenset({"p", "li", "dd", "para", "div", "section", "item", "br"})

# Where each package keeps its pages, and the pattern of their names.
PAGES: dict[str, str] = {
    "debian-reference-en": "usr/share/debian-reference/*.en.html",
    "debian-handbook": "usr/share/doc/debian-handbook/html/en-US/*.html",
    "debian-faq": "usr/share/doc/debian/FAQ/*.en.html",
    "developers-reference": "usr/share/developers-reference/*.html",
    "python3.11-doc": "usr/share/doc/python3.11/html/**/*.html",
    "libreoffice-help-en-us": "usr/share/libreoffice/help/en-US/**/*.html",
    "postgresql-doc-15": "usr/share/doc/postgresql-doc-15/html/*.html",
    "lilypond-doc-html": "usr/share/doc/lilypond/html/Documentation/[lmneu]*/*.html",
    "maxima-doc": "usr/share/doc/maxima-doc/html/*.html",
    "gimp-help-en": "usr/share/gimp/2.0/help/en/*.html",
    "sqlite3-doc": "usr/share/doc/sqlite3/*.html",
    "kstars-data": "usr/share/doc/HTML/en/kstars/*.docbook",
    "gnome-user-docs": "usr/share/help/C/**/*.page",
}


class _Sections(HTMLParser):
    """Collects (heading, text) pairs."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: list[tuple[str, str]] = []
        self._heading: list[str] = []
        self._text: list[str] = []
        self._in_heading = ""
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self._skipped += 1
        elif tag in _HEADINGS:
            self.flush()
            self._in_heading, self._heading = tag, []
        elif tag in _BLOCKS:
            self._text.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED:
            self._skipped = max(0, self._skipped - 1)
        elif tag == self._in_heading:
            self._in_heading = ""

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            (self._heading if self._in_heading else self._text).append(data)

    def flush(self) -> None:
        """Close the section that was open."""
        heading = squeeze("".join(self._heading)).strip("¶ ")
        heading = re.sub(r"^(?:Chapter )?[\dA-Z]{0,2}[\d.]*\.\s+", "", heading).removesuffix("#")
        # Short lines are menus and links, not prose.
        lines = [squeeze(line) for line in "".join(self._text).split("\n")]
        text = " ".join(line for line in lines if len(line) > 25)
        self._text = []
        if len(text) > 80:
            self.sections.append((heading.strip("¶ "), text))


def pages(root: Path, package: str) -> Iterator[Article]:
    """Yield the sections of a package's pages."""
    for path in sorted((root / package).glob(PAGES[package])):
        parser = _Sections()
        parser.feed(path.read_text(encoding="utf-8", errors="replace"))
        parser.flush()
        for heading, text in parser.sections:
            yield from pieces(package, heading, text)


def perl(root: Path) -> Iterator[Article]:
    """Yield the sections of Perl's manual, FAQ included."""
    for path in sorted((root / "perl-doc").glob("usr/share/perl/*/pod/*.pod")):
        if "delta" in path.name:
            continue
        pod = path.read_text(encoding="utf-8", errors="replace")
        for section in re.split(r"^=(?:head\d|item) ", pod, flags=re.MULTILINE)[1:]:
            heading, _, body = section.partition("\n")
            prose = re.sub(r"^(?:[ \t]|=).*$", "", body, flags=re.MULTILINE)
            heading, text = (
                squeeze(re.sub(r"[A-Z]<+ ?(.*?) ?>+", r"\1", t)) for t in (heading, prose)
            )
            if len(text) > 80:
                yield from pieces("perl-doc", heading, text)


def pieces(source: str, title: str, text: str) -> Iterator[Article]:
    """Cut a long text at sentence ends into pieces that the teacher can read whole."""
    piece = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", text):
        if piece and len(piece) + len(sentence) > MAX_CHARACTERS:
            yield Article(source, title, piece)
            piece = ""
        piece = f"{piece} {sentence[:MAX_CHARACTERS]}".strip()
    if len(piece) > 60:
        yield Article(source, title, piece)
