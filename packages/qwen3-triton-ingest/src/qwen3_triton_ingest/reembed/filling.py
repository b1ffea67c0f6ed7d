"""Embedding a table's texts anew, in the order of its key and then what changed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from psycopg import sql

from qwen3_triton_client import EmbeddingClient, EmbeddingError, Vector

from ..database import Connection, Session
from ..rows.binary import copy_stream, pack_vector
from .anatomy import Anatomy
from .job import Job
from .state import (
    Change,
    find_state,
    forget_changes,
    note_changes,
    note_position,
    open_changes,
)
from .successor import insert_from_stage, key_type

__all__ = ["Filling", "StartAfreshError", "note_differences"]

# Beyond some hundred rows a larger transaction is no faster, and what is not written is embedded
# again after a kill.
BATCH_ROWS = 1000
# Texts read at once; at least one row, however long.
PAGE_ROWS, PAGE_BYTES = 2000, 8 * 1024 * 1024
_STAGE = "qwen3_ingest_stage"

Row = tuple[str, str]
"""Key and text."""


class StartAfreshError(Exception):
    """Say that what is filled is of no use: the table was emptied or changed its shape."""


@dataclass(slots=True)
class Filling:
    """Fill the successor of one table."""

    job: Job
    session: Session
    client: EmbeddingClient
    anatomy: Anatomy
    on_rows: Callable[[int], None]
    """Called after each transaction with the rows that it brought."""
    failed: dict[str, EmbeddingError] = field(default_factory=dict[str, EmbeddingError])
    """By key, the rows whose text the gateway refuses."""
    embedded: int = 0
    _noted: set[str] = field(default_factory=set[str])

    def fill(self, last_key: str | None) -> None:
        """Embed every row behind a key, then say that all were passed.

        A row that is written meanwhile may be missed: it is among the changes.
        """
        with closing(self._embed(self._pages(last_key))) as rows:
            batch: list[tuple[str, Vector]] = []
            for key, vector in rows:
                batch.append((key, vector))
                if len(batch) == BATCH_ROWS:
                    self._write_next(batch)
                    batch = []
        self._write_next(batch)

        def finish(connection: Connection) -> None:
            note_changes(connection, self.job.table_id, list(self.failed.keys() - self._noted))
            note_position(connection, self.job.table_id, filled=True)

        self.session.run(finish)

    def apply_changes(self, session: Session | None = None, *, few: int = 1) -> None:
        """Embed the rows that were written meanwhile, until fewer than `few` were found at once.

        Args:
            session: Where to work, if not on the filling's own connection.
            few: With 1 it ends when nothing is left, which may be never where others write on.

        Raises:
            StartAfreshError: The table was truncated.
        """
        session = session or self.session
        while True:
            changes = session.run(
                lambda connection: open_changes(
                    connection, self.job.table_id, without=list(self.failed), limit=BATCH_ROWS
                )
            )
            if changes:
                self._apply(session, changes)
            if len(changes) < few:
                return

    def _apply(self, session: Session, changes: Sequence[Change]) -> None:
        keys = sorted({change.key for change in changes if change.key is not None})
        if any(change.key is None for change in changes):
            raise StartAfreshError
        rows = session.run(partial(self._take_out, keys=keys))
        with closing(self._embed([rows])) as stream:
            fresh = list(stream)
        ids = [change.id for change in changes if change.key not in self.failed]
        session.run(partial(self._settle, fresh=fresh, ids=ids))
        self.embedded += len(fresh)

    def _write_next(self, batch: Sequence[tuple[str, Vector]]) -> None:
        if not batch:
            return

        def write(connection: Connection) -> None:
            state = find_state(connection, self.job.table_id)
            if state is not None and state.last_key == batch[-1][0]:
                return  # it was committed, and only the answer was lost
            self._insert(connection, batch)
            note_changes(connection, self.job.table_id, refused)
            note_position(connection, self.job.table_id, last_key=batch[-1][0])

        # Rows that the position passes over must not be forgotten if this process is killed.
        refused = [key for key in self.failed if key not in self._noted]
        self.session.run(write)
        self._noted.update(refused)
        self.embedded += len(batch)
        self.on_rows(len(batch))

    def _settle(
        self, connection: Connection, *, fresh: Sequence[tuple[str, Vector]], ids: Sequence[int]
    ) -> None:
        self._delete(connection, [key for key, _ in fresh])  # where this is done a second time
        self._insert(connection, fresh)
        forget_changes(connection, ids)

    def _pages(self, last_key: str | None) -> Iterator[list[Row]]:
        while page := self.session.run(partial(self._page, last_key=last_key)):
            yield page
            last_key = page[-1][0]

    def _page(self, connection: Connection, *, last_key: str | None) -> list[Row]:
        """Read the next rows, as many as their texts' bytes allow."""
        key, content = (
            sql.Identifier(self.anatomy.key),
            sql.Identifier(self.job.table.layout.content),
        )
        behind = sql.SQL("")
        if last_key is not None:
            behind = sql.SQL("WHERE {} > {}::{}").format(
                key, sql.Literal(last_key), key_type(self.anatomy)
            )
        query = sql.SQL(
            "SELECT key::text, content FROM (SELECT key, content, sum(octet_length(content)) "
            "OVER (ORDER BY key) - octet_length(content) AS before FROM (SELECT {key} AS key, "
            "{content} AS content FROM {table} {behind} ORDER BY {key} LIMIT {rows}) AS next) AS n "
            "WHERE before < {bytes} ORDER BY n.key"
        ).format(
            key=key,
            content=content,
            table=self.job.table.identifier,
            behind=behind,
            rows=PAGE_ROWS,
            bytes=PAGE_BYTES,
        )
        return [(row[0], row[1]) for row in connection.execute(query)]

    def _take_out(self, connection: Connection, *, keys: Sequence[str]) -> list[Row]:
        """Remove rows from the successor, and return those that are still in the table."""
        self._delete(connection, keys)
        key, kind = sql.Identifier(self.anatomy.key), key_type(self.anatomy)
        query = sql.SQL("SELECT {}::text, {} FROM {} WHERE {} = ANY(%s::{}[])").format(
            key, sql.Identifier(self.job.table.layout.content), self.job.table.identifier, key, kind
        )
        return [(row[0], row[1]) for row in connection.execute(query, (list(keys),))]

    def _delete(self, connection: Connection, keys: Sequence[str]) -> None:
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE {} = ANY(%s::{}[])").format(
                self.job.successor.identifier,
                sql.Identifier(self.anatomy.key),
                key_type(self.anatomy),
            ),
            (list(keys),),
        )

    def _embed(self, pages: Iterable[Sequence[Row]]) -> Generator[tuple[str, Vector]]:
        """Give each key with the vector of its text, in order; note which cannot be embedded."""
        keys: dict[int, str] = {}

        def texts() -> Iterator[str]:
            index = 0
            for page in pages:
                for key, text in page:
                    keys[index] = key
                    index += 1
                    yield text

        def note_failure(index: int, error: EmbeddingError) -> None:
            self.failed[keys.pop(index)] = error

        instruction = self.job.options.gateway.instruction
        vectors = self.client.iter_embed(
            texts(),
            input_type="query" if instruction else "document",
            instruction=instruction,
            on_failure=note_failure,
        )
        for index, vector in vectors:
            yield keys.pop(index), vector

    def _insert(self, connection: Connection, rows: Sequence[tuple[str, Vector]]) -> None:
        """Write rows with new vectors, everything else as it stands in the table now."""
        stage = sql.Identifier(_STAGE)
        connection.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE IF NOT EXISTS {} (key text, embedding {}) "
                "ON COMMIT DELETE ROWS"
            ).format(stage, sql.Identifier(self.job.table.vector_schema, "vector"))
        )
        copy = sql.SQL("COPY {} (key, embedding) FROM STDIN (FORMAT binary)").format(stage)
        with connection.cursor().copy(copy) as stream:
            for block in copy_stream((key.encode(), pack_vector(vector)) for key, vector in rows):
                stream.write(block)
        insert_from_stage(connection, self.job.table, self.anatomy, self.job.successor, stage)


def note_differences(connection: Connection, job: Job, anatomy: Anatomy) -> None:
    """Note the rows that one of the two tables lacks, however that came about."""
    key = sql.Identifier(anatomy.key)
    query = sql.SQL(
        "SELECT coalesce(o.{key}, n.{key})::text FROM {old} o FULL JOIN {new} n USING ({key}) "
        "WHERE o.{key} IS NULL OR n.{key} IS NULL"
    ).format(key=key, old=job.table.identifier, new=job.successor.identifier)
    note_changes(connection, job.table_id, [row[0] for row in connection.execute(query)])
