"""Markdown files: their front matter is metadata, and their headings are places."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import yaml

from ..config import ReadOptions
from ..documents import Metadata
from ..places import Mark
from .shards import extension
from .text_files import Extracted, whole_text
from .values import as_json

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

# YAML or TOML at the top of a file, as Jekyll, Hugo, Obsidian and Pandoc write it. Where a blank
# line follows, the dashes are a rule, and what comes next is text.
_FRONT_MATTER = re.compile(
    r"\A(?P<fence>---|\+\+\+)[ \t]*\r?\n(?![ \t]*\r?\n)(?P<content>.*?)"
    r"^(?:(?P=fence)|\.\.\.)[ \t]*(?:\r?\n|\Z)",
    re.S | re.M,
)
# A statement ends at a blank line.
_MDX_CODE = re.compile(r"(?:\s*(?:import|export)\b(?:[^\n]*\S[^\n]*(?:\n|\Z))+)+\s*")
_MAX_FRONT_MATTER = 1 << 16
_LINE_END = re.compile(r"\r\n?|\n")
_MAX_INDENT = 3
_ANCHOR = re.compile(r"\s*\{\s*#[^{}]*\}\s*$")  # `## Title {#title}`, as in Pandoc and Docusaurus


def read_markdown(path: str, options: ReadOptions) -> Extracted:
    """Read a Markdown file, with its front matter as metadata.

    The imports and exports at the top of MDX are code, and left out.
    """
    text, encoding = whole_text(path, options)
    found = _FRONT_MATTER.match(text, 0, _MAX_FRONT_MATTER)
    metadata = _front_matter(found["fence"], found["content"]) if found else None
    if found is None or metadata is None:
        begin = _end_of_code(path, text, 0)
        first_line = Mark(0, "line", 1 + text.count("\n", 0, begin))
        marks = (first_line, *markdown_headings(text[begin:]))
        return Extracted(text[begin:], "markdown", marks=marks, encoding=encoding)
    begin = _end_of_code(path, text, found.end())
    first_line = Mark(0, "line", 1 + text.count("\n", 0, begin))
    text = text[begin:]
    title = metadata.pop("title", None)
    return Extracted(
        text,
        "markdown",
        title=str(title) if title else None,
        marks=(first_line, *markdown_headings(text)),
        encoding=encoding,
        metadata=metadata,
    )


def _end_of_code(path: str, text: str, begin: int) -> int:
    """Return where the text of a file begins, behind the code of MDX."""
    if extension(path) != ".mdx":
        return begin
    found = _MDX_CODE.match(text, begin)
    return found.end() if found else begin


class _Loader(yaml.SafeLoader):
    """Loads YAML without aliases: a few of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # pyright: ignore[reportUnknownMemberType] - untyped
            raise yaml.YAMLError
        return super().compose_node(parent, index)


def _front_matter(fence: str, content: str) -> dict[str, Any] | None:
    """Return the mapping that front matter is; None if it is not one, and so is text."""
    try:
        if fence == "+++":
            parsed: Any = tomllib.loads(content.replace("\r\n", "\n"))
        else:
            parsed = yaml.load(content, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return None
    if not isinstance(parsed, Mapping):
        return None
    return dict(cast("Metadata", as_json(parsed)))


@cache
def _parsers() -> tuple[MarkdownIt, MarkdownIt]:
    """Return the parsers of blocks, enough to find headings, and of what is within a heading.

    Most commands read no Markdown, and would start a tenth later with its parser.
    """
    from markdown_it import MarkdownIt

    return MarkdownIt().disable("inline"), MarkdownIt()


def markdown_headings(text: str) -> Iterator[Mark]:
    """Yield the headings of a Markdown text, but not those in lists and quotations."""
    blocks, inlines = _parsers()
    begins = [0, *(end.end() for end in _LINE_END.finditer(text))]
    for token, content in pairwise(blocks.parse(text)):
        if token.type == "heading_open" and token.map and not token.level:
            line = text[begins[token.map[0]] : begins[token.map[0]] + _MAX_INDENT + 1]
            begin = begins[token.map[0]] + len(line) - len(line.lstrip(" "))
            if title := _plain(content.content, inlines):
                yield Mark(begin, "heading", title, int(token.tag.removeprefix("h")))


def _plain(markdown: str, inlines: MarkdownIt) -> str:
    """Return the text of a heading without its markup and its explicit anchor."""
    (line,) = inlines.parseInline(_ANCHOR.sub("", markdown))
    parts = [" " if part.type == "softbreak" else part.content for part in line.children or ()]
    return " ".join("".join(parts).split())
