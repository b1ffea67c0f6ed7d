"""PDF files, read by PDFium."""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING

from ..config import ReadOptions
from .plain_values import UnreadableError, too_large
from .text_files import Extracted

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

__all__ = ["read_pdf"]

# PDFium may be called by one thread at a time, whatever the document.
_LOCK = threading.Lock()
# A word that is divided at the end of a line.
_HYPHEN = re.compile("[\ufffe\x02]\r?\n?")


def read_pdf(path: str, options: ReadOptions) -> Extracted:
    """Read the text of all pages, blank lines between them.

    Raises:
        UnreadableError: It is encrypted, broken or too large, or has no text.
    """
    from pypdfium2 import PdfDocument, PdfiumError  # the extra `pdf`

    size = os.stat(path).st_size
    if size > options.max_document_bytes:
        raise UnreadableError(too_large("the file", size, options))
    with open(path, "rb"):  # PDFium does not tell a missing file or right from a broken file
        pass
    if not size:
        raise UnreadableError("the file is empty")
    with _LOCK:
        try:
            document = PdfDocument(path)
        except PdfiumError as error:
            raise UnreadableError(_reason(error)) from None
        try:
            pages = _pages(document, options)
            title = document.get_metadata_dict().get("Title", "").strip() or None
        except PdfiumError as error:
            raise UnreadableError(_reason(error)) from None
        finally:
            document.close()
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise UnreadableError("the PDF has no text: scanned pages need OCR first")
    return Extracted(text, "text", title)


def _pages(document: PdfDocument, options: ReadOptions) -> list[str]:
    pages: list[str] = []
    length = 0
    for number in range(len(document)):
        page = document[number]
        try:
            text_page = page.get_textpage()
            try:
                text = text_page.get_text_range()
            finally:
                text_page.close()
        finally:
            page.close()
        pages.append(_HYPHEN.sub("", text).replace("\r\n", "\n").strip())
        length += len(text)
        if length > options.max_document_bytes:
            raise UnreadableError(too_large("the text so far", length, options))
    return pages


def _reason(error: Exception) -> str:
    if "password" in str(error).lower():
        return "the PDF is encrypted: save it without its password"
    return f"the PDF is broken or is none: {error}"
