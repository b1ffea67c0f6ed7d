"""How much of real manuals' pages a conversion to Markdown keeps.

    apt-get download postgresql-doc-15 python3.11-doc git-doc
    for package in *.deb; do dpkg -x $package manuals; done
    pip install html5lib markdownify html-to-markdown
    python bench/html_pages.py manuals

What a page has is read by html5lib, which parses as browsers do, from the element that contains the
manual's text: headings, code of several lines, and words. The other converters are given that
element, so that they are compared by their Markdown alone; trafilatura finds it itself.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import mean
from textwrap import dedent
from typing import Any
from xml.etree.ElementTree import Element

import click
from markdown_it import MarkdownIt
from report import machine

from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.sources.html_files import read_html

MANUALS = {
    "postgresql-doc-15": "postgresql-doc-15/html",
    "python3.11-doc": "python3.11/html",
    "git-doc": "git-doc",
}
MIN_HEADINGS, MIN_CODE, MIN_RECALL, MIN_PRECISION = 0.98, 0.98, 0.97, 0.93
HEADER = ("", "headings", "code with its lines", "word recall", "precision", "pages/s", "targets")
# Indexes of words or modules, which are links and little else, and Sphinx's pages without a text.
NO_PAGES = re.compile(r"genindex.*|search|bookindex|py-modindex|contents")
_WORD = re.compile(r"\w+")
_HEADINGS = tuple(f"h{level}" for level in range(1, 7))
# What is not the manual's text: the navigation of DocBook, the foot of AsciiDoc, Sphinx's anchors.
_OUTSIDE = ("navheader", "navfooter", "footer", "headerlink")
_UNSEEN = ("script", "style", "template", "noscript", "svg")


@dataclass(frozen=True)
class Page:
    """What the main element of a page has."""

    path: Path
    main: Element
    headings: list[str]
    code: list[str]
    words: Counter[str]


@dataclass
class Score:
    """What a converter kept of some pages; the lists have an item for each page."""

    headings: Counter[bool]
    code: Counter[bool]
    recalls: list[float]
    precisions: list[float]
    seconds: float = 0.0


def read_page(path: Path) -> Page:
    """Read a page as a browser does, and find its main element by what the three manuals have."""
    parse = import_module("html5lib").parse
    tree: Element = parse(path.read_bytes(), namespaceHTMLElements=False)
    marked = tree.find(".//*[@role='main']")
    main = marked if marked is not None else tree.find("body")
    assert main is not None
    for parent in list(main.iter()):
        for child in list(parent):
            names = {child.get("class"), child.get("id")}
            if (
                callable(child.tag)  # a comment
                or child.tag in _UNSEEN
                or not names.isdisjoint(_OUTSIDE)
            ):
                _remove(parent, child)
    headings = [
        each for element in main.iter() if element.tag in _HEADINGS for each in _title(element)
    ]
    code = [text for pre in main.iter("pre") if "\n" in (text := _code("".join(pre.itertext())))]
    return Page(path, main, headings, code, _words("".join(_spaced(main))))


def score(pages: list[Page], convert: Callable[[Page], str]) -> Score:
    """Convert pages, and compare them with what they have."""
    result = Score(Counter(), Counter(), [], [])
    for page in pages:
        began = time.process_time()
        markdown = convert(page)
        result.seconds += time.process_time() - began
        tokens = MarkdownIt().parse(markdown)
        titles = Counter(
            _normal(tokens[at + 1].content)
            for at, each in enumerate(tokens)
            if each.type == "heading_open"
        )
        for title in page.headings:
            result.headings[titles[title] > 0] += 1
            titles[title] -= 1
        blocks = Counter(
            _code(each.content) for each in tokens if each.type in {"fence", "code_block"}
        )
        for code in page.code:
            result.code[blocks[code] > 0] += 1
            blocks[code] -= 1
        words = _words(markdown)
        kept = (words & page.words).total()
        result.recalls.append(kept / max(1, page.words.total()))
        result.precisions.append(kept / max(1, words.total()))
    return result


def ours(page: Page) -> str:
    return read_html(str(page.path), ReadOptions()).text


def converters() -> Iterator[tuple[str, Callable[[Page], str]]]:
    """Yield this loader and the libraries that are installed."""
    yield "this loader", ours
    try:
        trafilatura = import_module("trafilatura")
        yield (
            "trafilatura",
            lambda page: (
                trafilatura.extract(
                    page.path.read_text("utf-8"), output_format="markdown", include_comments=False
                )
                or ""
            ),
        )
    except ImportError:
        pass
    for name, function, options in (
        ("markdownify", "markdownify", {"heading_style": "ATX", "strip": ["a", "img"]}),
        ("html_to_markdown", "convert", {}),
    ):
        try:
            convert = getattr(import_module(name), function)
        except ImportError:
            continue
        yield (
            name,
            lambda page, convert=convert, options=options: _text(
                convert(_html(page.main), **options)
            ),
        )


def _text(result: Any) -> str:
    return result if isinstance(result, str) else result.content


def _html(element: Element) -> str:
    return import_module("html5lib").serialize(
        element, omit_optional_tags=False, quote_attr_values="always"
    )


def _remove(parent: Element, child: Element) -> None:
    """Remove an element, but not the text after it."""
    at = list(parent).index(child)
    if at:
        parent[at - 1].tail = (parent[at - 1].tail or "") + (child.tail or "")
    else:
        parent.text = (parent.text or "") + (child.tail or "")
    parent.remove(child)


def _spaced(element: Element) -> Iterator[str]:
    """Yield the text of an element, with spaces around those that are not inside of a word."""
    inline = {
        "a",
        "abbr",
        "acronym",
        "b",
        "code",
        "em",
        "i",
        "span",
        "strong",
        "sub",
        "sup",
        "tt",
        "wbr",
        "u",
        "q",
        "s",
        "small",
        "cite",
        "dfn",
        "var",
        "kbd",
        "samp",
    }
    around = "" if element.tag in inline else " "
    yield around + (element.text or "")
    for child in element:
        yield from _spaced(child)
        yield child.tail or ""
    yield around


def _title(element: Element) -> list[str]:
    title = _normal("".join(_spaced(element)))
    return [title] if title else []


def _normal(text: str) -> str:
    return " ".join(_WORD.findall(text.replace("_", " ")))


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.replace("_", " ").lower()))


def _code(text: str) -> str:
    lines = [line.rstrip() for line in text.replace("\xa0", " ").split("\n")]
    return dedent("\n".join(lines)).strip("\n")


def _sample(folder: Path, count: int) -> list[Path]:
    """Return files at equal distances in the sorted list of all, so that all parts are there."""
    files = sorted(
        path
        for path in folder.rglob("*.html")
        if not NO_PAGES.fullmatch(path.stem) and not path.is_symlink()
    )
    return [files[at * len(files) // count] for at in range(min(count, len(files)))]


def _is_good(found: Score) -> bool:
    return (
        found.headings[True] >= MIN_HEADINGS * found.headings.total()
        and found.code[True] >= MIN_CODE * found.code.total()
        and mean(found.recalls) >= MIN_RECALL
        and mean(found.precisions) >= MIN_PRECISION
    )


def _line(manual: str, name: str, found: Score) -> str:
    cells = (
        f"`{manual}`, {name}",
        f"{found.headings[True]} of {found.headings.total()}",
        f"{found.code[True]} of {found.code.total()}",
        f"{mean(found.recalls):.3f}",
        f"{mean(found.precisions):.3f}",
        f"{len(found.recalls) / found.seconds:,.0f}",
        "met" if _is_good(found) else "missed",
    )
    return f"| {' | '.join(cells)} |"


def _lost(page: Page) -> str | None:
    """Describe what this loader loses of a page."""
    found = score([page], ours)
    if _is_good(found):
        return None
    return f"{page.path}: {_line('', '', found)}"


@click.command()
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pages", default=60, show_default=True, help="Pages of each manual.")
@click.option("--lost", is_flag=True, help="List the pages below the targets, too.")
def main(root: Path, pages: int, lost: bool) -> None:
    """Measure what is kept of the HTML manuals of three Debian packages under ROOT."""
    lines = [machine(), "", f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    for manual, folder in MANUALS.items():
        sample = [read_page(path) for path in _sample(root / "usr/share/doc" / folder, pages)]
        lines += [_line(manual, name, score(sample, convert)) for name, convert in converters()]
        if lost:
            print(*filter(None, map(_lost, sample)), sep="\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
