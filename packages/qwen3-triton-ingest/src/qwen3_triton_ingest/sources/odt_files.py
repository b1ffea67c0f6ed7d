"""OpenDocument text as an HTML page, which the reader of HTML converts further."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Any, TypeAlias

_Element: TypeAlias = Any

_OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
_STYLE = "{urn:oasis:names:tc:opendocument:xmlns:style:1.0}"
_TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"

# Deleted text, comments, and what readers would see twice: generated lists of headings.
_UNSEEN = {
    f"{_TEXT}{name}"
    for name in (
        *("tracked-changes", "table-of-content", "alphabetical-index", "illustration-index"),
        *("table-index", "note-citation", "ruby-text", "sequence-decls", "variable-decls"),
    )
} | {f"{_OFFICE}annotation", f"{_OFFICE}annotation-end", f"{_OFFICE}forms"}
_ROWS = {f"{_TABLE}table-header-rows", f"{_TABLE}table-rows", f"{_TABLE}table-row-group"}
_CODE_STYLES = ("Preformatted_20_Text", "Source_20_Text", "Source_20_Code")
_LOWEST_LEVEL = 6
# What is deeper is left out: no writer makes it, and Python would run out of stack.
_MAX_DEPTH = 100
_MAX_SPACES = 1000


def document_as_page(content: _Element, styles: _Element) -> str:
    """Return the HTML of a document's `content.xml` and `styles.xml`."""
    body = content.find(f"{_OFFICE}body/{_OFFICE}text")
    inner = "" if body is None else _Converter(content, styles).blocks(body, 0)
    return f"<html><body>{inner}</body></html>"


class _Converter:
    def __init__(self, *trees: _Element) -> None:
        self._parents: dict[str, str] = {}  # the style that a style is derived from
        self._numbered: set[str] = set()
        for tree in trees:
            for style in tree.iter(f"{_STYLE}style"):
                name, parent = style.get(f"{_STYLE}name"), style.get(f"{_STYLE}parent-style-name")
                if name and parent:
                    self._parents[name] = parent
            for style in tree.iter(f"{_TEXT}list-style"):
                if len(style) and style[0].tag == f"{_TEXT}list-level-style-number":
                    self._numbered.add(style.get(f"{_STYLE}name"))

    def blocks(self, parent: _Element, depth: int, list_style: str = "") -> str:
        if depth > _MAX_DEPTH:
            return ""
        parts: list[str] = []
        for is_code, group in groupby(parent, self._is_code):
            if is_code:
                lines = "\n".join(_inline(each, 0) for each in group)
                parts.append(f"<pre>\n{lines}</pre>")
            else:
                parts += (self._block(each, depth, list_style) for each in group)
        return "\n".join(parts)

    def _block(self, element: _Element, depth: int, list_style: str) -> str:
        tag = element.tag
        if tag in _UNSEEN or not isinstance(tag, str):
            return ""
        if tag in {f"{_TEXT}h", f"{_TEXT}p"}:
            name = f"h{_level(element)}" if tag == f"{_TEXT}h" else "p"
            return f"<{name}>{_inline(element, 0)}</{name}>{self._inserted(element, depth)}"
        if tag == f"{_TABLE}table":
            rows = "".join(self._row(row, depth) for row in _rows(element, 0))
            return f"<table>{rows}</table>"
        name = ""  # a section or a frame
        if tag == f"{_TEXT}list":
            list_style = element.get(f"{_TEXT}style-name") or list_style
            name = "ol" if list_style in self._numbered else "ul"
        elif tag in {f"{_TEXT}list-item", f"{_TEXT}list-header"}:
            name = "li"
        inner = self.blocks(element, depth + 1, list_style)
        return f"<{name}>{inner}</{name}>" if name else inner

    def _row(self, row: _Element, depth: int) -> str:
        names = {f"{_TABLE}table-cell", f"{_TABLE}covered-table-cell"}
        cells = (self.blocks(cell, depth + 1) for cell in row if cell.tag in names)
        return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"

    def _inserted(self, paragraph: _Element, depth: int) -> str:
        """Return the notes and the frames of text that are anchored in a paragraph."""
        boxes = (f"{_TEXT}note-body", "{urn:oasis:names:tc:opendocument:xmlns:drawing:1.0}text-box")
        return "".join(
            self.blocks(box, depth + 1)
            for box in paragraph.iter(*boxes)
            if next(box.iterancestors(f"{_TEXT}p", f"{_TEXT}h")) is paragraph
        )

    def _is_code(self, element: _Element) -> bool:
        if element.tag != f"{_TEXT}p":
            return False
        name = element.get(f"{_TEXT}style-name", "")
        for _ in range(_MAX_DEPTH):
            if name.startswith(_CODE_STYLES):
                return True
            name = self._parents.get(name, "")
        return False


def _rows(table: _Element, depth: int) -> Iterator[_Element]:
    for child in table:
        if child.tag == f"{_TABLE}table-row":
            yield child
        elif child.tag in _ROWS and depth < _MAX_DEPTH:
            yield from _rows(child, depth + 1)


def _inline(element: _Element, depth: int) -> str:
    """Return the text of a paragraph, without what is anchored in it."""
    parts = [escape(element.text or "", quote=False)]
    for child in element:
        if child.tag == f"{_TEXT}s":
            stated = child.get(f"{_TEXT}c", "1")
            parts.append(" " * min(int(stated) if stated.isdecimal() else 1, _MAX_SPACES))
        elif child.tag == f"{_TEXT}tab":
            parts.append("\t")
        elif child.tag == f"{_TEXT}line-break":
            parts.append("<br>")
        elif _is_inline(child) and depth < _MAX_DEPTH:
            parts.append(_inline(child, depth + 1))
        parts.append(escape(child.tail or "", quote=False))
    return "".join(parts)


def _is_inline(element: _Element) -> bool:
    tag = element.tag
    if not isinstance(tag, str) or not tag.startswith(_TEXT):
        return False
    return tag != f"{_TEXT}note" and tag not in _UNSEEN


def _level(heading: _Element) -> int:
    stated = heading.get(f"{_TEXT}outline-level", "1")
    return min(max(int(stated), 1), _LOWEST_LEVEL) if stated.isdecimal() else 1
