"""How far a re-embedding is, kept beside the ledger so that it can be gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from ..database import Connection, with_short_lock
from ..layouts import Table
from ..ledger.tables import Space

__all__ = [
    "Change",
    "State",
    "find_state",
    "forget_changes",
    "note_changes",
    "note_position",
    "open_changes",
    "start_noting",
    "stop_noting",
]

# Also known to `CARRIED_OVER`, which leaves them behind.
TRIGGER = "qwen3_ingest_reembed"
TRUNCATE_TRIGGER = "qwen3_ingest_reembed_truncate"


@dataclass(frozen=True, slots=True)
class State:
    """Say what a re-embedding aims at and how far it is."""

    space: Space
    last_key: str | None
    filled: bool


@dataclass(frozen=True, slots=True)
class Change:
    """Name a row that is to be embedded again; None stands for all."""

    id: int
    key: str | None


def find_state(connection: Connection, table_id: int) -> State | None:
    """Return what is known of a re-embedding that has begun; None if there is none."""
    row = connection.execute(
        "SELECT fingerprint, model, dimensions, instruction, last_key, filled "
        "FROM qwen3_ingest.reembeds WHERE table_id = %s",
        (table_id,),
    ).fetchone()
    return State(Space(*row[:4]), row[4], row[5]) if row else None


def start_noting(
    connection: Connection, table: Table, key: str, table_id: int, space: Space
) -> None:
    """Begin a re-embedding: from now on a trigger notes which rows others write.

    Raises:
        BusyError: The table was in use for too long.
    """
    arguments = sql.SQL("{}, {}").format(sql.Literal(str(table_id)), sql.Literal(key))
    function = sql.SQL("EXECUTE FUNCTION qwen3_ingest.note_reembed_change({})").format(arguments)

    def work() -> None:
        _insert_state(connection, table_id, space)
        rows = sql.SQL("CREATE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW {}")
        all_rows = sql.SQL("CREATE TRIGGER {} AFTER TRUNCATE ON {} FOR EACH STATEMENT {}")
        for statement, name in ((rows, TRIGGER), (all_rows, TRUNCATE_TRIGGER)):
            connection.execute(statement.format(sql.Identifier(name), table.identifier, function))

    with_short_lock(connection, work, what=str(table))


def stop_noting(connection: Connection, table: Table, table_id: int) -> None:
    """Forget a re-embedding: the state, the changes and the triggers."""
    for name in (TRIGGER, TRUNCATE_TRIGGER):
        connection.execute(
            sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(
                sql.Identifier(name), table.identifier
            )
        )
    connection.execute("DELETE FROM qwen3_ingest.reembeds WHERE table_id = %s", (table_id,))


def note_position(
    connection: Connection, table_id: int, *, last_key: str | None = None, filled: bool = False
) -> None:
    """Say, in the transaction that writes the rows, how far it is."""
    connection.execute(
        "UPDATE qwen3_ingest.reembeds SET last_key = coalesce(%s, last_key), filled = %s "
        "WHERE table_id = %s",
        (last_key, filled, table_id),
    )


def open_changes(
    connection: Connection, table_id: int, *, without: Sequence[str], limit: int
) -> list[Change]:
    """Return rows that are to be embedded again, those noted first before the others.

    Args:
        connection: To the database.
        table_id: The table's id in the ledger.
        without: Keys of rows that cannot be embedded.
        limit: Most to return.
    """
    rows = connection.execute(
        "SELECT id, key FROM qwen3_ingest.reembed_changes WHERE table_id = %s "
        "AND (key IS NULL OR NOT key = ANY(%s)) ORDER BY id LIMIT %s",
        (table_id, list(without), limit),
    )
    return [Change(*row) for row in rows]


def note_changes(connection: Connection, table_id: int, keys: Sequence[str]) -> None:
    """Note rows that are to be embedded again."""
    connection.execute(
        "INSERT INTO qwen3_ingest.reembed_changes (table_id, key) "
        "SELECT %s, k FROM unnest(%s::text[]) k",
        (table_id, list(keys)),
    )


def forget_changes(connection: Connection, ids: Sequence[int]) -> None:
    """Forget changes that are done; later ones of the same rows stay."""
    connection.execute("DELETE FROM qwen3_ingest.reembed_changes WHERE id = ANY(%s)", (list(ids),))


def _insert_state(connection: Connection, table_id: int, space: Space) -> None:
    connection.execute(
        "INSERT INTO qwen3_ingest.reembeds (table_id, fingerprint, model, dimensions, instruction) "
        "VALUES (%s, %s, %s, %s, %s)",
        (table_id, space.fingerprint, space.model, space.dimensions, space.instruction),
    )
