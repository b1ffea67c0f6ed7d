"""How far a re-embedding is, stored in the ledger so that it can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from ..database import Connection, with_short_lock
from ..layouts import Table
from ..ledger.tables import Space

# Row changes, and truncation.
TRIGGERS = ("qwen3_ingest_reembed", "qwen3_ingest_reembed_truncate")


@dataclass(frozen=True, slots=True)
class State:
    """The target of a re-embedding and how far it is.

    Attributes:
        last_key: Key of the last row that has its new vector, as text.
        filled: Whether every row that existed at the start has been passed.
    """

    space: Space
    last_key: str | None
    filled: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A row to be embedded again; without a key, all of them."""

    id: int
    key: str | None


def find_state(connection: Connection, table_id: int) -> State | None:
    """Return the state of a re-embedding that has begun, None if there is none."""
    row = connection.execute(
        "SELECT fingerprint, model, dimensions, instruction, last_key, filled "
        "FROM qwen3_ingest.reembeds WHERE table_id = %s",
        (table_id,),
    ).fetchone()
    return State(Space(*row[:4]), row[4], row[5]) if row else None


def start_tracking(
    connection: Connection, table: Table, key: str, table_id: int, space: Space
) -> None:
    """Begin a re-embedding: from now on a trigger records which rows others write.

    Raises:
        BusyError: The table was in use for too long.
    """
    arguments = sql.SQL("{}, {}").format(sql.Literal(str(table_id)), sql.Literal(key))
    function = sql.SQL("EXECUTE FUNCTION qwen3_ingest.note_reembed_change({})").format(arguments)
    events = (
        sql.SQL("INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW"),
        sql.SQL("TRUNCATE ON {} FOR EACH STATEMENT"),
    )

    def work() -> None:
        connection.execute(
            "INSERT INTO qwen3_ingest.reembeds "
            "(table_id, fingerprint, model, dimensions, instruction) VALUES (%s, %s, %s, %s, %s)",
            (table_id, space.fingerprint, space.model, space.dimensions, space.instruction),
        )
        for name, event in zip(TRIGGERS, events, strict=True):
            connection.execute(
                sql.SQL("CREATE TRIGGER {} AFTER {} {}").format(
                    sql.Identifier(name), event.format(table.identifier), function
                )
            )

    with_short_lock(connection, work, what=str(table))


def stop_tracking(connection: Connection, table: Table, table_id: int) -> None:
    """Delete a re-embedding's state, its recorded changes and its triggers."""
    for name in TRIGGERS:
        connection.execute(
            sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(
                sql.Identifier(name), table.identifier
            )
        )
    connection.execute("DELETE FROM qwen3_ingest.reembeds WHERE table_id = %s", (table_id,))


def save_position(
    connection: Connection, table_id: int, *, last_key: str | None = None, filled: bool = False
) -> None:
    """Save how far it is, in the transaction that writes the rows."""
    connection.execute(
        "UPDATE qwen3_ingest.reembeds SET last_key = coalesce(%s, last_key), filled = %s "
        "WHERE table_id = %s",
        (last_key, filled, table_id),
    )


def pending_changes(
    connection: Connection, table_id: int, *, without: Sequence[str], limit: int
) -> list[Change]:
    """Return rows to be embedded again, oldest change first.

    Args:
        connection: To the database.
        table_id: The table's id in the ledger.
        without: Keys of rows that cannot be embedded.
        limit: Most changes to return.
    """
    rows = connection.execute(
        "SELECT id, key FROM qwen3_ingest.reembed_changes WHERE table_id = %s "
        "AND (key IS NULL OR NOT key = ANY(%s)) ORDER BY id LIMIT %s",
        (table_id, list(without), limit),
    )
    return [Change(*row) for row in rows]


def add_changes(connection: Connection, table_id: int, keys: Sequence[str]) -> None:
    """Record rows to be embedded again."""
    connection.execute(
        "INSERT INTO qwen3_ingest.reembed_changes (table_id, key) "
        "SELECT %s, k FROM unnest(%s::text[]) k",
        (table_id, list(keys)),
    )


def delete_changes(connection: Connection, ids: Sequence[int]) -> None:
    """Delete changes that are done; later changes of the same rows stay."""
    connection.execute("DELETE FROM qwen3_ingest.reembed_changes WHERE id = ANY(%s)", (list(ids),))
