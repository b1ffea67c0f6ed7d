"""Ingest one shard: read, compare, split, embed, write. The same on every engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache

from qwen3_triton_client import Vector

from .config import ConflictPolicy, GatewayOptions, ReadOptions, SplitOptions
from .database import Connection, Session
from .documents import BadRecord, Document, Metadata, storable_text
from .embedding import embed_documents
from .errors import ConflictError
from .layouts import Table
from .ledger.documents import KnownDocument, Ownership, known_documents, mark_unchanged
from .ledger.runs import Counts, add_counts, begin_shard, clear_dead_letters, finish_shard
from .preparing import (
    Digests,
    PreparedDocument,
    compare,
    conflict,
    digests_of,
    foreign_conflict,
    in_one_source,
    is_duplicate,
    prepare,
    storable,
)
from .sources import Shard, read_shard
from .splitting import Splitter, load_tokenizer
from .writing import GroupWriter

# Read, and compared with the ledger, at once.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 4 * 1024 * 1024
# Written in one transaction. Beyond some hundred rows a larger one is no faster, and rows that are
# not written when the process is killed are embedded again.
_GROUP_CHUNKS = 1000
_GROUP_DOCUMENTS = 1000
_GROUP_SECONDS = 5.0
# It is rare that another worker writes a document first, and one round resolves it, unless workers
# keep competing for the same id.
_STALE_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class ShardTask:
    """What a worker needs in addition to its shard; it is sent to other machines.

    Attributes:
        source_dsns: Where queries run, by the key of their shard.
        owner: The run, and the documents that it may change.
        gateway: Its `max_concurrency` is this worker's share.
        labels: Metadata that every document gets.
        encoding: Of the database, if it cannot store every character.
        all_read: Whether all shards have been read once, see `preparing.compare`.
    """

    dsn: str = field(repr=False)
    source_dsns: Mapping[bytes, str] = field(repr=False)
    table: Table
    table_id: int
    owner: Ownership
    fingerprint: str
    read: ReadOptions
    split: SplitOptions
    splitter_version: str
    gateway: GatewayOptions
    labels: Metadata
    retry_seconds: float
    on_conflict: ConflictPolicy = "skip"
    encoding: str | None = None
    all_read: bool = False

    @property
    def run_id(self) -> int:
        return self.owner.run_id

    def storable_name(self, shard: Shard) -> str:
        return storable_text(shard.name, self.encoding) if self.encoding else shard.name


def ingest_shard(task: ShardTask, shard: Shard, is_stopped: Callable[[], bool]) -> None:
    """Load one shard into the table, except for what is there already.

    Safe to do twice, also at the same time: the ledger's rows decide.

    Args:
        task: What is the same for all shards of a run.
        shard: What to read.
        is_stopped: Called now and then; whether to leave the rest to another run.

    Raises:
        EmbeddingError: The gateway cannot be reached or refuses everything.
        FingerprintError: It serves another embedding space than when the load began.
        DatabaseError: PostgreSQL stayed unavailable.
        ConflictError: Another source has a document with the same id, and the load is to fail then.
    """
    with Session(task.dsn, retry_seconds=task.retry_seconds) as session:
        was_done = session.run(
            lambda connection: begin_shard(
                connection, task.run_id, shard.key, shard.source, task.storable_name(shard)
            )
        )
        if was_done:
            return
        run = _ShardRun(task, shard, session, is_stopped)
        if run.run() and not run.contested:
            session.run(
                lambda connection: finish_shard(
                    connection,
                    task.run_id,
                    shard.key,
                    duplicates=run.duplicates,
                    encodings=run.encodings,
                )
            )


@lru_cache(maxsize=4)
def splitter_for(split: SplitOptions, gateway: GatewayOptions) -> Splitter:
    """Return the splitter of this process: its tokenizer takes a second to load."""
    return Splitter(split, load_tokenizer(split, gateway))


class _ShardRun:
    """One shard in progress, in one thread.

    Attributes:
        contested: Documents to be decided after all shards were read, for which this shard is
            processed again.
        duplicates: Records whose id this run had read before.
        encodings: Number of files for which an encoding had to be detected.
    """

    def __init__(
        self, task: ShardTask, shard: Shard, session: Session, is_stopped: Callable[[], bool]
    ) -> None:
        self.contested = 0
        self.duplicates = 0
        self.encodings = Counter[str]()
        self._is_stopped = is_stopped
        self._task = task
        self._shard = shard
        self._session = session
        self._writer = GroupWriter(
            session,
            task.table,
            table_id=task.table_id,
            owner=task.owner,
            shard_key=shard.key,
        )
        self._group: list[PreparedDocument] = []
        self._group_chunks = 0
        self._written_at = time.monotonic()

    def run(self) -> bool:
        """Ingest the shard, and return whether its end was reached."""
        with (
            closing(self._read()) as records,
            closing(self._embed(self._prepare_all(records))) as documents,
        ):
            for item in documents:
                if self._is_stopped():
                    return False
                self._add(item)
        self._flush()
        return not self._is_stopped()

    def _read(self) -> Generator[Document | BadRecord]:
        task = self._task
        records = read_shard(
            self._shard,
            task.read,
            source_dsn=task.source_dsns.get(self._shard.key),
            dimensions=task.table.dimensions,
            on_encoding=lambda name: self.encodings.update([name]),
        )
        with closing(records):
            for record in records:
                yield storable(record, task.encoding) if task.encoding else record

    def _prepare_all(self, records: Iterable[Document | BadRecord]) -> Iterator[PreparedDocument]:
        """Yield the documents that need vectors, and deal with all others."""
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
        """Return the documents to write, and record the unchanged and the bad ones."""
        task = self._task
        known_by_id = self._session.run(
            lambda connection: known_documents(
                connection, task.table_id, [document.doc_id for document in documents]
            )
        )
        prepared: list[PreparedDocument] = []
        unchanged: list[Document] = []
        bad = list(bad)
        for read in documents:
            stored = known_by_id.get(read.doc_id)
            document, known = in_one_source(read, stored, task.owner)
            digests = digests_of(document, task.splitter_version)
            verdict = compare(
                document,
                digests,
                known,
                task.owner,
                all_read=task.all_read,
                may_replace=task.on_conflict == "replace",
            )
            if known is None or verdict == "write":
                item = self._prepare(document, digests, stored)
                if isinstance(item, BadRecord):
                    bad.append(item)
                else:
                    prepared.append(item)
            elif verdict == "foreign":
                bad.append(self._foreign(document, known))
                continue
            elif verdict == "contested":
                self.contested += 1
            elif verdict == "unchanged" or (verdict == "done" and _is_moved(document, stored)):
                unchanged.append(document)
            if known is not None and is_duplicate(document, known, task.run_id):
                bad += self._duplicate(document, digests, known)
        self._record_unchanged(unchanged)
        if bad:
            self._writer.refuse(bad)
        return prepared

    def _duplicate(
        self, document: Document, digests: Digests, known: KnownDocument
    ) -> list[BadRecord]:
        """Count the second of two records with one id, and report it if they differ."""
        if self._task.on_conflict == "fail" and known.origin.source != document.origin.source:
            self._foreign(document, known)
        self.duplicates += 1
        return conflict(document, digests, known)

    def _foreign(self, document: Document, known: KnownDocument) -> BadRecord:
        """Report a document whose id belongs to another source, or raise if that ends the load."""
        record = foreign_conflict(document, known)
        if self._task.on_conflict == "fail":
            raise ConflictError(f"{record.origin}: {record.reason}")
        return record

    def _prepare(
        self, document: Document, digests: Digests, known: KnownDocument | None
    ) -> PreparedDocument | BadRecord:
        task = self._task
        item = prepare(
            document,
            digests,
            known,
            split=lambda document: splitter_for(task.split, task.gateway).split(document),
        )
        if not item.chunks:
            reason = "Has no text that could be embedded."
            return BadRecord(document.origin, reason, "split", document.doc_id)
        return item

    def _record_unchanged(self, documents: Sequence[Document]) -> None:
        task = self._task
        found = [(document.doc_id, document.origin) for document in documents]

        def record(connection: Connection) -> None:
            counts = Counts(unchanged=mark_unchanged(connection, task.table_id, task.owner, found))
            clear_dead_letters(connection, task.table_id, [origin for _, origin in found])
            add_counts(connection, task.run_id, self._shard.key, counts)

        if found:
            self._session.run(record)

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
        """Write the group; what another worker wrote first is compared and written again."""
        for _ in range(_STALE_ROUNDS):
            group, self._group, self._group_chunks = self._group, [], 0
            stale = self._writer.write([item for item in group if item.failure is None])
            if failures := [item.failure for item in group if item.failure is not None]:
                self._writer.refuse(failures)
            self._written_at = time.monotonic()
            if not stale:
                return
            self._group = self._prepare_again(stale)
        reason = "Other records with the same id kept being written. Run the same command again."
        self._writer.refuse(
            [
                BadRecord(item.entry.origin, reason, "write", item.entry.doc_id)
                for item in self._group
            ]
        )
        self._group = []

    def _prepare_again(self, stale: Sequence[PreparedDocument]) -> list[PreparedDocument]:
        """Compare documents again, and reuse the vectors that they have."""
        known_vectors: dict[object, Vector] = {}
        for item in stale:
            known_vectors |= {item.chunks[at].id: vector for at, vector in item.vectors.items()}
        again: list[PreparedDocument] = []
        # One after the other: of two records with one id, the second must see the first.
        for item in stale:
            for fresh in self._compare([item.document]):
                for at in fresh.new:
                    if (vector := known_vectors.get(fresh.chunks[at].id)) is not None:
                        fresh.vectors[at] = vector
                again.append(fresh)
        return [item if item.is_ready else next(self._embed([item])) for item in again]


def _is_moved(document: Document, stored: KnownDocument | None) -> bool:
    """Return whether a narrower source of this run was the first to read the document's file."""
    return stored is not None and stored.origin.source != document.origin.source


def _batches(records: Iterable[Document | BadRecord]) -> Iterator[list[Document | BadRecord]]:
    """Divide a stream into lists of bounded number and length."""
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
