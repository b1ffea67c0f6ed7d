"""Write a group of documents in one transaction: chunks, ledger and counts together."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import psycopg

from .database import Connection, Session, explain
from .documents import BadRecord
from .layouts import Table
from .ledger.documents import insert_documents, lock_documents, update_documents
from .ledger.runs import Counts, add_counts, add_dead_letters, clear_dead_letters
from .preparing import PreparedDocument
from .rows.chunks import copy_chunks, delete_chunks, update_chunks, upsert_chunks

__all__ = ["GroupWriter"]

# What one document can bring about by its content; a whole group need not go down with it.
_ABOUT_A_DOCUMENT = (
    psycopg.errors.DataError,
    psycopg.errors.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    ValueError,  # text that is no Unicode, a vector of another length
)


class GroupWriter:
    """Write documents of one shard into one table."""

    def __init__(
        self, session: Session, table: Table, *, table_id: int, run_id: int, shard_key: bytes
    ) -> None:
        self._session = session
        self._table = table
        self._table_id = table_id
        self._run_id = run_id
        self._shard_key = shard_key

    def write(self, group: Sequence[PreparedDocument]) -> list[PreparedDocument]:
        """Write documents, all or none; if one of them cannot be, the others by themselves.

        Returns those whose rows changed since they were compared with the ledger: another
        worker, or another record with the same id, came first. Compare them anew.

        Raises:
            DatabaseError: PostgreSQL stayed away.
        """
        if not group:
            return []
        try:
            return self._session.run(lambda connection: self._write_once(connection, group))
        except _ABOUT_A_DOCUMENT as error:
            if len(group) > 1:
                half = len(group) // 2
                return self.write(group[:half]) + self.write(group[half:])
            self.refuse([_refused(group[0], error)])
            return []

    def refuse(self, records: Sequence[BadRecord]) -> None:
        """Note documents that cannot be loaded."""
        self._session.run(
            lambda connection: add_dead_letters(connection, self._table_id, self._run_id, records)
        )

    def _write_once(
        self, connection: Connection, group: Sequence[PreparedDocument]
    ) -> list[PreparedDocument]:
        current, stale = self._take_rows(connection, group)
        changed = [item for item in current if item.base is not None]
        gone = [chunk for item in changed for chunk in _gone(item)]
        self._write_chunks(connection, current, gone)
        update_documents(connection, self._table_id, self._run_id, [item.entry for item in changed])
        clear_dead_letters(connection, self._table_id, [item.entry.origin for item in current])
        counts = Counts(
            documents=len(current),
            chunks_written=sum(len(item.new) for item in current),
            chunks_kept=sum(item.kept() for item in current),
            chunks_removed=len(gone),
        )
        add_counts(connection, self._run_id, self._shard_key, counts)
        return stale

    def _take_rows(
        self, connection: Connection, group: Sequence[PreparedDocument]
    ) -> tuple[list[PreparedDocument], list[PreparedDocument]]:
        """Lock or insert the ledger's rows; part the documents into current and stale ones."""
        firsts: dict[str, PreparedDocument] = {}
        for item in group:
            firsts.setdefault(item.entry.doc_id, item)
        based = [item.entry.doc_id for item in firsts.values() if item.base is not None]
        locked = lock_documents(connection, self._table_id, based) if based else {}
        entries = [item.entry for item in firsts.values() if item.base is None]
        inserted = (
            insert_documents(connection, self._table_id, self._run_id, entries)
            if entries
            else set[str]()
        )
        current: list[PreparedDocument] = []
        stale: list[PreparedDocument] = []
        for item in group:
            doc_id = item.entry.doc_id
            agrees = locked.get(doc_id) == item.base if item.base else doc_id in inserted
            (current if agrees and firsts[doc_id] is item else stale).append(item)
        return current, stale

    def _write_chunks(
        self, connection: Connection, current: Sequence[PreparedDocument], gone: Sequence[UUID]
    ) -> None:
        if gone:
            delete_chunks(connection, self._table, gone)
        if moved := [chunk for item in current for chunk in item.moved()]:
            update_chunks(connection, self._table, moved)
        new = [chunk for item in current for chunk in item.embedded()]
        if not new:
            return
        try:
            with connection.transaction():
                copy_chunks(connection, self._table, new)
        except psycopg.errors.UniqueViolation:
            # Rows that the ledger does not know: of a table that was adopted, or vectors that
            # were computed before and came anew.
            upsert_chunks(connection, self._table, new)


def _gone(item: PreparedDocument) -> list[UUID]:
    former = item.base.chunk_ids if item.base else ()
    stay = set(item.entry.chunk_ids)
    return [chunk_id for chunk_id in former if chunk_id not in stay]


def _refused(item: PreparedDocument, error: Exception) -> BadRecord:
    said = explain(error) if isinstance(error, psycopg.Error) else str(error)
    return BadRecord(
        item.entry.origin, f"PostgreSQL refused it: {said}", "write", item.entry.doc_id
    )
