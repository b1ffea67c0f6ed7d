"""The main part of an HTML page as Markdown: headings, lists, tables and code as they are.

Everything is kept but navigation, controls and what no reader sees. Emphasis, links and images are
reduced to their text, since a chunk is embedded and searched, and not displayed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

from ..places import Mark
from .html_elements import (
    BLOCKS,
    HEADINGS,
    UNSEEN,
    Element,
    has_sections,
    is_anchor,
    is_code_cell,
    is_in_admonition,
    is_line_number,
    is_question,
    main_element,
    remove_navigation,
    texts_of,
)

_LISTS = frozenset(("ul", "ol", "menu", "dir"))
_CODE = frozenset(("code", "tt", "kbd", "samp"))
# A line of text that Markdown would take for a heading or a fence.
_FAKE_STRUCTURE = re.compile(r"(?m)^(?=#{1,6}(?:\s|$)|=+\s*$|-+\s*$|`{3}|~{3})")
_LOWEST_LEVEL = 6
_FEWEST_COLUMNS = 2
# What is deeper is plain text: no page nests that deep on purpose.
_MAX_DEPTH = 100


class _Block(NamedTuple):
    """A block of Markdown.

    Attributes:
        level: Of a heading that begins a section, else 0.
        title: Of such a heading, as plain text.
    """

    kind: Literal["paragraph", "list", "other"]
    text: str
    level: int = 0
    title: str = ""


_Blocks: TypeAlias = list[_Block]


def to_markdown(page: Element) -> tuple[str, tuple[Mark, ...]]:
    """Convert a page that lxml has parsed, and return its Markdown with its headings.

    The navigation is removed from the page.
    """
    body = page.find(".//body")
    body = page if body is None else body
    remove_navigation(body)
    root = main_element(body)
    blocks = _Converter(root).blocks(root)
    titles = list(body.iter("h1"))
    if len(titles) == 1 and root not in [titles[0], *titles[0].iterancestors()]:
        blocks = [*_Converter(titles[0]).heading(titles[0], 1), *blocks]  # above the main element
    marks: list[Mark] = []
    offset = 0
    for block in blocks:
        if block.level:
            marks.append(Mark(offset, "heading", block.title, block.level))
        offset += len(block.text) + len("\n\n")
    return "\n\n".join(block.text for block in blocks), tuple(marks)


class _Converter:
    """Converts an element to blocks, so that every heading is a block of its own."""

    def __init__(self, root: Element) -> None:
        self._level = 0  # of the last heading
        self._containers: set[Element] = set()  # what has a block somewhere in it
        for block in root.iter(*BLOCKS):
            for ancestor in block.iterancestors():
                if ancestor in self._containers:
                    break
                self._containers.add(ancestor)

    def blocks(self, element: Element, depth: int = 0) -> _Blocks:
        """Convert what is in an element."""
        if depth > _MAX_DEPTH:
            return _paragraph(" ".join(texts_of(element)))
        blocks: _Blocks = []
        run = [_spaced(element.text)]
        for child in element:
            if self._is_block(child):
                blocks += _paragraph("".join(run)) + self._block(child, depth + 1)
                run = []
            else:
                run.append(self._inline(child, depth + 1))
            run.append(_spaced(child.tail))
        return blocks + _paragraph("".join(run))

    def heading(self, element: Element, level: int) -> _Blocks:
        """Convert an element to a heading; that of a note begins no section."""
        title = " ".join(self._inline(element, 0, in_heading=True).split())
        if not title:
            return []
        text = f"{'#' * level} {title}"
        if is_in_admonition(element):
            return [_Block("other", text)]
        self._level = level
        return [_Block("other", text, level, title.replace("`", ""))]

    def _is_block(self, element: Element) -> bool:
        return element.tag in BLOCKS or element in self._containers or is_question(element)

    def _block(self, element: Element, depth: int) -> _Blocks:
        tag = element.tag
        blocks: _Blocks = []
        if tag in HEADINGS or element.get("role") == "heading":
            stated = element.get("aria-level", "")
            level = HEADINGS.get(tag) or (int(stated) if stated.isdecimal() else 2)
            blocks = self.heading(element, min(max(level, 1), _LOWEST_LEVEL))
        elif is_question(element):
            blocks = self._question(element)
        elif tag == "pre":
            blocks = _fenced(_code_text(element))
        elif tag == "dl":
            blocks = self._definitions(element, depth)
        elif tag == "table":
            blocks = self._table(element, depth)
        elif tag in _LISTS and not has_sections(element):
            blocks = self._list(element, depth)
        elif tag not in UNSEEN:
            blocks = self.blocks(element, depth)
            if tag == "blockquote" and blocks and not has_sections(element):
                quoted = "\n\n".join(block.text for block in blocks)
                blocks = [_Block("other", re.sub(r"(?m)^", "> ", quoted))]
        return blocks

    def _question(self, element: Element) -> _Blocks:
        level = self._level
        blocks = self.heading(element, min(level + 1, _LOWEST_LEVEL))
        self._level = level  # the next question is not part of this one
        return blocks

    def _list(self, element: Element, depth: int) -> _Blocks:
        start = element.get("start", "1")
        number = int(start) if start.isdecimal() else 1
        items: list[str] = []
        for child in element:
            inner = self._block(child, depth + 1) if self._is_block(child) else []
            if not inner:
                continue
            marker = f"{number}. " if element.tag == "ol" else "- "
            number += child.tag == "li"
            text = inner[0].text
            for block in inner[1:]:
                text += ("\n" if block.kind == "list" else "\n\n") + block.text
            items.append(marker + re.sub(r"\n(?!\n|$)", "\n" + " " * len(marker), text))
        if not items:
            return []
        is_tight = not any("\n\n" in item for item in items)
        return [_Block("list", ("\n" if is_tight else "\n\n").join(items))]

    def _definitions(self, element: Element, depth: int) -> _Blocks:
        """Convert a list of terms; each is followed by the first paragraph of its definition."""
        blocks: _Blocks = []
        is_term = False
        for child in element:
            if child.tag == "div" and depth < _MAX_DEPTH:  # a group of terms and definitions
                blocks += self._definitions(child, depth + 1)
                continue
            inner = self._block(child, depth + 1) if self._is_block(child) else []
            if is_term and blocks and inner and blocks[-1].kind == inner[0].kind == "paragraph":
                joined = f"{blocks.pop().text}\n{inner[0].text}"
                inner = [_Block("paragraph", joined), *inner[1:]]
            blocks += inner
            is_term = child.tag == "dt"
        return blocks

    def _table(self, element: Element, depth: int) -> _Blocks:
        """Convert a table of data to a table, and one for layout to what is in its cells."""
        blocks = [
            block for each in element.findall("caption") for block in self.blocks(each, depth)
        ]
        rows = [
            [cell for cell in row if cell.tag in {"td", "th"} and not is_line_number(cell)]
            for row in element.xpath("tr | thead/tr | tbody/tr | tfoot/tr")
        ]
        cells = [cell for row in rows for cell in row]
        width = max((len(row) for row in rows), default=0)
        if any(map(is_code_cell, cells)):
            return _fenced("\n".join(_code_text(cell).strip("\n") for cell in cells))
        if width < _FEWEST_COLUMNS or any(map(_is_layout, cells)):
            return blocks + [block for cell in cells for block in self.blocks(cell, depth)]
        lines: list[str] = []
        for row in rows:
            texts = [" ".join(self._inline(cell, depth).split()) for cell in row]
            if any(texts):
                texts = [text.replace("|", r"\|") for text in texts] + [""] * (width - len(texts))
                lines.append(f"| {' | '.join(texts)} |")
        if lines:
            lines.insert(1, "|" + " --- |" * width)
            blocks.append(_Block("other", "\n".join(lines)))
        return blocks

    def _inline(
        self, element: Element, depth: int, *, in_code: bool = False, in_heading: bool = False
    ) -> str:
        """Return the text of an element, in which a newline is a line break of the page."""
        tag = element.tag
        if tag == "br":
            return "\n"
        if tag in UNSEEN or is_anchor(element) or (tag == "button" and not in_heading):
            return ""
        if depth > _MAX_DEPTH:
            return " ".join(texts_of(element))
        is_code = tag in _CODE and not in_code and element not in self._containers
        parts = [_spaced(element.text)]
        for child in element:
            inner = self._inline(
                child, depth + 1, in_code=in_code or is_code, in_heading=in_heading
            )
            parts += [inner, _spaced(child.tail)]
        text = "".join(parts)
        if tag in BLOCKS:
            return f" {text} "
        return _code_span(text) if is_code and text.strip() else text


def _paragraph(text: str) -> _Blocks:
    lines = (" ".join(line.split()) for line in text.split("\n"))
    text = "\n".join(line for line in lines if line)
    return [_Block("paragraph", _FAKE_STRUCTURE.sub(r"\\", text))] if text else []


def _code_span(text: str) -> str:
    """Return inline code, with white space around it outside of it."""
    code = " ".join(text.split())
    span = f"`` {code} ``" if "`" in code else f"`{code}`"
    return f"{' ' * text[0].isspace()}{span}{' ' * text[-1].isspace()}"


def _fenced(code: str) -> _Blocks:
    code = re.sub(r"\A(?:[^\S\n]*\n)+", "", code).rstrip()
    if not code:
        return []
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", code)), 3)
    return [_Block("other", f"{fence}\n{code}\n{fence}")]


def _code_text(element: Element) -> str:
    """Return the lines of code, without their numbers."""
    parts: list[str] = []
    for part in _code_parts(element, 0):
        if part:
            parts.append(part.replace("\xa0", " "))
        elif part is None and parts and not parts[-1].endswith("\n"):
            parts.append("\n")
    return "".join(parts)


def _code_parts(element: Element, depth: int) -> Iterator[str | None]:
    """Yield the text of code; None where a new line has to begin."""
    codes = sum(child.tag == "code" for child in element)
    are_lines = codes > 1 and not any("\n" in text for text in texts_of(element))
    yield element.text or ""
    for child in element:
        if child.tag == "br":
            yield "\n"
        elif depth > _MAX_DEPTH:
            yield from texts_of(child)
        elif child.tag not in UNSEEN and child.tag != "button" and not is_line_number(child):
            is_line = child.tag in BLOCKS or (are_lines and child.tag == "code")
            yield from [None] * is_line
            yield from _code_parts(child, depth + 1)
            yield from [None] * is_line
        yield child.tail or ""


def _is_layout(cell: Element) -> bool:
    """Return whether a cell has what no cell of a Markdown table can have."""
    if next(cell.iter("table", *HEADINGS), None) is not None:
        return True
    return any("\n" in _code_text(code).strip() for code in cell.iter("pre"))


def _spaced(text: str | None) -> str:
    """Return text whose newlines mean nothing with spaces for them."""
    return text.replace("\n", " ").replace("\r", " ") if text else ""
