"""Write a group of documents in one transaction: chunks, ledger and counts together."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from .database import Connection, Session, explain
from .documents import BadRecord
from .layouts import Table
from .ledger.documents import (
    Ownership,
    insert_documents,
    known_documents,
    update_documents,
)
from .ledger.runs import Counts, add_counts, add_dead_letters, clear_dead_letters
from .preparing import PreparedDocument
from .rows.chunks import copy_chunks, delete_chunks, update_chunks, upsert_chunks

# Errors that one document can cause by its content, so that the rest of the group is retried.
_CAUSED_BY_A_DOCUMENT = (
    psycopg.errors.DataError,
    psycopg.errors.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    ValueError,  # text that is not valid Unicode, a vector of another length
)


class GroupWriter:
    """The documents of one shard on their way into one table."""

    def __init__(
        self, session: Session, table: Table, *, table_id: int, owner: Ownership, shard_key: bytes
    ) -> None:
        self._session = session
        self._table = table
        self._table_id = table_id
        self._owner = owner
        self._run_id = owner.run_id
        self._shard_key = shard_key

    def write(self, group: Sequence[PreparedDocument]) -> list[PreparedDocument]:
        """Write documents, all or none; if one of them cannot be written, the others separately.

        Returns:
            Those whose ledger rows have changed since they were compared: another worker, or
            another record with the same id, was faster. Compare them again.

        Raises:
            DatabaseError: PostgreSQL stayed unavailable.
        """
        if not group:
            return []
        try:
            return self._session.run(lambda connection: self._write_once(connection, group))
        except _CAUSED_BY_A_DOCUMENT as error:
            if len(group) > 1:
                half = len(group) // 2
                return self.write(group[:half]) + self.write(group[half:])
            self.refuse([_bad_record(group[0], error)])
            return []

    def refuse(self, records: Sequence[BadRecord]) -> None:
        """Record documents that cannot be loaded."""
        self._session.run(
            lambda connection: add_dead_letters(connection, self._table_id, self._owner, records)
        )

    def _write_once(
        self, connection: Connection, group: Sequence[PreparedDocument]
    ) -> list[PreparedDocument]:
        current, stale = self._take_rows(connection, group)
        changed = [item.entry for item in current if item.base is not None]
        removed = self._write_chunks(connection, current)
        update_documents(connection, self._table_id, self._owner, changed)
        clear_dead_letters(connection, self._table_id, [item.entry.origin for item in current])
        counts = Counts(
            documents=len(current),
            chunks_written=sum(len(item.new) for item in current),
            chunks_kept=sum(len(item.chunks) - len(item.new) for item in current),
            chunks_removed=removed,
        )
        add_counts(connection, self._run_id, self._shard_key, counts)
        return stale

    def _take_rows(
        self, connection: Connection, group: Sequence[PreparedDocument]
    ) -> tuple[list[PreparedDocument], list[PreparedDocument]]:
        """Lock or insert the ledger's rows; divide the documents into current and stale ones."""
        firsts: dict[str, PreparedDocument] = {}
        for item in group:
            firsts.setdefault(item.entry.doc_id, item)
        changed = [item.entry.doc_id for item in firsts.values() if item.base is not None]
        locked = known_documents(connection, self._table_id, changed, lock=True)
        new = [item.entry for item in firsts.values() if item.base is None]
        inserted = insert_documents(connection, self._table_id, self._run_id, new)
        current: list[PreparedDocument] = []
        stale: list[PreparedDocument] = []
        for item in group:
            doc_id = item.entry.doc_id
            agrees = locked.get(doc_id) == item.base if item.base else doc_id in inserted
            (current if agrees and firsts[doc_id] is item else stale).append(item)
        return current, stale

    def _write_chunks(self, connection: Connection, group: Sequence[PreparedDocument]) -> int:
        """Delete, update and insert rows, and return how many were deleted."""
        if removed := [chunk_id for item in group for chunk_id in item.removed_ids]:
            delete_chunks(connection, self._table, removed)
        if changed := [chunk for item in group for chunk in item.changed_rows]:
            update_chunks(connection, self._table, changed)
        if new := [chunk for item in group for chunk in item.new_rows]:
            try:
                with connection.transaction():
                    copy_chunks(connection, self._table, new)
            except psycopg.errors.UniqueViolation:
                # Rows that the ledger does not have: the table was adopted, or vectors that were
                # computed in advance have changed.
                upsert_chunks(connection, self._table, new)
        return len(removed)


def _bad_record(item: PreparedDocument, error: Exception) -> BadRecord:
    if isinstance(error, psycopg.Error):
        reason = f"PostgreSQL refused it: {explain(error)}."
    else:
        reason = f"It cannot be written: {error}"
    return BadRecord(item.entry.origin, reason, "write", item.entry.doc_id)
