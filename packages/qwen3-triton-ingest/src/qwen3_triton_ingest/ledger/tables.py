"""One embedding space per table, and one load at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from ..config import Context
from ..database import Connection, change_settings, connect, keep_trying, neutral_settings
from ..errors import BusyError, FingerprintError, TableError
from ..layouts import Table
from .schema import LOCK_CLASS, ledger_version

# The first version of the ledger in which tables have a context.
_CONTEXT_VERSION = 5

# The connection that holds a table, by its number. Every role sees the database of any connection.
_HELD = (
    "FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' "
    "AND l.classid = %s AND l.objid = %s AND l.granted AND a.datname = current_database()"
)


@dataclass(frozen=True, slots=True)
class Space:
    """An embedding space, and how texts are embedded into it.

    Attributes:
        instruction: The instruction that texts are embedded with as queries; None where they are
            embedded as documents.
    """

    fingerprint: str
    model: str
    dimensions: int
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class TableRecord:
    """What the ledger knows of a table.

    Attributes:
        context: What precedes its chunks when they are embedded.
    """

    id: int
    layout: str
    space: Space
    context: Context = "none"


def find_record(connection: Connection, table: Table) -> TableRecord | None:
    """Return the ledger's record of a table, None if there is none.

    Raises:
        TableError: A newer program made the ledger.
    """
    version = ledger_version(connection)
    if version is None:
        return None
    context = "context" if version >= _CONTEXT_VERSION else "'none'"  # searches migrate nothing
    row = connection.execute(
        f"SELECT id, layout, {context}, fingerprint, model, dimensions, instruction "
        "FROM qwen3_ingest.tables WHERE schema_name = %s AND table_name = %s",
        (table.schema, table.name),
    ).fetchone()
    return TableRecord(row[0], row[1], Space(*row[3:]), row[2]) if row else None


def claim_table(
    connection: Connection,
    table: Table,
    space: Space,
    *,
    adopt: bool = False,
    context: Context | None = None,
) -> TableRecord:
    """Return the table's record; create it if the table is empty or `adopt` vouches for its rows.

    A table that was dropped or emptied starts from scratch, whatever its record says. It gets the
    context, or keeps its own if that is None. New tables have headings as context, and adopted ones
    none, as their rows.

    Raises:
        FingerprintError: The table's vectors are from another embedding space.
        TableError: The table has rows that this ledger knows nothing of.
    """
    with connection.transaction():
        record = find_record(connection, table)
        if record is not None and _was_emptied(connection, table, record):
            connection.execute("DELETE FROM qwen3_ingest.tables WHERE id = %s", (record.id,))
            record = None
        if record is None:
            has_rows = _has_rows(connection, table)
            if not adopt and has_rows:
                msg = (
                    f"The table {table} has rows from an unknown embedding space. If the model "
                    "that the gateway serves now made their vectors, load with `--adopt`; "
                    "otherwise load into another `--table`."
                )
                raise TableError(msg)
            connection.execute(
                "INSERT INTO qwen3_ingest.tables (schema_name, table_name, layout, context, "
                "fingerprint, model, dimensions, instruction) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (
                    *(table.schema, table.name, table.layout.name),
                    "none" if has_rows else "headings",
                    *(space.fingerprint, space.model, space.dimensions, space.instruction),
                ),
            )
            record = find_record(connection, table)
            assert record is not None
    check_space(table, record.space, space)
    if context is None or context == record.context:
        return record
    connection.execute(
        "UPDATE qwen3_ingest.tables SET context = %s WHERE id = %s", (context, record.id)
    )
    return replace(record, context=context)


def check_space(table: Table, stored: Space, offered: Space) -> None:
    """Check that new vectors are from the embedding space of a table.

    Raises:
        FingerprintError: They are not.
    """
    if stored.fingerprint != offered.fingerprint:
        msg = (
            f"The vectors of {table} are from the embedding space `{stored.fingerprint}` (model "
            f"{stored.model}, {stored.dimensions} dimensions), and the gateway now serves "
            f"`{offered.fingerprint}` (model {offered.model}, {offered.dimensions} dimensions). "
            "Vectors from the two cannot be compared. Serve the previous model again, load into "
            "another `--table`, or move the whole table to the new model with `--reembed`."
        )
        raise FingerprintError(msg)
    if stored.instruction != offered.instruction:
        msg = (
            f"The texts of {table} were embedded with the instruction {stored.instruction!r}, not "
            f"{offered.instruction!r}. Pass the previous `--instruction`, load into another "
            "`--table`, or re-embed the whole table with `--reembed`."
        )
        raise FingerprintError(msg)


class TableHold:
    """The exclusive right to load a table, for as long as this object is open.

    It is an advisory lock of a transaction on a connection of its own, so it ends with this process
    in any case. A lock of the session would stay behind with a pooler. The transaction is idle and
    has no snapshot, so it keeps nothing from being vacuumed.
    """

    def __init__(
        self, dsn: str, record: TableRecord, table: Table, *, retry_seconds: float
    ) -> None:
        """Take the lock.

        Raises:
            BusyError: Another load holds the table.
            DatabaseError: PostgreSQL stayed unavailable.
        """
        self._dsn = dsn
        self._record = record
        self._table = table
        self._retry_seconds = retry_seconds
        self._connection = keep_trying(self._take, seconds=retry_seconds)

    def renew(self, on_pause: Callable[[str], None] | None = None) -> None:
        """Take the lock again if the connection was lost.

        Raises:
            BusyError: Another load took it in the meantime.
            DatabaseError: PostgreSQL stayed unavailable.
        """
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self._connection.close()
            self._connection = keep_trying(
                self._take, seconds=self._retry_seconds, on_pause=on_pause
            )

    def close(self) -> None:
        """Release the lock."""
        with contextlib.suppress(psycopg.Error):
            self._connection.rollback()
        self._connection.close()

    def __enter__(self) -> TableHold:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> Connection:
        connection = connect(self._dsn, autocommit=True)
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        change_settings(connection, neutral_settings(connection))
        row = connection.execute(
            "SELECT pg_try_advisory_xact_lock(%s, %s)", (LOCK_CLASS, self._record.id)
        ).fetchone()
        if row and row[0]:
            return connection
        holder = _holder(connection, self._record.id)
        connection.close()
        msg = (
            f"Another load is running on {self._table}{holder}. Wait until it has ended, or stop "
            "it: what it wrote stays and is not written again."
        )
        raise BusyError(msg)


def is_held(connection: Connection, table_id: int) -> bool:
    """Return whether a load holds a table; true on a standby, which cannot know."""
    row = connection.execute(
        f"SELECT pg_is_in_recovery() OR EXISTS (SELECT {_HELD})",
        (LOCK_CLASS, table_id),
    ).fetchone()
    return bool(row and row[0])


def _holder(connection: Connection, table_id: int) -> str:
    row = connection.execute(
        "SELECT coalesce(host(a.client_addr), 'this machine'), a.backend_start::timestamptz(0) "
        + _HELD,
        (LOCK_CLASS, table_id),
    ).fetchone()
    # PostgreSQL shows neither of another role's connection.
    return f" (from {row[0]}, since {row[1]})" if row and row[1] else ""


def _was_emptied(connection: Connection, table: Table, record: TableRecord) -> bool:
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM qwen3_ingest.documents WHERE table_id = %s)", (record.id,)
    ).fetchone()
    return bool(row and row[0]) and not _has_rows(connection, table)


def _has_rows(connection: Connection, table: Table) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table.identifier)
    row = connection.execute(query).fetchone()
    return bool(row and row[0])
