"""Splitting documents into chunks, measured in the served model's own tokens."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import orjson
from semantic_text_splitter import MarkdownSplitter, TextSplitter

from qwen3_triton_client import EmbeddingClient, ModelNotFoundError

from .config import GatewayOptions, SplitOptions
from .documents import ChunkText, Document, Markup, Metadata, text_digest
from .errors import IngestError
from .places import HEADINGS, PlaceFinder, context_of

_Library: TypeAlias = TextSplitter | MarkdownSplitter

LIBRARY = "semantic-text-splitter"
END_TOKENS = 1
# A character can be as many tokens as it has bytes, and some characters must stay together.
MIN_CHUNK_TOKENS = 16
# Overlap is lost between sections, so a section is many times as long as a chunk.
_SECTION_CHARACTERS_PER_TOKEN = 128
_SHOWN_DIGITS = 16
# The part of a chunk's tokens that its headings may take: 64 of 512. The blank line behind them is
# a token or two.
_CONTEXT_PART = 8
_SEPARATOR_TOKENS = 4
_MAX_FITTED = 10_000


class Splitter:
    """Splits documents along their structure. Thread-safe.

    Attributes:
        version: Everything that decides where documents are split; part of their content hashes.
    """

    def __init__(self, options: SplitOptions, tokenizer_json: str | bytes | None) -> None:
        """Check the options and build the tokenizer.

        Args:
            options: How long chunks are, and by how much they overlap.
            tokenizer_json: What `load_tokenizer` returns; None only if documents stay whole.

        Raises:
            ValueError: `chunk_tokens` or `overlap_tokens` is out of range.
            IngestError: The tokenizer is not valid.
        """
        _check(options)
        self._options = options
        self._lock = threading.Lock()
        self._libraries: dict[tuple[Markup, int], _Library] = {}
        self._fitted: dict[tuple[str, ...], str] = {}
        if not options.chunk_tokens:
            self._tokenizer = ""
            self.version: str = "whole"
            return
        if tokenizer_json is None:
            raise IngestError("`tokenizer_json` is missing; chunks are measured in its tokens.")
        self._tokenizer = _unbounded(tokenizer_json)
        digest = text_digest(tokenizer_json).hex()[:_SHOWN_DIGITS]
        lengths = f"{options.chunk_tokens}/{options.overlap_tokens}"
        context = " headings" if options.context == "headings" else ""
        self.version = f"{LIBRARY} {version(LIBRARY)} {lengths} {digest}{context}"
        self._library("text", options.chunk_tokens - END_TOKENS, options.overlap_tokens)

    def split(self, document: Document) -> list[ChunkText]:
        """Return the chunks of a document in order; no chunk is blank.

        No text is lost except white space between chunks. A document with a vector is one chunk.
        """
        places = PlaceFinder(document.text, document.marks)
        room = self._context_tokens(document)
        chunks: list[ChunkText] = []
        for begin, text in self._split(document, room):
            place = places.find(begin, begin + len(text))
            context = self._context(place, room) if room else ""
            chunks.append(ChunkText(text, place, context))
        return chunks

    def _context_tokens(self, document: Document) -> int:
        """Return how many of a chunk's tokens are kept free for its headings."""
        if self._options.context != "headings" or document.vector is not None:
            return 0
        if not any(mark.kind == "heading" for mark in document.marks):
            return 0
        room = self._options.chunk_tokens // _CONTEXT_PART
        return room if room > _SEPARATOR_TOKENS else 0

    def _context(self, place: Metadata, room: int) -> str:
        """Return the path of the headings, without the outer ones if it is too long."""
        path = tuple(place.get(HEADINGS, ()))
        with self._lock:
            if (fitted := self._fitted.get(path)) is not None:
                return fitted
        library = self._library("text", room - _SEPARATOR_TOKENS, 0)
        headings = path
        while len(parts := library.chunks(context_of(headings))) > 1 and len(headings) > 1:
            headings = headings[1:]
        fitted = parts[0] if parts else ""
        with self._lock:
            if len(self._fitted) >= _MAX_FITTED:
                self._fitted.clear()
            self._fitted[path] = fitted
        return fitted

    def _split(self, document: Document, room: int) -> Iterator[tuple[int, str]]:
        """Yield the chunks with where each begins in the text."""
        options = self._options
        if not options.chunk_tokens or document.vector is not None:
            yield 0, document.text
            return
        capacity = options.chunk_tokens - END_TOKENS - room
        library = self._library(document.markup, capacity, options.overlap_tokens)
        longest = options.chunk_tokens * _SECTION_CHARACTERS_PER_TOKEN
        section_begin = 0
        for section in split_into_sections(document.text, longest=longest):
            for offset, chunk in library.chunk_indices(section):
                if chunk.strip():
                    yield section_begin + offset, chunk
            section_begin += len(section)

    def _library(self, markup: Markup, capacity: int, overlap: int) -> _Library:
        with self._lock:
            library = self._libraries.get((markup, capacity))
            if library is None:
                library = self._build(markup, capacity, overlap)
                self._libraries[markup, capacity] = library
            return library

    def _build(self, markup: Markup, capacity: int, overlap: int) -> _Library:
        kind = MarkdownSplitter if markup == "markdown" else TextSplitter
        try:
            return kind.from_huggingface_tokenizer_str(self._tokenizer, capacity, overlap)
        except Exception as error:  # the library raises plain Exception
            raise IngestError(f"The tokenizer cannot be used: {error}.") from error


def _check(options: SplitOptions) -> None:
    chunk, overlap = options.chunk_tokens, options.overlap_tokens
    if chunk != 0 and chunk < MIN_CHUNK_TOKENS:
        allowed = f"0 (whole documents) or at least {MIN_CHUNK_TOKENS}"
        msg = f"`chunk_tokens` must be {allowed}, not {chunk}."
        raise ValueError(msg)
    if chunk and not 0 <= overlap <= chunk // 2:
        msg = f"`overlap_tokens` must be 0 to {chunk // 2} (half of `chunk_tokens`), not {overlap}."
        raise ValueError(msg)


def _unbounded(tokenizer_json: str | bytes) -> str:
    """Return the tokenizer without truncation and padding, which would miscount long texts."""
    try:
        tokenizer = orjson.loads(tokenizer_json)
        bounded = tokenizer.get("truncation") or tokenizer.get("padding")
    except (orjson.JSONDecodeError, AttributeError):
        msg = "The tokenizer is not a `tokenizer.json`. Set the served model's with `--tokenizer`."
        raise IngestError(msg) from None
    if not bounded:
        return tokenizer_json if isinstance(tokenizer_json, str) else tokenizer_json.decode()
    return orjson.dumps(tokenizer | {"truncation": None, "padding": None}).decode()


# Tokenizers treat a run of letters without any boundary as one word, in time that grows with the
# square of its length: 20,000 rare Chinese characters take 0.7 s, 80,000 take 10 s.
_LONGEST_RUN = 2048
# A run starts after white space or punctuation, and contains neither.
_BOUNDARY = r"\s!-/:-@\[-^`{-~\u2010-\u205e\u3000-\u303f\uff01-\uff0f\uff1a-\uff20"
_RUN = re.compile(rf"(?<![^{_BOUNDARY}])[^{_BOUNDARY}]{{{_LONGEST_RUN + 1},}}")
# Places to cut at, best first: before headings, between paragraphs, lines, sentences, words. Each
# with how many of its characters stay with the text before the cut.
_PLACES = (("\n#", 1), ("\n\n", 2), ("\n", 1), (". ", 2), ("。", 1), (" ", 1))


def split_into_sections(text: str, *, longest: int) -> Iterator[str]:
    """Cut a text into sections that the splitter library takes linear time for.

    Most texts are one section. Joined, the sections are the text. A section has at most `longest`
    characters, and no run of more than 2,048 without white space or punctuation.
    """
    begin = 0
    for run in _RUN.finditer(text):
        # The text before a run keeps its first piece, and the last piece keeps the text after it.
        for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
            yield from _cut_to_length(text, begin, cut, longest)
            begin = cut
    yield from _cut_to_length(text, begin, len(text), longest)


def _cut_to_length(text: str, begin: int, end: int, longest: int) -> Iterator[str]:
    while end - begin > longest:
        cut = _best_cut(text, begin + longest // 2, begin + longest)
        yield text[begin:cut]
        begin = cut
    if begin < end:
        yield text[begin:end]


def _best_cut(text: str, low: int, high: int) -> int:
    """Return the last occurrence of the best place to cut at; `high` if there is none."""
    for place, kept in _PLACES:
        found = text.rfind(place, low, high)
        if found >= 0:
            return found + kept
    return high


FILE_NAME = "tokenizer.json"
_LFS_POINTER = b"version https://git-lfs"
_MAX_RETRIES = 100  # the deadline ends the waits of up to 16 s, not this number


def load_tokenizer(
    options: SplitOptions, gateway: GatewayOptions, *, retry_seconds: float = 60.0
) -> bytes:
    """Return the `tokenizer.json` that chunks are measured with; empty if nothing is split.

    Args:
        options: May name a file, or the folder that contains it.
        gateway: Asked for its tokenizer if the options name no file.
        retry_seconds: How long the gateway may be unavailable.

    Raises:
        IngestError: The file cannot be read or is not valid, or the gateway has no tokenizer.
        AuthenticationError: The gateway rejects the API key.
        EmbeddingError: The gateway cannot be reached, or stays unavailable.
        ValueError: The gateway's URL or key is malformed.
    """
    if options.tokenizer_path is not None:
        return _read(Path(options.tokenizer_path))
    if not options.chunk_tokens:
        return b""
    client = EmbeddingClient(
        gateway.url,
        api_key=gateway.api_key,
        deadline_seconds=retry_seconds,
        max_retries=_MAX_RETRIES,
    )
    try:
        with client:
            return client.tokenizer_json()
    except ModelNotFoundError as error:
        msg = f"{error.message} To split without the gateway, set `--tokenizer` to a {FILE_NAME}."
        raise IngestError(msg) from None


def _read(path: Path) -> bytes:
    file = path / FILE_NAME if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        msg = (
            f"`tokenizer_path`: {file} cannot be read ({error.strerror}). Set it to the served "
            f"model's {FILE_NAME}, or leave it out to ask the gateway."
        )
        raise IngestError(msg) from None
    if content.startswith(_LFS_POINTER):
        msg = f"`tokenizer_path`: {file} is a Git LFS pointer. Fetch the file with `git lfs pull`."
        raise IngestError(msg)
    return content
