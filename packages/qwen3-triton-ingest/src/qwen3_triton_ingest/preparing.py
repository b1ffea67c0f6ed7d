"""What a document needs: nothing, other metadata, or vectors for some of its chunks. No I/O.

A document belongs to the source that it was loaded from, and only that source changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias
from uuid import UUID

from qwen3_triton_client import Vector

from .documents import (
    BadRecord,
    Chunk,
    ChunkText,
    Document,
    EmbeddedChunk,
    chunk_ids,
    metadata_digest,
    storable_text,
    text_digest,
    unstorable,
)
from .ledger.documents import KnownDocument, LedgerEntry, Ownership
from .places import with_context
from .sources import is_same_file, wider_source

Verdict: TypeAlias = Literal["done", "unchanged", "duplicate", "contested", "foreign", "write"]


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
        """Whether each new chunk has a vector, or the document has failed."""
        return self.failure is not None or len(self.vectors) == len(self.new)

    @property
    def new_rows(self) -> list[EmbeddedChunk]:
        """The rows to insert."""
        return [EmbeddedChunk(self.chunks[at], self.vectors[at]) for at in self.new]

    @property
    def changed_rows(self) -> list[Chunk]:
        """The existing rows that get other metadata or another place."""
        if self.base is None:
            return []
        places = {chunk_id: seq for seq, chunk_id in enumerate(self.base.chunk_ids)}
        same_metadata = self.base.metadata_hash == self.entry.metadata_hash
        if self.document.marks and self.base.content_hash != self.entry.content_hash:
            same_metadata = False  # where a chunk is may have changed with the text around it
        return [
            chunk
            for chunk in self.chunks
            if chunk.id in places and not (same_metadata and places[chunk.id] == chunk.seq)
        ]

    @property
    def removed_ids(self) -> list[UUID]:
        """The ids of the rows to delete."""
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
        text_digest(splitter_version, document.text, *vector),
        metadata_digest(document.metadata, document.marks),
    )


def storable(record: Document | BadRecord, encoding: str) -> Document | BadRecord:
    """Return a record that can be written in an encoding; else a report that can be.

    A path is written with escapes. An id or a text that would need them is not loaded.
    """
    origin = replace(record.origin, path=storable_text(record.origin.path, encoding))
    doc_id = None if record.doc_id is None else storable_text(record.doc_id, encoding)
    if isinstance(record, BadRecord):
        reason = storable_text(record.reason, encoding)
        return replace(record, origin=origin, doc_id=doc_id, reason=reason)
    if missing := unstorable(f"{record.doc_id}{record.text}", encoding):
        character = f"U+{ord(missing[0]):04X}"
        reason = f"Contains {character}, which a database of the encoding {encoding} cannot store."
        return BadRecord(origin, reason, "write", doc_id)
    return replace(record, origin=origin)


def in_one_source(
    document: Document, known: KnownDocument | None, owner: Ownership
) -> tuple[Document, KnownDocument | None]:
    """Give a document and what the ledger has of it the same source, if that is only named twice.

    A file that is reached through two sources, such as a folder and itself, belongs to the wider
    one, which alone notices when it vanishes.
    """
    if known is None or known.origin.source == document.origin.source:
        return document, known
    source = document.origin.source
    if owner.former.get(known.origin.source) == source:
        return document, replace(known, origin=replace(known.origin, source=source))
    if is_same_file(document.origin, known.origin):
        source = wider_source(source, known.origin.source)
        document = replace(document, origin=replace(document.origin, source=source))
        return document, replace(known, origin=replace(known.origin, source=source))
    return document, known


def compare(
    document: Document,
    digests: Digests,
    known: KnownDocument | None,
    owner: Ownership,
    *,
    all_read: bool = False,
    may_replace: bool = False,
) -> Verdict:
    """Return what a document needs, given what the ledger has of it.

    "done": this run wrote it before it was interrupted. "duplicate": another record of this run
    with the same id precedes it. "contested": one did in an earlier run, in another file. It may be
    gone, or another worker has yet to read it, which is known only after all files were read.
    "foreign": another source has a document with this id.

    Args:
        document: What was read, with its source from `in_one_source`.
        digests: The document's.
        known: What the ledger has under its id, likewise.
        owner: This run and its sources.
        all_read: Whether all files were read, so that nothing is contested any more.
        may_replace: Whether documents of sources that this run does not read may be replaced.
    """
    if known is None:
        return "write"
    same = _is_same(digests, known)
    needed: Verdict = "unchanged" if same else "write"
    is_read = known.run_id == owner.run_id
    if known.origin.source != document.origin.source and known.owned_since != owner.run_id:
        is_ours = known.origin.source in owner.sources
        if is_read or not (is_ours or may_replace):
            return "foreign"
        return "contested" if is_ours and not all_read else needed
    if is_read and known.origin != document.origin:
        return "duplicate" if known.origin < document.origin else needed
    if not (same or all_read or is_read) and _file(known) < _file(document):
        return "contested"
    return "done" if is_read and same else needed


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


def foreign_conflict(document: Document, known: KnownDocument) -> BadRecord:
    """Report a document whose id another source's document has."""
    reason = (
        f"The id {document.doc_id!r} belongs to {known.origin} of the source "
        f"{known.origin.source}, which stays. Give the documents of each source ids of their own: "
        "another `--id-column`, or another path. If this source takes the other one's place, run "
        "once with `--on-conflict replace`."
    )
    return BadRecord(document.origin, reason, "write", document.doc_id)


def prepare(
    document: Document,
    digests: Digests,
    known: KnownDocument | None,
    *,
    split: Callable[[Document], Sequence[ChunkText]],
) -> PreparedDocument:
    """Split a document into chunks and find out which of them need a vector."""
    whole = document.vector is not None
    pieces = [ChunkText(document.text, {})] if whole else split(document)
    texts = [with_context(piece.context, piece.text) for piece in pieces]
    ids = chunk_ids(document.doc_id, texts)
    chunks = [
        Chunk(
            chunk_id,
            document.doc_id,
            seq,
            piece.text,
            {**document.metadata, **piece.place},
            piece.context,
        )
        for seq, (chunk_id, piece) in enumerate(zip(ids, pieces, strict=True))
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
