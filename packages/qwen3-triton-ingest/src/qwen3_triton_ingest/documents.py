"""What travels from a source to a table: documents, and the chunks that they are cut into."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import orjson

from qwen3_triton_client import Vector

__all__ = [
    "BadRecord",
    "Chunk",
    "Document",
    "EmbeddedChunk",
    "Markup",
    "Metadata",
    "Origin",
    "Stage",
    "chunk_ids",
    "metadata_digest",
    "text_digest",
]

Metadata: TypeAlias = Mapping[str, Any]
"""What a JSON object can hold."""

Markup: TypeAlias = Literal["text", "markdown"]
"""Along what a text is cut: sentences, or Markdown's headings and blocks."""

Stage: TypeAlias = Literal["read", "split", "embed", "write"]
"""Where a document went wrong."""

DIGEST_BYTES = 16
# Any constant would do; it sets our ids apart from other version 5 ids of the same names.
_CHUNK_NAMESPACE = uuid.UUID("6f1d2c52-3b1e-5d0f-9c0a-6a1f9b2f7c11")


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Say where a document stands. Of two with the same id, the smaller origin wins."""

    source: str
    """The SOURCE as the user named it."""
    path: str
    """File within it, or the query."""
    position: int = 0
    """Where the record begins, counted from 1: the line in CSV, the row in Parquet and of a query,
    and in JSONL the byte (`tail -c +POSITION FILE | head -n 1` shows it), so that parts of a file
    can be read without counting the lines before them. 0 if the file is one document."""

    def __str__(self) -> str:
        return f"{self.path}:{self.position}" if self.position else self.path


@dataclass(frozen=True, slots=True)
class Document:
    """Hold one document of a source."""

    doc_id: str
    """Unique in the table. The same document has the same id in every run."""
    text: str = field(repr=False)  # texts are never logged
    origin: Origin
    metadata: Metadata = field(default_factory=dict[str, Any], repr=False)
    markup: Markup = "text"
    vector: Vector | None = field(default=None, repr=False)
    """Computed before; the document is then one chunk and is not embedded again."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """Say which document cannot be loaded, and why, in words that help to mend it."""

    origin: Origin
    reason: str
    stage: Stage = "read"
    doc_id: str | None = None
    """None where it is not known: then nobody can tell which documents have vanished."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Hold a part of a document as one row of the table."""

    id: uuid.UUID
    doc_id: str
    seq: int
    """Place in the document, from 0."""
    text: str = field(repr=False)
    metadata: Metadata = field(repr=False)


@dataclass(frozen=True, slots=True)
class EmbeddedChunk:
    """Hold a chunk and its float32 vector of norm 1."""

    chunk: Chunk
    vector: Vector = field(repr=False)


def text_digest(*parts: str | bytes) -> bytes:
    """Return 16 bytes that name these parts; no other division of the same text gives them."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def metadata_digest(metadata: Metadata) -> bytes:
    """Return 16 bytes that name the metadata, whatever the order of its keys."""
    return text_digest(orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS))


def chunk_ids(doc_id: str, texts: Sequence[str]) -> list[uuid.UUID]:
    """Return the id of each chunk, which follows from its document and its text alone.

    A chunk keeps its id, and so its row and its vector, when text is added before it. Equal
    chunks of one document are told apart by their number.
    """
    seen: Counter[bytes] = Counter()
    ids: list[uuid.UUID] = []
    for text in texts:
        digest = text_digest(text)
        name = f"{doc_id}\n{digest.hex()}\n{seen[digest]}"
        ids.append(uuid.uuid5(_CHUNK_NAMESPACE, name))
        seen[digest] += 1
    return ids
