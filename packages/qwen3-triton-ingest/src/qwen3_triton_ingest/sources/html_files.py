"""HTML pages: decoded as browsers do, and their main content as Markdown."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from ..config import ReadOptions
from .encodings import MARKS_16
from .html_markdown import to_markdown
from .text_files import Extracted, decode, read_content
from .values import UnreadableError

# A browser looks for a declaration in tags `meta`, but not within the others.
_TAGS = re.compile(rb"<!--|<(script|style|title|textarea)\b|<meta\b[^<>]*>", re.I)
_CHARSET = re.compile(rb"[\s\"'/;]charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
_CONTENT = re.compile(rb"\bcontent\s*=\s*(?:\"[^\"]*\"|'[^']*')", re.I)
_XML_ENCODING = re.compile(rb"\A<\?xml\b[^<>]*?\bencoding\s*=\s*[\"']([\w.:-]+)", re.I)
# By the WHATWG Encoding Standard. A declaration in ASCII bytes shows that a page is not UTF-16.
_REPLACED = {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "cp1252", "gbk": "gb18030"}
_NO_TEXT = ("script", "style", "noscript", "template", "title")


def read_html(path: str, options: ReadOptions) -> Extracted:
    """Read the main content of a page, or all of its text if there is no main content.

    Raises:
        UnreadableError: It declares no encoding and is not in that of the options, or has no text.
    """
    page, encoding = _decoded(read_content(path, options), options)
    return extract_page(page, encoding)


def extract_page(page: str, encoding: str | None = None) -> Extracted:
    """Convert a page to Markdown.

    Raises:
        UnreadableError: It has no text, or is too deep.
    """
    tree = _parse(page)
    title = " ".join((tree.findtext(".//title") or "").split()) or None
    text, marks = to_markdown(tree)
    if not text:  # it has nothing but navigation
        return Extracted(_all_text(_parse(page)), "text", title, encoding=encoding)
    return Extracted(text, "markdown", title, marks, encoding)


def _decoded(content: bytes, options: ReadOptions) -> tuple[str, str | None]:
    """Decode a page by its byte order mark, else by its declaration, else by the options.

    As in a browser, bytes that are not valid in a declared encoding become U+FFFD.

    Returns:
        The page, and its encoding if it had to be detected.
    """
    if content.startswith(MARKS_16):
        return content.decode("utf-16", "replace"), None
    if content.startswith(codecs.BOM_UTF8):
        return content.decode("utf-8-sig", "replace"), None
    if b"\0" in content:
        raise UnreadableError("The file contains NUL bytes: it is binary, not HTML.")
    for label in _declared(content):
        if (decoder := _decoder(label)) is not None:
            return decoder(content, "replace")[0], None
    return decode(content, options)


def _declared(content: bytes) -> Iterator[bytes]:
    """Yield the encodings that a page declares, in the order in which a browser believes them."""
    position = 0
    while found := _TAGS.search(content, position):
        position = found.end()
        tag = found[0].lower()
        if tag.startswith(b"<meta"):
            if b"http-equiv" not in tag:
                tag = _CONTENT.sub(b"", tag)
            if charset := _CHARSET.search(tag):
                yield charset[1]
            continue
        end = content.find(b"-->", position) if not found[1] else -1
        if found[1] and (closed := re.compile(b"</" + found[1], re.I).search(content, position)):
            end = closed.start()
        if end < 0:
            break
        position = end
    if xml := _XML_ENCODING.match(content):
        yield xml[1]


def _decoder(label: bytes) -> Callable[[bytes, str], tuple[str, int]] | None:
    """Return how a browser decodes what has a label; None if it does not know or refuses it."""
    encoding = import_module("webencodings").lookup(label.decode("ascii", "replace"))
    if encoding is None or encoding.name == "replacement":
        return None
    if name := _REPLACED.get(encoding.name):
        return codecs.lookup(name).decode
    return encoding.codec_info.decode


def _parse(page: str) -> Any:
    """Parse a page with lxml.

    Raises:
        UnreadableError: It has no text, or more levels than the parser takes.
    """
    html, etree = import_module("lxml.html"), import_module("lxml.etree")
    parser = html.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True, collect_ids=False
    )
    try:
        tree = html.document_fromstring(page.encode("utf-8", "replace"), parser=parser)
    except (etree.LxmlError, ValueError):
        raise UnreadableError("The page has no text.") from None
    # libxml2 repairs everything but what is below 2,048 levels, where it leaves out the rest.
    if parser.error_log.filter_from_fatals():
        raise UnreadableError("The page is nested too deeply. Close the elements that it opens.")
    return tree


def _all_text(tree: Any) -> str:
    etree = import_module("lxml.etree")
    etree.strip_elements(tree, *_NO_TEXT, with_tail=False)
    pieces = (" ".join(str(piece).split()) for piece in tree.itertext())
    return "\n".join(piece for piece in pieces if piece)
