"""One row per document: its chunks in the table, its source, and the last run that read it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import queries
from ..database import Connection
from ..documents import Origin
from ..layouts import Table
from ..rows.chunks import delete_chunks


@dataclass(frozen=True, slots=True)
class KnownDocument:
    """A document as the ledger has it.

    Attributes:
        run_id: The last run that read it.
        owned_since: The run in which it came to its source.
    """

    content_hash: bytes
    metadata_hash: bytes
    chunk_ids: tuple[uuid.UUID, ...]
    origin: Origin
    run_id: int
    owned_since: int


@dataclass(frozen=True, slots=True)
class Ownership:
    """Which documents a run may change: those of its own sources.

    Attributes:
        sources: Of the run.
        former: The names that older ledgers have for these sources, by which several folders could
            be called, with what they are called now.
    """

    run_id: int
    sources: frozenset[str] = frozenset()
    former: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What the ledger will have of a document once its chunks are written."""

    doc_id: str
    content_hash: bytes
    metadata_hash: bytes
    chunk_ids: tuple[uuid.UUID, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class VanishedCount:
    """How many documents of a source a complete run did not encounter.

    Attributes:
        known: Documents that the source had before the run.
        vanished: Those of them that the run did not encounter.
        doubtful: Those of the vanished that may be records of the same file whose ids could not be
            read.
    """

    source: str
    known: int
    vanished: int
    doubtful: int

    @property
    def fraction(self) -> float:
        """The fraction of the source's documents that has certainly vanished."""
        return (self.vanished - self.doubtful) / self.known if self.known else 0.0


_BATCH_DOCUMENTS = 500
_COLUMNS = (
    "doc_id, content_hash, metadata_hash, chunk_ids, source, path, position, run_id, owned_since"
)
# Arrays of different lengths cannot be elements of one array, so chunk ids are sent as text.
_ENTRIES = (
    "unnest(%s::text[], %s::bytea[], %s::bytea[], %s::text[], %s::text[], %s::text[], "
    "%s::bigint[]) AS e (doc_id, content_hash, metadata_hash, chunk_ids, source, path, position)"
)
_FIELDS = (
    "e.doc_id, e.content_hash, e.metadata_hash, e.chunk_ids::uuid[], e.source, e.path, e.position"
)


def known_documents(
    connection: Connection, table_id: int, doc_ids: Sequence[str], *, lock: bool = False
) -> dict[str, KnownDocument]:
    """Return the ledger's rows of those documents that it has, by id.

    With `lock`, other workers cannot write them until the transaction ends.
    """
    # Locked in the same order everywhere, or workers could deadlock.
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM qwen3_ingest.documents WHERE table_id = %s AND doc_id = ANY(%s) "
        f"ORDER BY doc_id {'FOR UPDATE' if lock else ''}",
        (table_id, list(doc_ids)),
        binary=True,
    )
    return {row[0]: _known_document(row) for row in rows}


def insert_documents(
    connection: Connection, table_id: int, run_id: int, entries: Sequence[LedgerEntry]
) -> set[str]:
    """Write the rows of new documents, in the transaction that writes their chunks.

    Returns:
        The ids of those written. Another worker was faster with the others.
    """
    rows = connection.execute(
        "INSERT INTO qwen3_ingest.documents (table_id, run_id, owned_since, doc_id, content_hash, "
        "metadata_hash, chunk_ids, source, path, position) "
        f"SELECT %s, %s, %s, {_FIELDS} FROM {_ENTRIES} ORDER BY e.doc_id "
        "ON CONFLICT DO NOTHING RETURNING doc_id",
        (table_id, run_id, run_id, *_arrays(entries)),
    )
    return {row[0] for row in rows}


def update_documents(
    connection: Connection, table_id: int, owner: Ownership, entries: Sequence[LedgerEntry]
) -> None:
    """Write the rows of changed documents, in the transaction that writes their chunks."""
    connection.execute(
        "UPDATE qwen3_ingest.documents d SET (doc_id, content_hash, metadata_hash, chunk_ids, "
        f"source, path, position) = ROW({_FIELDS}), run_id = %s, written_at = now(), "
        f"owned_since = {queries.OWNED_SINCE} "
        f"FROM {_ENTRIES} WHERE d.table_id = %s AND d.doc_id = e.doc_id",
        (owner.run_id, list(owner.former), owner.run_id, *_arrays(entries), table_id),
    )


def mark_unchanged(
    connection: Connection,
    table_id: int,
    owner: Ownership,
    documents: Sequence[tuple[str, Origin]],
) -> int:
    """Record that a run read documents that need nothing, and where.

    Returns:
        How many of them the run had not read before, which are to be counted.
    """
    ordered = sorted(documents)
    ids = [doc_id for doc_id, _ in ordered]
    sources, paths, positions = _columns([origin for _, origin in ordered])
    row = connection.execute(
        queries.MARK_UNCHANGED,
        {
            **{"run": owner.run_id, "former": list(owner.former), "table": table_id, "ids": ids},
            **{"sources": sources, "paths": paths, "positions": positions},
        },
    ).fetchone()
    return row[0] if row else 0


def count_vanished(
    connection: Connection, table_id: int, run_id: int, source: str
) -> VanishedCount:
    """Count the documents that a run over all of a source did not encounter."""
    row = connection.execute(
        f"SELECT count(*) FILTER (WHERE owned_since <> %(run)s), "
        f"count(*) FILTER (WHERE run_id <> %(run)s), "
        f"count(*) FILTER (WHERE run_id <> %(run)s AND {queries.IS_DOUBTFUL}) "
        "FROM qwen3_ingest.documents d WHERE table_id = %(table)s AND source = %(source)s",
        {"run": run_id, "table": table_id, "source": source},
    ).fetchone()
    assert row is not None
    return VanishedCount(source, *row)


def remove_vanished(
    connection: Connection,
    table: Table,
    table_id: int,
    run_id: int,
    source: str,
    *,
    doubtful: bool = False,
) -> int:
    """Remove the chunks and the ledger's rows of some vanished documents.

    Args:
        connection: In whose transaction it happens.
        table: The table with the chunks.
        table_id: Its id in the ledger.
        run_id: The run that did not encounter the documents.
        source: Whose documents they are.
        doubtful: Whether to remove those, too, that may be records whose ids could not be read.

    Returns:
        How many were removed. Call it, each time in a transaction, until that is 0.
    """
    certain = "" if doubtful else f"AND NOT {queries.IS_DOUBTFUL} "
    found = connection.execute(
        "DELETE FROM qwen3_ingest.documents WHERE table_id = %(table)s AND doc_id = ANY(ARRAY("
        "SELECT doc_id FROM qwen3_ingest.documents d WHERE table_id = %(table)s "
        f"AND source = %(source)s AND run_id <> %(run)s {certain}"
        "ORDER BY doc_id LIMIT %(limit)s FOR UPDATE OF d)) RETURNING chunk_ids",
        {"table": table_id, "source": source, "run": run_id, "limit": _BATCH_DOCUMENTS},
        binary=True,
    ).fetchall()
    delete_chunks(connection, table, [chunk for (ids,) in found for chunk in ids])
    connection.execute(
        "UPDATE qwen3_ingest.runs SET removed = removed + %s WHERE id = %s", (len(found), run_id)
    )
    return len(found)


def _arrays(entries: Sequence[LedgerEntry]) -> tuple[list[object], ...]:
    return (
        [entry.doc_id for entry in entries],
        [entry.content_hash for entry in entries],
        [entry.metadata_hash for entry in entries],
        ["{" + ",".join(map(str, entry.chunk_ids)) + "}" for entry in entries],
        *_columns([entry.origin for entry in entries]),
    )


def _columns(origins: Sequence[Origin]) -> tuple[list[object], ...]:
    return (
        [origin.source for origin in origins],
        [origin.path for origin in origins],
        [origin.position for origin in origins],
    )


def _known_document(row: Any) -> KnownDocument:
    _, content, metadata, chunk_ids, source, path, position, run_id, owned_since = row
    origin = Origin(source, path, position)
    return KnownDocument(content, metadata, tuple(chunk_ids), origin, run_id, owned_since)


def settle_former_names(
    connection: Connection, table_id: int, owner: Ownership, *, every: bool
) -> dict[str, int]:
    """Give a run's sources the documents under their former names that the run did not encounter.

    Several folders may have had the same name, each in runs of its own. So of the documents that
    one run read last, the remaining ones are this source's if most of them were read now. The
    others may be another folder's, and its next load takes them.

    Args:
        connection: In whose transaction it happens.
        table_id: The table's id in the ledger.
        owner: The run, which has read all of its sources.
        every: Whether to take all documents with the name.

    Returns:
        How many documents keep a former name, by name.
    """
    left: dict[str, int] = {}
    for former, source in owner.former.items():
        row = connection.execute(
            queries.SETTLE_FORMER_NAME,
            {"table": table_id, "former": former, "source": source, "every": every},
        ).fetchone()
        left |= {former: row[0]} if row and row[0] else {}
    return left
