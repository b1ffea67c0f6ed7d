"""One row for each document: what is in the table of it, and which run saw it last."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..database import Connection
from ..documents import Origin

__all__ = [
    "KnownDocument",
    "LedgerEntry",
    "insert_documents",
    "known_documents",
    "lock_documents",
    "mark_seen",
    "update_documents",
]


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
