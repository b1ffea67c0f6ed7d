"""Office files: Word, PowerPoint and Excel with all2md, OpenDocument, and RTF as plain text."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from typing import Any

from ..config import ReadOptions
from ..places import Mark
from .archive_files import ZIP_ERRORS
from .html_files import extract_page
from .markdown_files import markdown_headings
from .odt_files import document_as_page
from .text_files import Extracted, read_content
from .values import UnreadableError
from .xml_files import parse_xml, read_member, title_in

# A file is what it contains, whatever its name is.
_MEMBERS = {
    "word/document.xml": "docx",
    "ppt/presentation.xml": "pptx",
    "xl/workbook.xml": "xlsx",
}
_ODT = b"application/vnd.oasis.opendocument.text"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_CODE_PAGE = re.compile(rb"\\ansicpg(\d+)")
_BETWEEN_SLIDES = "\n\n"
_RULE = "---"  # follows every slide


def read_office(path: str, options: ReadOptions) -> Extracted:
    """Read a document, a presentation or a workbook.

    Raises:
        UnreadableError: It is encrypted, damaged, too large, or of another format.
    """
    content = read_content(path, options)
    if content.startswith(b"{\\rtf"):
        return Extracted(_rtf_text(content))
    if content.startswith(_OLE):
        raise UnreadableError(
            "The file is encrypted, or in a format of Office 97. Save it without a password as "
            ".docx, .pptx or .xlsx; `soffice --headless --convert-to docx FILE` does so for many."
        )
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return _zipped(archive, content, options)
    except ZIP_ERRORS:
        raise UnreadableError("The file is damaged, or is not an Office document.") from None


def _zipped(archive: zipfile.ZipFile, content: bytes, options: ReadOptions) -> Extracted:
    names = set(archive.namelist())
    kind = next((kind for name, kind in _MEMBERS.items() if name in names), None)
    if kind is not None:
        title = _title(archive, "docProps/core.xml", options)
        text, marks = _converted(content, kind)
        return Extracted(text, "markdown", title, marks)
    if "mimetype" in names and read_member(archive, "mimetype", options).strip() == _ODT:
        if b"encryption-data" in read_member(archive, "META-INF/manifest.xml", options):
            raise UnreadableError("The file is encrypted. Save it without a password.")
        page = document_as_page(
            parse_xml(read_member(archive, "content.xml", options)),
            parse_xml(read_member(archive, "styles.xml", options)),
        )
        found = extract_page(page)
        title = _title(archive, "meta.xml", options)
        return Extracted(found.text, found.markup, title, found.marks)
    raise UnreadableError("The file is not a .docx, .pptx, .xlsx, .odt or .rtf document.")


def _converted(content: bytes, kind: str) -> tuple[str, tuple[Mark, ...]]:
    """Return the Markdown of a document, with its headings, and slides as pages."""
    all2md: Any = import_module("all2md")
    errors: Any = import_module("all2md.exceptions")
    try:
        if kind == "pptx":
            parts = list(_slides(content))
        else:
            parts = [_markdown(all2md.to_ast(BytesIO(content), source_format=kind))]
    except errors.All2MdError as error:
        if isinstance(error.__cause__, MemoryError):
            raise MemoryError from None
        raise UnreadableError(f"The file is not a valid .{kind}: {error}") from None
    marks: list[Mark] = []
    text = ""
    for number, part in enumerate(parts, 1):
        if part:
            text += _BETWEEN_SLIDES if text else ""
            marks += [Mark(len(text), "page", number)] if kind == "pptx" else []
            text += part
    return text, tuple(sorted((*marks, *markdown_headings(text)), key=lambda mark: mark.offset))


def _slides(content: bytes) -> Iterator[str]:
    """Yield the Markdown of each slide; together they would not show where an empty one was."""
    errors: Any = import_module("all2md.exceptions")
    try:
        presentation = import_module("pptx").Presentation(BytesIO(content))
    except (KeyError, ValueError, SyntaxError) as error:  # of its parts, its types and its XML
        raise errors.All2MdError(str(error)) from error
    options: Any = import_module("all2md.options.pptx").PptxOptions
    converter: Any = import_module("all2md.parsers.pptx").PptxToAstConverter
    for number in range(1, len(presentation.slides) + 1):
        slide = converter(options(slides=str(number))).convert_to_ast(presentation)
        yield _markdown(slide).removesuffix(_RULE).rstrip()


def _markdown(tree: Any) -> str:
    all2md: Any = import_module("all2md")
    return all2md.from_ast(tree, "markdown").strip()


def _rtf_text(content: bytes) -> str:
    found = _CODE_PAGE.search(content)
    encoding = f"cp{int(found[1])}" if found else "cp1252"
    try:
        text = content.decode(encoding, "replace")
    except LookupError:
        encoding = "cp1252"
        text = content.decode(encoding, "replace")
    rtf: Any = import_module("striprtf.striprtf")
    return rtf.rtf_to_text(text, encoding=encoding, errors="replace")


def _title(archive: zipfile.ZipFile, name: str, options: ReadOptions) -> str | None:
    if name not in archive.namelist():
        return None
    return title_in(parse_xml(read_member(archive, name, options)))
