"""HTML pages: their main content as Markdown, extracted by trafilatura."""

from __future__ import annotations

import codecs
import logging
import re
from importlib import import_module
from typing import Any

from ..config import ReadOptions
from .text_files import Extracted, decoded, read_content
from .values import UnreadableError

_HEAD_BYTES = 4096
_CHARSET = re.compile(rb"<meta[^>]*?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
# How browsers decode pages under these names (WHATWG Encoding Standard). A page in which the ASCII
# bytes of its charset were found is not UTF-16, whatever it claims.
_BROWSER_NAMES = {
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "x-sjis": "cp932",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "big5": "big5hkscs",
    "utf-16": "utf-8",
    "utf-16le": "utf-8",
    "utf-16be": "utf-8",
}
_NO_TEXT = ("script", "style", "noscript", "template", "title")


def read_html(path: str, options: ReadOptions) -> Extracted:
    """Read the main content of a page, or all of its text if there is no main content.

    Raises:
        UnreadableError: It is not in the encoding that it declares, or has no text.
    """
    trafilatura = import_module("trafilatura")  # the extra `html`
    # It warns of every page without text, which is reported here anyway.
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    page = _decoded(read_content(path, options), options)
    tree = _parse(page)
    title = " ".join((tree.findtext(".//title") or "").split()) or None
    try:
        text = trafilatura.extract(tree, output_format="markdown", include_comments=False)
    except Exception:  # a page that trafilatura fails on still has text
        text = None
    if not text:
        return Extracted(_all_text(_parse(page)), "text", title)
    return Extracted(text, "markdown", title)


def _decoded(content: bytes, options: ReadOptions) -> str:
    """Decode a page by its byte order mark, else its declaration, else the option."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    if b"\0" in content:
        raise UnreadableError("The file contains NUL bytes: it is binary, not HTML.")
    declared = _CHARSET.search(content[:_HEAD_BYTES])
    if declared and not content.startswith(codecs.BOM_UTF8):
        name = declared[1].decode("ascii").lower()
        try:
            return content.decode(_BROWSER_NAMES.get(name, name))
        except (LookupError, UnicodeDecodeError):
            pass  # the declaration is wrong
    return decoded(content, options)


def _parse(page: str) -> Any:
    """Parse a page with lxml."""
    html, etree = import_module("lxml.html"), import_module("lxml.etree")
    parser = html.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True, collect_ids=False
    )
    try:
        return html.document_fromstring(page.encode(), parser=parser)
    except (etree.LxmlError, ValueError):
        raise UnreadableError("The page has no text.") from None


def _all_text(tree: Any) -> str:
    etree = import_module("lxml.etree")
    etree.strip_elements(tree, *_NO_TEXT, with_tail=False)
    pieces = (" ".join(str(piece).split()) for piece in tree.itertext())
    return "\n".join(piece for piece in pieces if piece)
