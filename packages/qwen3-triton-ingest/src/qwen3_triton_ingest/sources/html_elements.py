"""What the elements of an HTML page are: navigation, line numbers, questions, the main content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

# Elements of lxml have no useful types.
Element: TypeAlias = Any

HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCK_TAGS = """
address article aside blockquote body caption center dd details dialog dir div dl dt fieldset
figcaption figure footer form header hgroup hr html legend li main menu nav ol p pre search section
summary table tbody td tfoot th thead tr ul
"""
BLOCKS = frozenset(_BLOCK_TAGS.split()) | set(HEADINGS)
# What no reader sees, and controls.
_UNSEEN_TAGS = """
annotation annotation-xml audio canvas head iframe input link meta noscript object option script
select style svg template textarea title video
"""
UNSEEN = frozenset(_UNSEEN_TAGS.split())
_NAVIGATION_ROLES = frozenset(("navigation", "search", "menu", "menubar", "toolbar", "contentinfo"))
_NAVIGATION_NAME = re.compile(
    r"(?:.*[-_])?(?:nav|navbar|navigation|breadcrumbs?|side-?bar|pagination|pager|menu)"
    r"|nav-?(?:header|footer|bar|links?|menu).*|sphinxsidebar.*|related|footer|(?:site|page)-?footer"
    r"|skip-?(?:link|nav|to).*|cookie-?(?:banner|consent|notice).*",
    re.I,
)
_MAYBE_NAVIGATION_TAGS = "nav header footer div section aside form ul ol table p"
# More of it than this, outside of links, is content, whatever its name is.
_MOST_NAVIGATION_WORDS = 60
_ADMONITIONS = frozenset(("admonition", "note", "tip", "warning", "caution", "important", "danger"))
_ANCHORS = frozenset(
    ("anchor", "anchor-link", "anchorjs-link", "hash-link", "header-anchor", "headerlink")
)
_ANCHOR_TEXTS = frozenset(("", "#", "¶", "§", "🔗", "Permalink"))
# Of Sphinx, Pygments, GitHub, highlight.js, Rouge and Chroma.
_LINE_NUMBER = re.compile(
    r"linenos?|linenodiv|line-?numbers?(?:-rows)?|lineno|blob-num|hljs-ln-numbers|gutter|gl"
    r"|rouge-gutter|lnt|ln",
    re.I,
)
_CODE_CELLS = frozenset(("blob-code", "hljs-ln-code", "js-file-line"))
_TOGGLE = re.compile(r".*(?:accordion|collaps|toggle).*", re.I)
_FEWEST_QUESTION_WORDS = 3


def remove_navigation(body: Element) -> None:
    """Remove what leads to other places and has next to no text of its own."""
    for element in list(body.iter(*_MAYBE_NAVIGATION_TAGS.split())):
        if _is_navigation(element) and element.getparent() is not None:
            element.drop_tree()  # which keeps the text behind it


def main_element(body: Element) -> Element:
    """Return the element that is marked as the main content of a page, else the body.

    The mark is not believed if less than half of the text is in it, or if there are several:
    content would be lost. Call it after the navigation is removed.
    """
    for path in (
        ".//main | .//*[@role='main'][not(ancestor::main)]",
        ".//article[not(ancestor::article)]",
    ):
        found = body.xpath(path)
        if len(found) == 1 and 2 * count_words(found[0]) >= count_words(body):
            return found[0]
    return body


def _is_navigation(element: Element) -> bool:
    """Return whether an element leads to other places and has next to no text of its own."""
    names = [*names_of(element), element.get("id", "")]
    tag, role = element.tag, element.get("role", "")
    is_named = any(_NAVIGATION_NAME.fullmatch(name) for name in names)
    is_page_part = tag in {"header", "footer"} and not any(
        ancestor.tag in {"main", "article", "section"} for ancestor in element.iterancestors()
    )
    if not (tag == "nav" or role in _NAVIGATION_ROLES or is_named or is_page_part):
        return False
    if element.tag == "body" or next(element.iter("main", "h1", "pre"), None) is not None:
        return False
    linked = sum(count_words(link) for link in element.iter("a"))
    return count_words(element) - linked <= _MOST_NAVIGATION_WORDS


def is_in_admonition(element: Element) -> bool:
    """Return whether an element is the title of a note."""
    around = [element.getparent(), *list(element.iterancestors())[1:2]]
    return any(each is not None and not _ADMONITIONS.isdisjoint(names_of(each)) for each in around)


def is_question(element: Element) -> bool:
    """Return whether an element shows and hides what follows: a question, and its answer."""
    if element.tag == "summary":
        return True
    if element.tag != "button" and element.get("role") != "button":
        return False
    is_toggle = element.get("aria-expanded") or any(map(_TOGGLE.fullmatch, names_of(element)))
    return bool(is_toggle) and count_words(element) >= _FEWEST_QUESTION_WORDS


def is_anchor(element: Element) -> bool:
    """Return whether an element is the symbol behind a heading that links to it."""
    if element.tag != "a":
        return False
    text = "".join(texts_of(element)).strip()
    return text in _ANCHOR_TEXTS or (len(text) <= 1 and not _ANCHORS.isdisjoint(names_of(element)))


def is_line_number(element: Element) -> bool:
    """Return whether an element has the number of a line of code, or of all lines."""
    return any(map(_LINE_NUMBER.fullmatch, names_of(element)))


def is_code_cell(cell: Element) -> bool:
    """Return whether a cell of a table is a line of code."""
    return not _CODE_CELLS.isdisjoint(names_of(cell))


def has_sections(element: Element) -> bool:
    """Return whether there are headings in an element."""
    return next(element.iter(*HEADINGS, "summary"), None) is not None


def names_of(element: Element) -> list[str]:
    """Return the classes of an element."""
    return element.get("class", "").split()


def texts_of(element: Element) -> Iterator[str]:
    """Yield the pieces of text in an element."""
    return (str(text) for text in element.itertext())


def count_words(element: Element) -> int:
    return sum(len(text.split()) for text in texts_of(element))
