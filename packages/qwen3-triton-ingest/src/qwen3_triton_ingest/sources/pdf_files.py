"""PDF files, read with PDFium: text, page numbers, and the values of filled forms."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from ..config import ReadOptions
from ..places import Mark
from .text_files import Extracted
from .values import UnreadableError, too_large

# A word that is hyphenated at the end of a line; and glyphs without a character.
_HYPHEN = re.compile("[\ufffe\x02]\r?\n?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_BETWEEN_PAGES = "\n\n"
# PDFium reverses what is written from right to left, and with it the letters of one glyph that
# stands for several: lam and alef.
_ALEF_LAM = re.compile("[\u0622\u0623\u0625\u0627\u0671]\u0644")


def read_pdf(path: str, options: ReadOptions) -> Extracted:
    """Read the text of all pages, with blank lines between them.

    A page's text is followed by the values of its form fields, one `name: value` per line.

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
    try:
        document: Any = PdfDocument(path, password=options.pdf_password)
    except PdfiumError as error:
        raise UnreadableError(_reason(error, options)) from None
    try:
        document.init_forms()  # before any page is loaded
        return _extracted(document, options)
    except PdfiumError as error:
        raise UnreadableError(_reason(error, options)) from None
    finally:
        document.close()


def _extracted(document: Any, options: ReadOptions) -> Extracted:
    parts: list[str] = []
    marks: list[Mark] = []
    length = scanned = 0
    for number in range(1, len(document) + 1):
        page = document[number - 1]
        try:
            text = "\n\n".join(filter(None, (_text(page), "\n".join(_field_values(page)))))
            scanned += not text and _has_image(page)
        finally:
            page.close()
        if text:
            marks.append(Mark(length, "page", number))
            parts.append(text)
            length += len(text) + len(_BETWEEN_PAGES)
        if length > options.max_document_bytes:
            raise UnreadableError(too_large("The text so far", length, options))
    if not parts and scanned:
        raise UnreadableError(
            f"The PDF is a scan: {scanned:,} of its {len(document):,} pages are images without "
            "text. Add the text by OCR, such as `ocrmypdf SCAN.pdf TEXT.pdf`."
        )
    if not parts:
        raise UnreadableError("The PDF has no text.")
    metadata = {"scanned_pages": scanned} if scanned else {}
    return Extracted(
        _BETWEEN_PAGES.join(parts),
        "text",
        _title(document),
        marks=tuple(marks),
        metadata=metadata,
    )


def _title(document: Any) -> str | None:
    try:
        title = document.get_metadata_value("Title")
    except UnicodeDecodeError:  # half a surrogate pair
        return None
    return " ".join(_CONTROL.sub(" ", title).split()) or None


def _text(page: Any) -> str:
    text_page = page.get_textpage()
    try:
        text = _with_ligatures_in_order(text_page, text_page.get_text_range())
    finally:
        text_page.close()
    return _HYPHEN.sub("", text).replace("\0", "").replace("\r\n", "\n").strip()


def _with_ligatures_in_order(text_page: Any, text: str) -> str:
    """Swap alef and lam where both are one glyph, which is always lam and alef."""

    def in_order(found: re.Match[str]) -> str:
        at = found.start()
        try:
            is_glyph = text_page.get_charbox(at) == text_page.get_charbox(at + 1)
            is_here = text_page.get_text_range(at, 2) == found[0]
        except Exception:  # no such characters: PDFium counts others than Python does
            return found[0]
        return found[0][::-1] if is_glyph and is_here else found[0]

    return _ALEF_LAM.sub(in_order, text)


def _has_image(page: Any) -> bool:
    raw = _raw()
    return any(True for _ in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]))


def _field_values(page: Any) -> Iterator[str]:
    """Yield `name: value` for each filled field of a page, once."""
    raw = _raw()
    if page.formenv is None:
        return
    seen: set[str] = set()
    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        try:
            if raw.FPDFAnnot_GetSubtype(annotation) != raw.FPDF_ANNOT_WIDGET:
                continue
            field = _Field(page.formenv, annotation)
            if (value := field.value()) and (line := f"{field.name()}: {value}") not in seen:
                seen.add(line)
                yield line
        finally:
            raw.FPDFPage_CloseAnnot(annotation)


def _raw() -> Any:
    return import_module("pypdfium2.raw")  # without types, as it wraps C


class _Field:
    """A field of a form, by the annotation that shows it."""

    def __init__(self, form: Any, annotation: Any) -> None:
        self._form = form
        self._annotation = annotation

    def name(self) -> str:
        """Return the name that a reader sees, else the one that programs use."""
        raw = _raw()
        shown = self._string(raw.FPDFAnnot_GetFormFieldAlternateName)
        return shown or self._string(raw.FPDFAnnot_GetFormFieldName) or "Field"

    def value(self) -> str:
        """Return what is filled in; empty for buttons, signatures and unchecked boxes."""
        raw = _raw()
        kind = raw.FPDFAnnot_GetFormFieldType(self._form, self._annotation)
        if kind in {raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON}:
            is_checked = raw.FPDFAnnot_IsChecked(self._form, self._annotation)
            export = self._string(raw.FPDFAnnot_GetFormFieldExportValue) or "yes"
            return export if is_checked else ""
        if kind in {raw.FPDF_FORMFIELD_LISTBOX, raw.FPDF_FORMFIELD_COMBOBOX}:
            chosen = ", ".join(self._chosen())
            return chosen or self._string(raw.FPDFAnnot_GetFormFieldValue)
        if kind == raw.FPDF_FORMFIELD_TEXTFIELD:
            return self._string(raw.FPDFAnnot_GetFormFieldValue)
        return ""

    def _chosen(self) -> Iterator[str]:
        raw = _raw()
        for index in range(raw.FPDFAnnot_GetOptionCount(self._form, self._annotation)):
            if raw.FPDFAnnot_IsOptionSelected(self._form, self._annotation, index):
                yield self._string(raw.FPDFAnnot_GetOptionLabel, index)

    def _string(self, read: Callable[..., int], *index: int) -> str:
        """Return a string of the field, which PDFium writes as UTF-16 into a buffer."""
        size = read(self._form, self._annotation, *index, None, 0)
        buffer = ctypes.create_string_buffer(size)
        pointer = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort))
        read(self._form, self._annotation, *index, pointer, size)
        text = buffer.raw.decode("utf-16-le", "replace").replace("\0", " ")
        return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _reason(error: Exception, options: ReadOptions) -> str:
    if "password" not in str(error).lower():
        return f"The file is not a valid PDF: {error}"
    if options.pdf_password is None:
        return "The PDF is encrypted. Give its password with `--pdf-password`."
    return "The PDF is encrypted, and its password is not the one in `--pdf-password`."
