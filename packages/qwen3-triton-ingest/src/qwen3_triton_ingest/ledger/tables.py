"""One embedding space per table, and one load at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import psycopg
from psycopg import sql

from ..database import Connection, connect, keep_trying
from ..errors import BusyError, FingerprintError, TableError
from ..layouts import Table

# The first key of the advisory locks of this package; the second is the table's id in the ledger.
# Any number would do: "Qwen" in ASCII.
_LOCK_CLASS = 0x5177656E
# Serialises the creation of the ledger, which `IF NOT EXISTS` alone does not.
_CREATION_LOCK = 0
_LEDGER_TABLES = 5


@dataclass(frozen=True, slots=True)
class Space:
    """Name an embedding space, and how texts come into it."""

    fingerprint: str
    model: str
    dimensions: int
    instruction: str | None = None
    """With which texts are embedded as queries; None where they are embedded as documents."""


@dataclass(frozen=True, slots=True)
class TableRecord:
    """Hold what the ledger knows of a table."""

    id: int
    layout: str
    space: Space


def create_ledger(connection: Connection) -> None:
    """Create the schema `qwen3_ingest` and its tables where they are missing.

    Raises:
        TableError: This user may not create or use them.
    """
    statements = (files(__package__ or "") / ".." / "ledger_schema.sql").read_text("utf-8")
    user = connection.info.user
    try:
        with connection.transaction():
            connection.execute(
                "SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK_CLASS, _CREATION_LOCK)
            )
            if _ledger_exists(connection):
                return
            connection.execute(statements)  # pyright: ignore[reportArgumentType, reportCallIssue] - our own file
    except psycopg.errors.InsufficientPrivilege as error:
        msg = (
            f"the user `{user}` may not create the schema `qwen3_ingest`, where the ledger is "
            f"kept ({error.diag.message_primary}). As the database's owner run: GRANT CREATE ON "
            f'DATABASE "{connection.info.dbname}" TO "{user}"'
        )
        raise TableError(msg) from None


def find_record(connection: Connection, table: Table) -> TableRecord | None:
    """Return what the ledger knows of a table; None if it never heard of it."""
    row = connection.execute("SELECT to_regclass('qwen3_ingest.tables')").fetchone()
    if row is None or row[0] is None:
        return None
    row = connection.execute(
        "SELECT id, layout, fingerprint, model, dimensions, instruction "
        "FROM qwen3_ingest.tables WHERE schema_name = %s AND table_name = %s",
        (table.schema, table.name),
    ).fetchone()
    return TableRecord(row[0], row[1], Space(*row[2:])) if row else None


def claim_table(
    connection: Connection, table: Table, space: Space, *, adopt: bool = False
) -> TableRecord:
    """Return the table's record; make it where the table is empty or vouched for by `adopt`.

    A table that was dropped or emptied since begins anew, whatever the ledger says of it.

    Raises:
        FingerprintError: The table's vectors are of another embedding space.
        TableError: The table has rows that this ledger knows nothing of.
    """
    with connection.transaction():
        record = find_record(connection, table)
        if record is not None and _was_emptied(connection, table, record):
            connection.execute("DELETE FROM qwen3_ingest.tables WHERE id = %s", (record.id,))
            record = None
        if record is None:
            if not adopt and _has_rows(connection, table):
                msg = (
                    f"the table {table} has rows whose embedding space is not known. If the "
                    "gateway's present model made them, say so with `--adopt`; else load into "
                    "another `--table`"
                )
                raise TableError(msg)
            connection.execute(
                "INSERT INTO qwen3_ingest.tables (schema_name, table_name, layout, fingerprint, "
                "model, dimensions, instruction) VALUES (%s, %s, %s, %s, %s, %s, %s) "
                "ON CONFLICT DO NOTHING",
                (
                    *(table.schema, table.name, table.layout.name),
                    *(space.fingerprint, space.model, space.dimensions, space.instruction),
                ),
            )
            record = find_record(connection, table)
            assert record is not None
    check_space(table, record.space, space)
    return record


def check_space(table: Table, stored: Space, offered: Space) -> None:
    """Compare the embedding space of a table with that of new vectors.

    Raises:
        FingerprintError: They are different.
    """
    if stored.fingerprint != offered.fingerprint:
        msg = (
            f"the vectors of {table} are of the embedding space `{stored.fingerprint}` (model "
            f"{stored.model}, {stored.dimensions} dimensions) and the gateway now serves "
            f"`{offered.fingerprint}` (model {offered.model}, {offered.dimensions} dimensions). "
            "Vectors of the two cannot be compared. Serve the former model again, load into "
            "another `--table`, or move the whole table to the new model with `--reembed`"
        )
        raise FingerprintError(msg)
    if stored.instruction != offered.instruction:
        msg = (
            f"the texts of {table} were embedded with the instruction {stored.instruction!r}, not "
            f"{offered.instruction!r}. Give the former `--instruction`, load into another "
            "`--table`, or change the whole table with `--reembed`"
        )
        raise FingerprintError(msg)


class TableHold:
    """Keep other loads away from a table for as long as this object is open.

    An advisory lock on a connection of its own: it ends with this process, however that ends.
    """

    def __init__(
        self, dsn: str, record: TableRecord, table: Table, *, retry_seconds: float
    ) -> None:
        """Take hold.

        Raises:
            BusyError: Another load has hold of the table.
            DatabaseError: PostgreSQL stayed away.
        """
        self._dsn = dsn
        self._record = record
        self._table = table
        self._retry_seconds = retry_seconds
        self._connection = keep_trying(self._take, seconds=retry_seconds)

    def renew(self, on_pause: Callable[[str], None] | None = None) -> None:
        """Take hold again if the connection was lost.

        Raises:
            BusyError: Another load took hold meanwhile.
            DatabaseError: PostgreSQL stayed away.
        """
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self._connection.close()
            self._connection = keep_trying(
                self._take, seconds=self._retry_seconds, on_pause=on_pause
            )

    def close(self) -> None:
        """Let go."""
        self._connection.close()

    def __enter__(self) -> TableHold:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> Connection:
        connection = connect(self._dsn, autocommit=True)
        row = connection.execute(
            "SELECT pg_try_advisory_lock(%s, %s)", (_LOCK_CLASS, self._record.id)
        ).fetchone()
        if row and row[0]:
            return connection
        holder = _holder(connection, self._record.id)
        connection.close()
        msg = (
            f"another load is at work on {self._table}{holder}. Wait until it has ended, or end "
            "it; what it did stays and is not done twice"
        )
        raise BusyError(msg)


def _holder(connection: Connection, record_id: int) -> str:
    row = connection.execute(
        "SELECT coalesce(host(a.client_addr), 'this machine'), a.backend_start::timestamptz(0) "
        "FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' "
        "AND l.classid = %s AND l.objid = %s AND l.granted",
        (_LOCK_CLASS, record_id),
    ).fetchone()
    return f" (from {row[0]}, since {row[1]})" if row else ""


def _ledger_exists(connection: Connection) -> bool:
    row = connection.execute(
        "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'qwen3_ingest' AND c.relkind = 'r'"
    ).fetchone()
    return row is not None and row[0] >= _LEDGER_TABLES


def _was_emptied(connection: Connection, table: Table, record: TableRecord) -> bool:
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM qwen3_ingest.documents WHERE table_id = %s)", (record.id,)
    ).fetchone()
    return bool(row and row[0]) and not _has_rows(connection, table)


def _has_rows(connection: Connection, table: Table) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table.identifier)
    row = connection.execute(query).fetchone()
    return bool(row and row[0])
