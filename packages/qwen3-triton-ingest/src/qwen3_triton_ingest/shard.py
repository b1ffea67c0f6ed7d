"""Ingest one shard: read, compare, split, embed, write. The same on every engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache

from qwen3_triton_client import Vector

from .config import GatewayOptions, ReadOptions, SplitOptions
from .database import Connection, Session
from .documents import BadRecord, Document, Metadata
from .embedding import embed_documents
from .layouts import Table
from .ledger.documents import KnownDocument, known_documents, mark_unchanged
from .ledger.runs import Counts, add_counts, begin_shard, clear_dead_letters, finish_shard
from .preparing import (
    Digests,
    PreparedDocument,
    compare,
    conflict,
    digests_of,
    is_duplicate,
    prepare,
)
from .sources import Shard, read_shard
from .splitting import Splitter, load_tokenizer
from .writing import GroupWriter

__all__ = ["ShardTask", "ingest_shard", "splitter_for"]

# Read and compared with the ledger at once.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 4 * 1024 * 1024
# Written in one transaction: beyond some hundred rows a larger one is no faster, and what is not
# written is done again after a kill.
_GROUP_CHUNKS = 1000
_GROUP_DOCUMENTS = 1000
_GROUP_SECONDS = 5.0
# Vectors of rows whose documents another worker wrote first are rare: one round settles them,
# unless workers go on to fight for the same id.
_STALE_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Hold all that a worker needs beside its shard; it travels to other machines."""

    dsn: str = field(repr=False)
    source_dsns: Mapping[str, str] = field(repr=False)
    """Of the sources that are databases, by their names."""
    table: Table
    table_id: int
    run_id: int
    fingerprint: str
    read: ReadOptions
    split: SplitOptions
    splitter_version: str
    gateway: GatewayOptions
    """`max_concurrency` is this worker's part."""
    labels: Metadata
    retry_seconds: float
    settle: bool = False
    """Whether all shards were read once, see `preparing.compare`."""


def ingest_shard(task: ShardTask, shard: Shard, is_stopped: Callable[[], bool]) -> None:
    """Bring one shard into the table; what is there already is not done again.

    Safe to do twice, also at the same time: the ledger's rows decide.

    Args:
        task: What is the same for all shards of a run.
        shard: What to read.
        is_stopped: Asked now and then whether to leave the rest to another run.

    Raises:
        EmbeddingError: The gateway cannot be reached or refuses everything.
        FingerprintError: It serves another embedding space than the load began with.
        DatabaseError: PostgreSQL stayed away.
    """
    with Session(task.dsn, retry_seconds=task.retry_seconds) as session:
        begun = session.run(
            lambda connection: begin_shard(
                connection, task.run_id, shard.key, shard.source, shard.name
            )
        )
        if begun:
            return
        run = _ShardRun(task, shard, session, is_stopped)
        if run.run() and not run.contested:
            session.run(
                lambda connection: finish_shard(
                    connection, task.run_id, shard.key, duplicates=run.duplicates
                )
            )


@lru_cache(maxsize=4)
def splitter_for(split: SplitOptions, gateway: GatewayOptions) -> Splitter:
    """Return the splitter, one a process: the tokenizer takes a second to load."""
    return Splitter(split, load_tokenizer(split, gateway))


class _ShardRun:
    """One shard under way, in one thread."""

    def __init__(
        self, task: ShardTask, shard: Shard, session: Session, is_stopped: Callable[[], bool]
    ) -> None:
        self.contested = 0
        """Documents that wait until all shards were read: this one is then worked on again."""
        self.duplicates = 0
        self._is_stopped = is_stopped
        self._task = task
        self._shard = shard
        self._session = session
        self._writer = GroupWriter(
            session,
            task.table,
            table_id=task.table_id,
            run_id=task.run_id,
            shard_key=shard.key,
        )
        self._group: list[PreparedDocument] = []
        self._group_chunks = 0
        self._written_at = time.monotonic()

    def run(self) -> bool:
        """Ingest, and return whether it came to the end."""
        with (
            closing(self._read()) as records,
            closing(self._embed(self._sift(records))) as documents,
        ):
            for item in documents:
                if self._is_stopped():
                    return False
                self._add(item)
        self._flush()
        return not self._is_stopped()

    def _read(self) -> Generator[Document | BadRecord]:
        task = self._task
        return read_shard(
            self._shard,
            task.read,
            source_dsn=task.source_dsns.get(self._shard.source),
            dimensions=task.table.dimensions,
        )

    def _sift(self, records: Iterable[Document | BadRecord]) -> Iterator[PreparedDocument]:
        """Read on, and give the documents that need vectors; settle the others on the way."""
        for batch in _batches(records):
            if self._is_stopped():
                return
            bad = [record for record in batch if isinstance(record, BadRecord)]
            documents = [self._label(item) for item in batch if isinstance(item, Document)]
            for item in self._compare(documents, bad):
                if item.is_ready:
                    self._add(item)
                else:
                    yield item

    def _label(self, document: Document) -> Document:
        if not self._task.labels:
            return document
        return replace(document, metadata={**document.metadata, **self._task.labels})

    def _compare(
        self, documents: Sequence[Document], bad: Sequence[BadRecord] = ()
    ) -> list[PreparedDocument]:
        """Part documents into those to write, which are returned, and those to note as seen."""
        task, bad = self._task, list(bad)
        known = self._session.run(
            lambda connection: known_documents(
                connection, task.table_id, [document.doc_id for document in documents]
            )
        )
        seen: list[Document] = []
        prepared: list[PreparedDocument] = []
        for document in documents:
            former = known.get(document.doc_id)
            digests = digests_of(document, task.splitter_version)
            verdict = compare(document, digests, former, run_id=task.run_id, settle=task.settle)
            if verdict == "write":
                item = self._prepare(document, digests, former)
                bad += [item] if isinstance(item, BadRecord) else []
                prepared += [item] if isinstance(item, PreparedDocument) else []
            elif verdict == "unchanged":
                seen.append(document)
            elif verdict == "contested":
                self.contested += 1
            if former is not None and is_duplicate(document, former, task.run_id):
                self.duplicates += 1
                bad += conflict(document, digests, former)
        self._note(seen)
        if bad:
            self._writer.refuse(bad)
        return prepared

    def _prepare(
        self, document: Document, digests: Digests, former: KnownDocument | None
    ) -> PreparedDocument | BadRecord:
        task = self._task
        item = prepare(
            document,
            digests,
            former,
            split=lambda document: splitter_for(task.split, task.gateway).split(document),
        )
        if not item.chunks:
            reason = "has no text that could be embedded"
            return BadRecord(document.origin, reason, "split", document.doc_id)
        return item

    def _note(self, seen: Sequence[Document]) -> None:
        """Note documents that need nothing done."""
        task = self._task
        found = [(document.doc_id, document.origin) for document in seen]

        def note(connection: Connection) -> None:
            unchanged = mark_unchanged(connection, task.table_id, task.run_id, found)
            clear_dead_letters(connection, task.table_id, [origin for _, origin in found])
            counts = Counts(unchanged=unchanged)
            add_counts(connection, task.run_id, self._shard.key, counts)

        if found:
            self._session.run(note)

    def _embed(self, documents: Iterable[PreparedDocument]) -> Generator[PreparedDocument]:
        task = self._task
        return embed_documents(documents, gateway=task.gateway, fingerprint=task.fingerprint)

    def _add(self, item: PreparedDocument) -> None:
        self._group.append(item)
        self._group_chunks += len(item.new)
        if (
            self._group_chunks >= _GROUP_CHUNKS
            or len(self._group) >= _GROUP_DOCUMENTS
            or time.monotonic() - self._written_at > _GROUP_SECONDS
        ):
            self._flush()

    def _flush(self) -> None:
        for _ in range(_STALE_ROUNDS):
            group, self._group, self._group_chunks = self._group, [], 0
            good = [item for item in group if item.bad is None]
            bad = [item.bad for item in group if item.bad is not None]
            stale = self._writer.write(good)
            if bad:
                self._writer.refuse(bad)
            self._written_at = time.monotonic()
            if not stale:
                return
            self._group = self._settle_stale(stale)
        self._writer.refuse([_contested(item) for item in self._group])
        self._group = []

    def _settle_stale(self, stale: Sequence[PreparedDocument]) -> list[PreparedDocument]:
        """Compare documents anew; vectors that have come are used again."""
        known_vectors: dict[object, Vector] = {}
        for item in stale:
            known_vectors |= {item.chunks[at].id: vector for at, vector in item.vectors.items()}
        again: list[PreparedDocument] = []
        # One after the other: two records with one id must see each other.
        for item in stale:
            for fresh in self._compare([item.document]):
                for at in fresh.new:
                    if (vector := known_vectors.get(fresh.chunks[at].id)) is not None:
                        fresh.vectors[at] = vector
                again.append(fresh)
        return [item if item.is_ready else next(self._embed([item])) for item in again]


def _contested(item: PreparedDocument) -> BadRecord:
    reason = "other records with the same id kept being written. Run the same command again"
    return BadRecord(item.entry.origin, reason, "write", item.entry.doc_id)


def _batches(records: Iterable[Document | BadRecord]) -> Iterator[list[Document | BadRecord]]:
    """Cut a stream into lists that are bounded in number and in length."""
    batch: list[Document | BadRecord] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.text) if isinstance(record, Document) else 0
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
