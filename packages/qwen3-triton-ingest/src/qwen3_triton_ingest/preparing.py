"""What a document needs: nothing, other metadata, or vectors for some of its chunks. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias
from uuid import UUID

from qwen3_triton_client import Vector

from .documents import (
    BadRecord,
    Chunk,
    Document,
    EmbeddedChunk,
    chunk_ids,
    metadata_digest,
    text_digest,
)
from .ledger.documents import KnownDocument, LedgerEntry

Verdict: TypeAlias = Literal["done", "unchanged", "duplicate", "contested", "write"]


@dataclass(slots=True, eq=False)
class PreparedDocument:
    """A document to be written, and the vectors of its new chunks as they arrive.

    Attributes:
        entry: What the ledger will have of it.
        base: What the ledger had when it was compared. It must be the same when it is written.
        chunks: All of its chunks, in order.
        new: Positions of the chunks that are not in the table.
        vectors: By position.
        failure: Why it cannot be written.
    """

    document: Document
    entry: LedgerEntry
    base: KnownDocument | None
    chunks: list[Chunk] = field(repr=False)
    new: list[int] = field(repr=False)
    vectors: dict[int, Vector] = field(default_factory=dict[int, Vector], repr=False)
    failure: BadRecord | None = None

    @property
    def is_ready(self) -> bool:
        """Return whether each new chunk has a vector, or the document has failed."""
        return self.failure is not None or len(self.vectors) == len(self.new)

    @property
    def new_rows(self) -> list[EmbeddedChunk]:
        """Return the rows to insert."""
        return [EmbeddedChunk(self.chunks[at], self.vectors[at]) for at in self.new]

    @property
    def changed_rows(self) -> list[Chunk]:
        """Return the existing rows that get other metadata or another place."""
        if self.base is None:
            return []
        places = {chunk_id: seq for seq, chunk_id in enumerate(self.base.chunk_ids)}
        same_metadata = self.base.metadata_hash == self.entry.metadata_hash
        return [
            chunk
            for chunk in self.chunks
            if chunk.id in places and not (same_metadata and places[chunk.id] == chunk.seq)
        ]

    @property
    def removed_ids(self) -> list[UUID]:
        """Return the ids of the rows to delete."""
        kept = set(self.entry.chunk_ids)
        return [each for each in (self.base.chunk_ids if self.base else ()) if each not in kept]


class Digests(NamedTuple):
    """Digests of 16 bytes that show whether a document has changed."""

    content: bytes
    metadata: bytes


def digests_of(document: Document, splitter_version: str) -> Digests:
    """Return digests that change with everything that a document's rows and vectors depend on.

    Except for the embedding space: that is the same for a whole table, see `check_space`.
    """
    vector = [] if document.vector is None else [document.vector.tobytes()]
    return Digests(
        text_digest(splitter_version, document.text, *vector), metadata_digest(document.metadata)
    )


def compare(
    document: Document,
    digests: Digests,
    known: KnownDocument | None,
    *,
    run_id: int,
    all_read: bool = False,
) -> Verdict:
    """Return what a document needs, given what the ledger has of it.

    "done": this run wrote it before it was interrupted. "duplicate": another record of this run
    with the same id precedes it. "contested": one did in an earlier run, in another file. It may be
    gone, or another worker has yet to read it, which is known only after all files were read.

    Args:
        document: What was read.
        digests: The document's.
        known: What the ledger has under its id.
        run_id: This run.
        all_read: Whether all files were read, so that nothing is contested any more.
    """
    if known is None:
        return "write"
    same = _is_same(digests, known)
    if known.run_id == run_id and known.origin != document.origin:
        if known.origin < document.origin:
            return "duplicate"
        return "unchanged" if same else "write"
    if known.run_id == run_id and same:
        return "done"
    if not (same or all_read or known.run_id == run_id) and _file(known) < _file(document):
        return "contested"
    return "unchanged" if same else "write"


def is_duplicate(document: Document, known: KnownDocument, run_id: int) -> bool:
    """Return whether this run has read the id in another place before."""
    return known.run_id == run_id and known.origin != document.origin


def conflict(document: Document, digests: Digests, known: KnownDocument) -> list[BadRecord]:
    """Report the second of two records with one id; if they are equal, nothing."""
    if _is_same(digests, known):
        return []
    first, second = sorted((document.origin, known.origin))
    reason = (
        f"Has the same id as {first}, which precedes it and is loaded. Give each document an id "
        "of its own, or choose another `--id-column`."
    )
    return [BadRecord(second, reason, "write", document.doc_id)]


def prepare(
    document: Document,
    digests: Digests,
    known: KnownDocument | None,
    *,
    split: Callable[[Document], Sequence[str]],
) -> PreparedDocument:
    """Split a document into chunks and find out which of them need a vector."""
    texts = [document.text] if document.vector is not None else split(document)
    ids = chunk_ids(document.doc_id, texts)
    chunks = [
        Chunk(chunk_id, document.doc_id, seq, text, document.metadata)
        for seq, (chunk_id, text) in enumerate(zip(ids, texts, strict=True))
    ]
    entry = LedgerEntry(document.doc_id, *digests, tuple(ids), document.origin)
    if document.vector is not None:
        # The text may be the same and the vector another one.
        return PreparedDocument(document, entry, known, chunks, [0], {0: document.vector})
    existing = set(known.chunk_ids) if known else set[UUID]()
    new = [at for at, chunk in enumerate(chunks) if chunk.id not in existing]
    return PreparedDocument(document, entry, known, chunks, new)


def _is_same(digests: Digests, known: KnownDocument) -> bool:
    return digests == (known.content_hash, known.metadata_hash)


def _file(record: Document | KnownDocument) -> tuple[str, str]:
    return record.origin.source, record.origin.path
