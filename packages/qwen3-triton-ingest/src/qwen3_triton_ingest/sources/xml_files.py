"""XML files, and EPUB books: an archive of XHTML pages in the order in which they are read."""

from __future__ import annotations

import html
import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from io import BytesIO
from typing import Any
from urllib.parse import unquote

from ..config import ReadOptions
from ..places import Mark
from .archive_files import ZIP_ERRORS
from .html_files import extract_page, read_html
from .text_files import Extracted, read_content
from .values import UnreadableError, too_large

_BETWEEN_PAGES = "\n\n"
_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGE_TYPES = ("application/xhtml+xml", "text/html")
_TITLE = "{http://purl.org/dc/elements/1.1/}title"


def read_xml(path: str, options: ReadOptions) -> Extracted:
    """Read the text of all elements, one block of text per line; XHTML is read as HTML.

    Raises:
        UnreadableError: It is not XML.
    """
    tree = parse_xml(read_content(path, options))
    if _name(tree) == "html":
        return read_html(path, options)
    _replace_entities(tree)
    title = next((each for each in tree.iter() if _name(each) == "title"), None)
    lines = "\n".join(line for line in _lines(tree) if line)
    return Extracted(lines, title=None if title is None else _line(title) or None)


def read_epub(path: str, options: ReadOptions) -> Extracted:
    """Read the pages of a book as Markdown.

    Raises:
        UnreadableError: It is damaged, encrypted or too large.
    """
    try:
        with zipfile.ZipFile(BytesIO(read_content(path, options))) as archive:
            return _book(archive, options)
    except ZIP_ERRORS:
        raise UnreadableError("The file is damaged, or is not an EPUB book.") from None


def read_member(archive: zipfile.ZipFile, name: str, options: ReadOptions) -> bytes:
    """Return what a member unpacks to, however large it says that is.

    Raises:
        UnreadableError: It is missing, or larger than a document may be.
    """
    try:
        with archive.open(name) as member:
            content = member.read(options.max_document_bytes + 1)
    except KeyError:
        raise UnreadableError(f"The file is damaged: it has no `{name}`.") from None
    if len(content) > options.max_document_bytes:
        raise UnreadableError(too_large(f"`{name}`", len(content), options))
    return content


def parse_xml(content: bytes) -> Any:
    """Parse XML without what it refers to.

    Raises:
        UnreadableError: It is not well-formed.
    """
    etree: Any = import_module("lxml.etree")
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        remove_comments=True,
        remove_pis=True,
        huge_tree=True,
    )
    try:
        return etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise UnreadableError(f"The file is damaged: {error}.") from None


def title_in(tree: Any) -> str | None:
    """Return the Dublin Core title in a description of a document."""
    title = next(tree.iter(_TITLE), None)
    return None if title is None else " ".join((title.text or "").split()) or None


def _book(archive: zipfile.ZipFile, options: ReadOptions) -> Extracted:
    if _ENCRYPTION in archive.namelist():
        methods = parse_xml(read_member(archive, _ENCRYPTION, options)).iter("{*}EncryptionMethod")
        if any(method.get("Algorithm") not in _FONTS for method in methods):
            raise UnreadableError("The book is encrypted (DRM).")
    container = parse_xml(read_member(archive, _CONTAINER, options))
    root = next((each.get("full-path") for each in container.iter("{*}rootfile")), None)
    if not root:
        raise UnreadableError(f"The book is damaged: `{_CONTAINER}` names no package.")
    package = parse_xml(read_member(archive, root, options))
    text, marks = "", list[Mark]()
    left = options.max_document_bytes
    for name in _spine(package, posixpath.dirname(root)):
        content = read_member(archive, name, replace(options, max_document_bytes=left))
        left -= len(content)
        page = extract_page(content.decode("utf-8-sig", "replace"))
        if page.text:
            text += _BETWEEN_PAGES if text else ""
            marks += (replace(mark, offset=mark.offset + len(text)) for mark in page.marks)
            text += page.text
    return Extracted(text, "markdown", title_in(package), tuple(marks))


def _spine(package: Any, folder: str) -> Iterator[str]:
    """Yield the names of the pages that a reader turns; those on the side are not among them."""
    items = {each.get("id"): each for each in package.iter("{*}item")}
    for reference in package.iter("{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or item.get("media-type") not in _PAGE_TYPES:
            continue
        if "nav" not in (item.get("properties") or "").split():
            yield posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))


def _name(element: Any) -> str:
    """Return an element's name without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _lines(root: Any) -> Iterator[str]:
    """Yield the text of each innermost element; an element within text is part of its line."""
    stack = [root]
    while stack:
        element = stack.pop()
        texts = (element.text, *(child.tail for child in element))
        if any(text and not text.isspace() for text in texts):
            yield _line(element)
        else:
            stack.extend(reversed(element))


def _line(element: Any) -> str:
    return " ".join("".join(element.itertext()).split())


def _replace_entities(root: Any) -> None:
    """Replace entities by their text, as the file itself or HTML defines them."""
    entity: Any = import_module("lxml.etree").Entity
    dtd = root.getroottree().docinfo.internalDTD
    texts = {} if dtd is None else {each.name: each.content for each in dtd.iterentities()}
    for node in list(root.iter(entity)):
        text = texts.get(node.name) or html.unescape(node.text)
        # What is in a file of its own, or refers to other entities, is not read.
        text = ("" if text.startswith("&") else text) + (node.tail or "")
        before, parent = node.getprevious(), node.getparent()
        if before is None:
            parent.text = (parent.text or "") + text
        else:
            before.tail = (before.tail or "") + text
        parent.remove(node)
