"""Documents to chunks of a bounded number of the served model's tokens."""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import TypeAlias

import orjson
from semantic_text_splitter import MarkdownSplitter, TextSplitter

from ..config import SplitOptions
from ..documents import Document, Markup, text_digest
from ..errors import IngestError
from .sections import cut_into_sections

__all__ = ["MIN_CHUNK_TOKENS", "Splitter"]

_Library: TypeAlias = TextSplitter | MarkdownSplitter

LIBRARY = "semantic-text-splitter"
END_TOKENS = 1
# One character may be as many as its bytes, and some of them are drawn together.
MIN_CHUNK_TOKENS = 16
# Overlap is lost between sections: they are to be many times as long as a chunk.
_SECTION_CHARACTERS_PER_TOKEN = 128
_SHOWN_DIGITS = 16


class Splitter:
    """Cut documents along their structure. Threads may share one."""

    def __init__(self, options: SplitOptions, tokenizer_json: str | bytes | None) -> None:
        """Check the options; the tokenizer is built when it is first needed.

        Args:
            options: How long chunks are, and by how much they overlap.
            tokenizer_json: What `load_tokenizer` returns; None only where documents stay whole.

        Raises:
            ValueError: `chunk_tokens` or `overlap_tokens` is out of range.
            IngestError: The tokenizer is none.
        """
        _check(options)
        self._options = options
        self._lock = threading.Lock()
        self._libraries: dict[Markup, _Library] = {}
        if not options.chunk_tokens:
            self._tokenizer = ""
            self.version: str = "whole"
            """What decides where documents are cut; in the content hashes."""
            return
        if tokenizer_json is None:
            raise IngestError("`tokenizer_json` is missing: chunks are measured in its tokens")
        self._tokenizer = _unbounded(tokenizer_json)
        digest = text_digest(tokenizer_json).hex()[:_SHOWN_DIGITS]
        lengths = f"{options.chunk_tokens}/{options.overlap_tokens}"
        self.version = f"{LIBRARY} {version(LIBRARY)} {lengths} {digest}"
        self._library("text")

    def split(self, document: Document) -> list[str]:
        """Return the chunks of a document, in its order; no chunk is blank.

        Nothing of the text is lost but white space between chunks. A document with a vector is
        one chunk.
        """
        options = self._options
        if not options.chunk_tokens or document.vector is not None:
            return [document.text]
        library = self._library(document.markup)
        longest = options.chunk_tokens * _SECTION_CHARACTERS_PER_TOKEN
        return [
            chunk
            for section in cut_into_sections(document.text, longest=longest)
            for chunk in library.chunks(section)
            if chunk.strip()
        ]

    def _library(self, markup: Markup) -> _Library:
        with self._lock:
            known = self._libraries.get(markup)
            if known is None:
                known = self._libraries[markup] = self._build(markup)
            return known

    def _build(self, markup: Markup) -> _Library:
        kind = MarkdownSplitter if markup == "markdown" else TextSplitter
        options = self._options
        try:
            return kind.from_huggingface_tokenizer_str(
                self._tokenizer, options.chunk_tokens - END_TOKENS, options.overlap_tokens
            )
        except Exception as error:  # the library raises plain Exception
            raise IngestError(f"the tokenizer cannot be used: {error}") from error


def _check(options: SplitOptions) -> None:
    chunk, overlap = options.chunk_tokens, options.overlap_tokens
    if chunk != 0 and chunk < MIN_CHUNK_TOKENS:
        allowed = f"0 (whole documents) or at least {MIN_CHUNK_TOKENS}"
        msg = f"`chunk_tokens` must be {allowed}, not {chunk}"
        raise ValueError(msg)
    if chunk and not 0 <= overlap <= chunk // 2:
        msg = f"`overlap_tokens` must be 0 to {chunk // 2}, half of `chunk_tokens`, not {overlap}"
        raise ValueError(msg)


def _unbounded(tokenizer_json: str | bytes) -> str:
    """Return the tokenizer without truncation and padding, which would count long texts short."""
    try:
        tokenizer = orjson.loads(tokenizer_json)
        bounded = tokenizer.get("truncation") or tokenizer.get("padding")
    except (orjson.JSONDecodeError, AttributeError):
        msg = "the tokenizer is no `tokenizer.json`: name the served model's by `--tokenizer`"
        raise IngestError(msg) from None
    if not bounded:
        return tokenizer_json if isinstance(tokenizer_json, str) else tokenizer_json.decode()
    return orjson.dumps(tokenizer | {"truncation": None, "padding": None}).decode()
