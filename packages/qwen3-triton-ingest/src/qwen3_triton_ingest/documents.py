"""What moves from a source to a table: documents, and the chunks they are split into."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import orjson

from qwen3_triton_client import Vector

from .places import Mark, with_context

Metadata: TypeAlias = Mapping[str, Any]
"""A JSON object."""

Markup: TypeAlias = Literal["text", "markdown"]
"""Structure that a text is split along: sentences, or Markdown's headings and blocks."""

Stage: TypeAlias = Literal["read", "split", "embed", "write"]
"""The stage in which a document failed."""

DIGEST_BYTES = 16
# A source and a path are in the key of one index, and PostgreSQL allows it 2,704 bytes.
MAX_PLACE_BYTES = 1000
# PostgreSQL converts these otherwise than Python, as found by converting every character of the
# Basic Multilingual Plane. All other encodings of a server are the same in both.
_DIFFERENT = {"euc_jp", "euc_kr"}
_NOT_IN_EUC_JP = re.compile("[\x80\xa2\xa3\xa5\xac\u2016\u203e\u2212\u301c\ue000-\uf8ff]")
# An arbitrary constant, so that our ids differ from other version 5 ids of the same names.
_CHUNK_NAMESPACE = uuid.UUID("6f1d2c52-3b1e-5d0f-9c0a-6a1f9b2f7c11")


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where a document comes from. The smaller origin wins if two documents have the same id.

    Attributes:
        source: The SOURCE as the user wrote it.
        path: File within it, or the query.
        position: Where the record begins, from 1: the line in CSV, the row in Parquet and of a
            query, the record in JSON, and the byte in JSONL (`tail -c +POSITION FILE | head -n 1`
            prints the record), so that a part of a file can be read without counting lines. 0 if
            the file is one document.
    """

    source: str
    path: str
    position: int = 0

    def __post_init__(self) -> None:
        for name in ("source", "path"):
            place = getattr(self, name)
            if (fitting := fit_place(place)) != place:
                object.__setattr__(self, name, fitting)

    def __str__(self) -> str:
        return f"{self.path}:{self.position}" if self.position else self.path


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a source.

    Attributes:
        doc_id: Unique in the table. The same document has the same id in every run.
        marks: Where its headings, pages and lines begin in the text, in the order of the text.
        vector: Precomputed; the document is then one chunk and is not embedded.
    """

    doc_id: str
    text: str = field(repr=False)  # texts are never logged
    origin: Origin
    metadata: Metadata = field(default_factory=dict[str, Any], repr=False)
    markup: Markup = "text"
    marks: tuple[Mark, ...] = field(default=(), repr=False)
    vector: Vector | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A document that cannot be loaded.

    Attributes:
        reason: What is wrong and how to fix it.
        doc_id: None if it is unknown; then it is also unknown which documents have vanished.
    """

    origin: Origin
    reason: str
    stage: Stage = "read"
    doc_id: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document: one row of the table.

    Attributes:
        seq: Position in the document, from 0.
        context: What precedes the text when it is embedded, and is not stored.
    """

    id: uuid.UUID
    doc_id: str
    seq: int
    text: str = field(repr=False)
    metadata: Metadata = field(repr=False)
    context: str = field(default="", repr=False)

    @property
    def embedded_text(self) -> str:
        """What the vector is of."""
        return with_context(self.context, self.text)


class ChunkText(NamedTuple):
    """A chunk as it was cut out of its document.

    Attributes:
        place: What its metadata says about where it is, see `places`.
        context: What precedes it when it is embedded.
    """

    text: str
    place: Metadata
    context: str = ""


@dataclass(frozen=True, slots=True)
class EmbeddedChunk:
    """A chunk and its float32 vector of norm 1."""

    chunk: Chunk
    vector: Vector = field(repr=False)


def fit_place(place: str) -> str:
    """Return a source or path that the ledger can index: a long one is cut, and gets a digest."""
    if len(place) <= MAX_PLACE_BYTES // 4 or len(encoded := place.encode()) <= MAX_PLACE_BYTES:
        return place
    end = f"...{text_digest(place).hex()}"
    return encoded[: MAX_PLACE_BYTES - len(end)].decode("utf-8", "ignore") + end


def text_digest(*parts: str | bytes) -> bytes:
    """Return a digest of 16 bytes, which also depends on how a text is divided into parts."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def metadata_digest(metadata: Metadata, marks: Sequence[Mark] = ()) -> bytes:
    """Return a digest of 16 bytes, which does not depend on the order of the metadata's keys."""
    parts = [orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS)]
    if marks:
        parts.append(orjson.dumps(marks))
    return text_digest(*parts)


def chunk_ids(doc_id: str, texts: Sequence[str]) -> list[uuid.UUID]:
    """Return the id of each chunk, which depends only on its document and its embedded text.

    A chunk keeps its id, and so its row and its vector, when text is added before it. Equal chunks
    of one document are numbered.
    """
    counts: Counter[bytes] = Counter()
    ids: list[uuid.UUID] = []
    for text in texts:
        digest = text_digest(text)
        name = f"{doc_id}\n{digest.hex()}\n{counts[digest]}"
        ids.append(uuid.uuid5(_CHUNK_NAMESPACE, name))
        counts[digest] += 1
    return ids


def unstorable(text: str, encoding: str) -> str:
    """Return the characters of a text that a database of an encoding cannot store, in order."""
    if encoding not in _DIFFERENT and _is_encodable(text, encoding):
        return ""
    missing = {char for char in set(text) if not (char.isascii() or _has(encoding, char))}
    return "".join(char for char in text if char in missing)


def storable_text(text: str, encoding: str) -> str:
    """Return a text with escapes for the characters that a database of an encoding cannot store."""
    missing = {
        char: char.encode("ascii", "backslashreplace").decode()
        for char in unstorable(text, encoding)
    }
    return text.translate(str.maketrans(missing)) if missing else text


def _has(encoding: str, char: str) -> bool:
    if encoding == "euc_jp":  # with the forms and additional characters of Windows
        known = _is_encodable(char, "cp932") or _is_encodable(char, "euc_jp")
        return known and not _NOT_IN_EUC_JP.match(char)
    if not _is_encodable(char, encoding):
        return False
    return encoding != "euc_kr" or len(char.encode(encoding)) == len("\xb0\xa1")


def _is_encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
