"""Embedding a table's texts, first in the order of its key, then what changed in the meantime."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from psycopg import sql

from qwen3_triton_client import EmbeddingClient, EmbeddingError, Vector

from ..database import Connection, Session
from ..layouts import escaped_identifier
from ..places import HEADINGS, context_of, with_context
from .job import Job
from .old_table import OldTable
from .state import (
    Change,
    add_changes,
    delete_changes,
    find_state,
    pending_changes,
    save_position,
)
from .successor import insert_rows

# Beyond some hundred rows a larger transaction is no faster, and rows that are not written when
# the process is killed are embedded again.
BATCH_ROWS = 1000
# Texts read at once; at least one row, however long.
PAGE_ROWS, PAGE_BYTES = 2000, 8 * 1024 * 1024

Row = tuple[str, str]
"""Key and text, with what precedes it when it is embedded."""


class RestartError(Exception):
    """What was filled is useless, because the table was emptied or its columns changed."""


@dataclass(slots=True)
class Filling:
    """The rows of one successor as they are embedded.

    Attributes:
        on_rows: Called after each transaction with the number of rows that it added.
        failed: By key, the rows whose text the gateway refuses.
        embedded: Rows embedded so far.
    """

    job: Job
    session: Session
    client: EmbeddingClient
    old: OldTable
    on_rows: Callable[[int], None]
    failed: dict[str, EmbeddingError] = field(default_factory=dict[str, EmbeddingError])
    embedded: int = 0
    _saved_failures: set[str] = field(default_factory=set[str])

    def fill(self, last_key: str | None) -> None:
        """Embed every row after a key, then save that all rows were passed.

        A row that is written while this runs may be missed: it is among the changes.
        """
        with closing(self._embed(self._pages(last_key))) as rows:
            batch: list[tuple[str, Vector]] = []
            for key, vector in rows:
                batch.append((key, vector))
                if len(batch) == BATCH_ROWS:
                    self._write_batch(batch)
                    batch = []
        self._write_batch(batch)

        def finish(connection: Connection) -> None:
            unsaved = list(self.failed.keys() - self._saved_failures)
            add_changes(connection, self.job.table_id, unsaved)
            save_position(connection, self.job.table_id, filled=True)

        self.session.run(finish)

    def apply_changes(self, session: Session | None = None, *, few: int = 1) -> None:
        """Embed the rows that others have written, until fewer than `few` are found at once.

        Args:
            session: Where to work, if not on the filling's own connection.
            few: With 1 it ends when nothing is left, which may be never while others write.

        Raises:
            RestartError: The table was truncated.
        """
        session = session or self.session
        while True:
            changes = session.run(
                lambda connection: pending_changes(
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
            raise RestartError
        rows = session.run(partial(self._take_out, keys=keys))
        with closing(self._embed([rows])) as stream:
            vectors = list(stream)
        ids = [change.id for change in changes if change.key not in self.failed]

        def write(connection: Connection) -> None:
            self._delete(connection, [key for key, _ in vectors])  # if this is done a second time
            self._insert(connection, vectors)
            delete_changes(connection, ids)

        session.run(write)
        self.embedded += len(vectors)

    def _write_batch(self, batch: Sequence[tuple[str, Vector]]) -> None:
        if not batch:
            return

        def write(connection: Connection) -> None:
            state = find_state(connection, self.job.table_id)
            if state is not None and state.last_key == batch[-1][0]:
                return  # it was committed, and only the answer was lost
            self._insert(connection, batch)
            add_changes(connection, self.job.table_id, refused)
            save_position(connection, self.job.table_id, last_key=batch[-1][0])

        # Rows that the position passes over must not be forgotten if this process is killed.
        refused = [key for key in self.failed if key not in self._saved_failures]
        self.session.run(write)
        self._saved_failures.update(refused)
        self.embedded += len(batch)
        self.on_rows(len(batch))

    def _pages(self, last_key: str | None) -> Iterator[list[Row]]:
        while page := self.session.run(partial(self._page, last_key=last_key)):
            yield page
            last_key = page[-1][0]

    def _page(self, connection: Connection, *, last_key: str | None) -> list[Row]:
        """Read the next rows, as many as their texts' bytes allow."""
        key = sql.Identifier(self.old.key)
        after = sql.SQL("")
        if last_key is not None:
            after = sql.SQL("WHERE {} > {}::{}").format(
                key, sql.Literal(last_key), self.old.key_type
            )
        query = sql.SQL(
            "SELECT key::text, content, headings FROM (SELECT *, sum(octet_length(content)) "
            "OVER (ORDER BY key) - octet_length(content) AS before FROM (SELECT {key} AS key, "
            "{content} AS content, {headings} AS headings FROM {table} {after} ORDER BY {key} "
            "LIMIT {rows}) AS next) AS n WHERE before < {bytes} ORDER BY n.key"
        ).format(
            key=key,
            content=sql.Identifier(self.job.table.layout.content),
            headings=self._headings(),
            table=self.job.table.identifier,
            after=after,
            rows=PAGE_ROWS,
            bytes=PAGE_BYTES,
        )
        return [_row(*row) for row in connection.execute(query)]

    def _headings(self) -> sql.Composable:
        """Return the expression of a row's headings as JSON; NULL where they are not embedded."""
        if self.job.context == "none":
            return sql.SQL("NULL::json")
        column = escaped_identifier(self.job.table.layout.metadata)
        return sql.SQL("{} -> {}").format(column, sql.Literal(HEADINGS))

    def _take_out(self, connection: Connection, *, keys: Sequence[str]) -> list[Row]:
        """Delete rows from the successor, and return those that still exist in the table."""
        self._delete(connection, keys)
        key, content = escaped_identifier(self.old.key), self.job.table.layout.content
        query = sql.SQL("SELECT {}::text, {}, {} FROM {} WHERE {} = ANY(%s::{}[])").format(
            key,
            sql.Identifier(content),
            self._headings(),
            self.job.table.escaped_identifier,
            key,
            self.old.key_type,
        )
        return [_row(*row) for row in connection.execute(query, (list(keys),))]

    def _delete(self, connection: Connection, keys: Sequence[str]) -> None:
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE {} = ANY(%s::{}[])").format(
                self.job.successor.escaped_identifier,
                escaped_identifier(self.old.key),
                self.old.key_type,
            ),
            (list(keys),),
        )

    def _insert(self, connection: Connection, vectors: Sequence[tuple[str, Vector]]) -> None:
        insert_rows(connection, self.job.table, self.old, self.job.successor, vectors)

    def _embed(self, pages: Iterable[Sequence[Row]]) -> Generator[tuple[str, Vector]]:
        """Yield each key with the vector of its text, in order; record which are refused."""
        keys: dict[int, str] = {}

        def texts() -> Iterator[str]:
            index = 0
            for page in pages:
                for key, text in page:
                    keys[index] = key
                    index += 1
                    yield text

        def record_failure(index: int, error: EmbeddingError) -> None:
            self.failed[keys.pop(index)] = error

        instruction = self.job.options.gateway.instruction
        vectors = self.client.iter_embed(
            texts(),
            input_type="query" if instruction else "document",
            instruction=instruction,
            on_failure=record_failure,
        )
        for index, vector in vectors:
            yield keys.pop(index), vector


def _row(key: str, text: str, headings: object) -> Row:
    """Return a row with its text as it is embedded."""
    path = cast("list[object]", headings) if isinstance(headings, list) else []
    return key, with_context(context_of([each for each in path if isinstance(each, str)]), text)


def record_differences(connection: Connection, job: Job, old: OldTable) -> None:
    """Record the rows that one of the two tables lacks, for whatever reason, as changes."""
    query = sql.SQL(
        "SELECT coalesce(o.{key}, n.{key})::text FROM {old} o FULL JOIN {new} n USING ({key}) "
        "WHERE o.{key} IS NULL OR n.{key} IS NULL"
    ).format(key=sql.Identifier(old.key), old=job.table.identifier, new=job.successor.identifier)
    add_changes(connection, job.table_id, [row[0] for row in connection.execute(query)])
