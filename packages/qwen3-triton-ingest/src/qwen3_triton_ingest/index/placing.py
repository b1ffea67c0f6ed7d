"""Names of indexes: which is free, and giving the name to the one that is ready."""

from __future__ import annotations

from psycopg import sql

from ..database import Connection
from ..layouts import Table, fit_name
from ..short_locks import with_short_lock
from .catalog import find_vector_indexes

__all__ = ["drop_if_there", "final_name", "put_in_place"]


def final_name(connection: Connection, table: Table, wanted: str) -> str:
    """Return the name, or one with a number if something else bears it."""
    name, number = wanted, 1
    while True:
        row = connection.execute(
            "SELECT i.indrelid = to_regclass(%s) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "LEFT JOIN pg_index i ON i.indexrelid = c.oid WHERE n.nspname = %s AND c.relname = %s",
            (table.identifier.as_string(connection), table.schema, name),
        ).fetchone()
        if row is None or row[0]:
            return name
        name, number = fit_name(wanted, f"_{number}"), number + 1


def put_in_place(
    connection: Connection, table: Table, temporary: str, name: str, *, replaces: bool
) -> None:
    """Give the new index its name, and drop those that it makes needless."""
    indexes = find_vector_indexes(connection, table)
    new = next((index for index in indexes if index.name == temporary), None)
    needless = [
        index.name
        for index in indexes
        if replaces
        and new
        and index.name != temporary
        and (index.method, index.expression, index.opclass)
        == (new.method, new.expression, new.opclass)
    ]

    def swap() -> None:
        for old in {*needless, name}:
            connection.execute(
                sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(table.schema, old))
            )
        rename = sql.SQL("ALTER INDEX {} RENAME TO {}")
        connection.execute(
            rename.format(sql.Identifier(table.schema, temporary), sql.Identifier(name))
        )

    with_short_lock(connection, swap, what=f"an index of {table}")


def drop_if_there(connection: Connection, table: Table, name: str) -> None:
    """Drop what a former build left under its temporary name."""
    row = connection.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s",
        (table.schema, name),
    ).fetchone()
    if row is not None:
        drop = sql.SQL("DROP INDEX {}").format(sql.Identifier(table.schema, name))
        with_short_lock(connection, lambda: connection.execute(drop), what=f"an index of {table}")
