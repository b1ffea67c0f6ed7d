"""PDF files, read with PDFium."""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING

from ..config import ReadOptions
from .text_files import Extracted
from .values import UnreadableError, too_large

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

# PDFium is not thread-safe, not even across documents.
_LOCK = threading.Lock()
# A word that is hyphenated at the end of a line.
_HYPHEN = re.compile("[\ufffe\x02]\r?\n?")


def read_pdf(path: str, options: ReadOptions) -> Extracted:
    """Read the text of all pages, with blank lines between them.

    Raises:
        UnreadableError: It is encrypted, broken or too large, or has no text.
    """
    from pypdfium2 import PdfDocument, PdfiumError  # the extra `pdf`

    size = os.stat(path).st_size
    if size > options.max_document_bytes:
        raise UnreadableError(too_large("The file", size, options))
    with open(path, "rb"):  # PDFium reports a missing file or permission as a damaged file
        pass
    if not size:
        raise UnreadableError("The file is empty.")
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
        raise UnreadableError("The PDF has no text. Run OCR on scanned pages first.")
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
            raise UnreadableError(too_large("The text so far", length, options))
    return pages


def _reason(error: Exception) -> str:
    if "password" in str(error).lower():
        return "The PDF is encrypted. Save it without a password."
    return f"The file is not a valid PDF: {error}"
