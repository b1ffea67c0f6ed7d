"""What a document needs: nothing, other metadata, or vectors for some of its chunks. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

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

__all__ = [
    "Digests",
    "PreparedDocument",
    "Verdict",
    "compare",
    "conflict",
    "digests_of",
    "is_duplicate",
    "prepare",
]

Verdict: TypeAlias = Literal["done", "unchanged", "duplicate", "contested", "write"]


@dataclass(slots=True, eq=False)
class PreparedDocument:
    """Hold a document that is to be written, and the vectors of its new chunks as they come."""

    document: Document
    entry: LedgerEntry
    base: KnownDocument | None
    """What the ledger said when it was compared; the table must still agree at the writing."""
    chunks: list[Chunk] = field(repr=False)
    new: list[int] = field(repr=False)
    """Positions of the chunks that are not in the table."""
    vectors: dict[int, Vector] = field(default_factory=dict[int, Vector], repr=False)
    """By position."""
    bad: BadRecord | None = None

    @property
    def is_ready(self) -> bool:
        """Tell whether each new chunk has a vector, or is known to get none."""
        return self.bad is not None or len(self.vectors) == len(self.new)

    def embedded(self) -> list[EmbeddedChunk]:
        """Return the rows that are new."""
        return [EmbeddedChunk(self.chunks[at], self.vectors[at]) for at in self.new]

    def moved(self) -> list[Chunk]:
        """Return the rows that stay and get other metadata, or another place."""
        if self.base is None:
            return []
        former = {chunk_id: seq for seq, chunk_id in enumerate(self.base.chunk_ids)}
        same_metadata = self.base.metadata_hash == self.entry.metadata_hash
        return [
            chunk
            for chunk in self.chunks
            if chunk.id in former and not (same_metadata and former[chunk.id] == chunk.seq)
        ]

    def kept(self) -> int:
        """Count the chunks whose vectors were there."""
        return len(self.chunks) - len(self.new)


class Digests(NamedTuple):
    """Hold what tells whether a document has changed, 16 bytes each."""

    content: bytes
    metadata: bytes


def digests_of(document: Document, splitter_version: str) -> Digests:
    """Return digests that change with all that a document's rows and vectors depend on.

    But for the embedding space: there is one a table, see `ledger.check_space`.
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
    settle: bool = False,
) -> Verdict:
    """Say what a document needs, by what the ledger holds of it.

    "done": this run did it before it was interrupted; "duplicate": another record of this run
    with the same id stands before it; "contested": one did in an earlier run, in another file. It
    may be gone, or another worker is still to read it: only after all others can that be told.

    Args:
        document: What was read.
        digests: Of the document.
        known: What the ledger holds under its id.
        run_id: Of this run.
        settle: Whether all others were read, so that nothing is contested any more.
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
    if not (same or settle or known.run_id == run_id) and _file(known) < _file(document):
        return "contested"
    return "unchanged" if same else "write"


def _is_same(digests: Digests, known: KnownDocument) -> bool:
    return digests == (known.content_hash, known.metadata_hash)


def _file(record: Document | KnownDocument) -> tuple[str, str]:
    return record.origin.source, record.origin.path


def is_duplicate(document: Document, former: KnownDocument, run_id: int) -> bool:
    """Tell whether this run came upon the id in another place before."""
    return former.run_id == run_id and former.origin != document.origin


def conflict(document: Document, digests: Digests, former: KnownDocument) -> list[BadRecord]:
    """Report the second of two records with one id; equal ones are merely counted."""
    if _is_same(digests, former):
        return []
    first, second = sorted((document.origin, former.origin))
    reason = (
        f"has the same id as {first}, which stands before it and is loaded. Give each document "
        "an id of its own, or choose another `--id-column`"
    )
    return [BadRecord(second, reason, "write", document.doc_id)]


def prepare(
    document: Document,
    digests: Digests,
    known: KnownDocument | None,
    *,
    split: Callable[[Document], Sequence[str]],
) -> PreparedDocument:
    """Cut a document into chunks and see which of them need a vector."""
    texts = [document.text] if document.vector is not None else split(document)
    ids = chunk_ids(document.doc_id, texts)
    chunks = [
        Chunk(chunk_id, document.doc_id, seq, text, document.metadata)
        for seq, (chunk_id, text) in enumerate(zip(ids, texts, strict=True))
    ]
    entry = LedgerEntry(document.doc_id, *digests, tuple(ids), document.origin)
    there = set(known.chunk_ids) if known else set[object]()
    if document.vector is not None:
        # The text may be the same and the vector another.
        return PreparedDocument(document, entry, known, chunks, [0], {0: document.vector})
    new = [at for at, chunk in enumerate(chunks) if chunk.id not in there]
    return PreparedDocument(document, entry, known, chunks, new)
