"""One row per document: its chunks in the table, and the last run that read it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..database import Connection
from ..documents import Origin
from ..layouts import Table
from ..rows.chunks import delete_chunks


@dataclass(frozen=True, slots=True)
class KnownDocument:
    """Hold what the ledger says of a document."""

    content_hash: bytes
    metadata_hash: bytes
    chunk_ids: tuple[uuid.UUID, ...]
    origin: Origin
    run_id: int
    """The last run that saw it."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """Hold what the ledger is to say of a document once its chunks are written."""

    doc_id: str
    content_hash: bytes
    metadata_hash: bytes
    chunk_ids: tuple[uuid.UUID, ...]
    origin: Origin


_COLUMNS = "doc_id, content_hash, metadata_hash, chunk_ids, source, path, position, run_id"


def known_documents(
    connection: Connection, table_id: int, doc_ids: Sequence[str]
) -> dict[str, KnownDocument]:
    """Return what the ledger says of those documents that it knows."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM qwen3_ingest.documents WHERE table_id = %s AND doc_id = ANY(%s)",
        (table_id, list(doc_ids)),
        binary=True,
    )
    return {row[0]: _known(row) for row in rows}


def lock_documents(
    connection: Connection, table_id: int, doc_ids: Sequence[str]
) -> dict[str, KnownDocument]:
    """Keep other workers off those documents that the ledger knows until the transaction ends."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM qwen3_ingest.documents WHERE table_id = %s AND doc_id = ANY(%s) "
        "ORDER BY doc_id FOR UPDATE",  # in one order everywhere, so that workers cannot deadlock
        (table_id, list(doc_ids)),
        binary=True,
    )
    return {row[0]: _known(row) for row in rows}


def insert_documents(
    connection: Connection, table_id: int, run_id: int, entries: Sequence[LedgerEntry]
) -> set[str]:
    """Write the rows of new documents, in the transaction that writes their chunks.

    Returns the ids of those written: the others were written by another worker meanwhile.
    """
    rows = connection.execute(
        "INSERT INTO qwen3_ingest.documents (table_id, run_id, doc_id, content_hash, "
        "metadata_hash, chunk_ids, source, path, position) "
        f"SELECT %s, %s, {_FIELDS} FROM {_ENTRIES} ORDER BY e.doc_id "
        "ON CONFLICT DO NOTHING RETURNING doc_id",
        (table_id, run_id, *_arrays(entries)),
    )
    return {row[0] for row in rows}


def update_documents(
    connection: Connection, table_id: int, run_id: int, entries: Sequence[LedgerEntry]
) -> None:
    """Write the rows of changed documents, in the transaction that writes their chunks."""
    connection.execute(
        "UPDATE qwen3_ingest.documents d SET (doc_id, content_hash, metadata_hash, chunk_ids, "
        f"source, path, position) = ROW({_FIELDS}), run_id = %s, written_at = now() "
        f"FROM {_ENTRIES} WHERE d.table_id = %s AND d.doc_id = e.doc_id",
        (run_id, *_arrays(entries), table_id),
    )


# Arrays of unequal length cannot be elements of one array, so ids travel as PostgreSQL's text.
_ENTRIES = (
    "unnest(%s::text[], %s::bytea[], %s::bytea[], %s::text[], %s::text[], %s::text[], "
    "%s::bigint[]) AS e (doc_id, content_hash, metadata_hash, chunk_ids, source, path, position)"
)
_FIELDS = (
    "e.doc_id, e.content_hash, e.metadata_hash, e.chunk_ids::uuid[], e.source, e.path, e.position"
)


def _arrays(entries: Sequence[LedgerEntry]) -> tuple[list[object], ...]:
    return (
        [entry.doc_id for entry in entries],
        [entry.content_hash for entry in entries],
        [entry.metadata_hash for entry in entries],
        ["{" + ",".join(map(str, entry.chunk_ids)) + "}" for entry in entries],
        *_columns([entry.origin for entry in entries]),
    )


def mark_seen(
    connection: Connection, table_id: int, run_id: int, documents: Sequence[tuple[str, Origin]]
) -> int:
    """Note that a run came upon documents that need nothing done, and where.

    Returns how many of them it had not come upon before: those are to be counted.
    """
    ordered = sorted(documents)
    row = connection.execute(
        _MARK_SEEN,
        {
            "run": run_id,
            "table": table_id,
            "ids": [doc_id for doc_id, _ in ordered],
            **dict(
                zip(
                    ("sources", "paths", "positions"),
                    _columns([origin for _, origin in ordered]),
                    strict=True,
                )
            ),
        },
    ).fetchone()
    return row[0] if row else 0


# Locked in one order everywhere, so that workers cannot deadlock.
_MARK_SEEN = """
WITH met AS (
    SELECT * FROM unnest(%(ids)s::text[], %(sources)s::text[], %(paths)s::text[],
        %(positions)s::bigint[]) AS m (doc_id, source, path, position)
), locked AS (
    SELECT d.doc_id, d.run_id FROM qwen3_ingest.documents d JOIN met USING (doc_id)
    WHERE d.table_id = %(table)s ORDER BY d.doc_id FOR UPDATE OF d
), marked AS (
    UPDATE qwen3_ingest.documents d
    SET run_id = %(run)s, source = met.source, path = met.path, position = met.position
    FROM met JOIN locked USING (doc_id)
    WHERE d.table_id = %(table)s AND d.doc_id = met.doc_id
)
SELECT count(*) FROM locked WHERE run_id <> %(run)s
"""


def _columns(origins: Sequence[Origin]) -> tuple[list[object], ...]:
    return (
        [origin.source for origin in origins],
        [origin.path for origin in origins],
        [origin.position for origin in origins],
    )


def _known(row: Any) -> KnownDocument:
    _, content, metadata, chunk_ids, source, path, position, run_id = row
    origin = Origin(source, path, position)
    return KnownDocument(content, metadata, tuple(chunk_ids), origin, run_id)


_BATCH_DOCUMENTS = 500


@dataclass(frozen=True, slots=True)
class Vanished:
    """Count the documents of a source that a complete run did not come upon."""

    source: str
    vanished: int
    known: int
    """All that the ledger has of this source."""
    nameless: int
    """Records of the run whose id could not be read: any of them may be a vanished one."""

    @property
    def fraction(self) -> float:
        """Return which part of the source's documents has vanished."""
        return self.vanished / self.known if self.known else 0.0


def count_vanished(connection: Connection, table_id: int, run_id: int, source: str) -> Vanished:
    """Count what a run that read all of a source did not come upon."""
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE run_id <> %s), count(*), (SELECT count(*) FROM "
        "qwen3_ingest.dead_letters WHERE run_id = %s AND source = %s AND doc_id IS NULL) "
        "FROM qwen3_ingest.documents WHERE table_id = %s AND source = %s",
        (run_id, run_id, source, table_id, source),
    ).fetchone()
    assert row is not None
    return Vanished(source, *row)


def remove_vanished(
    connection: Connection, table: Table, table_id: int, run_id: int, source: str
) -> int:
    """Remove the chunks and the ledger's rows of some vanished documents.

    Call it, each time in a transaction, until it returns 0: the number removed.
    """
    found = connection.execute(
        "DELETE FROM qwen3_ingest.documents WHERE table_id = %s AND doc_id = ANY(ARRAY(SELECT "
        "doc_id FROM qwen3_ingest.documents WHERE table_id = %s AND source = %s AND run_id <> %s "
        "ORDER BY doc_id LIMIT %s FOR UPDATE)) RETURNING chunk_ids",
        (table_id, table_id, source, run_id, _BATCH_DOCUMENTS),
        binary=True,
    ).fetchall()
    delete_chunks(connection, table, [chunk for (ids,) in found for chunk in ids])
    connection.execute(
        "UPDATE qwen3_ingest.runs SET removed = removed + %s WHERE id = %s", (len(found), run_id)
    )
    return len(found)
