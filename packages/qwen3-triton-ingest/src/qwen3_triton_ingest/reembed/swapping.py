"""The swap: one short transaction, after which the successor is the table."""

from __future__ import annotations

from importlib.resources import files

import psycopg
from psycopg import sql

from ..database import Connection, explain
from ..errors import TableError
from ..layouts import Table
from .anatomy import Anatomy
from .job import Job
from .successor import temporary_name

__all__ = ["check_foreign_keys", "lock_out_readers", "lock_out_writers", "swap"]


def lock_out_writers(connection: Connection, table: Table) -> None:
    """Keep writers off the table until the transaction ends; readers go on."""
    lock = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table.identifier)
    connection.execute(lock)


def lock_out_readers(connection: Connection, table: Table, successor: Table) -> None:
    """Keep everybody off both tables until the transaction ends."""
    for each in (table, successor):
        connection.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(each.identifier)
        )


def swap(connection: Connection, job: Job, anatomy: Anatomy) -> None:
    """Put the successor in the table's place, in the caller's transaction, under its locks.

    It takes over names, owner, rights, sequences, comments, triggers, foreign keys and policies,
    and the ledger says of which embedding space the table's vectors are now.

    Raises:
        TableError: Something came to depend on the table meanwhile.
    """
    table, successor = job.table, job.successor
    successor_oid = _oid(connection, successor)
    statements = _carried_over(connection, anatomy.oid, successor_oid)
    _take_owner(connection, anatomy.oid, successor)
    renames = _take_sequences(connection, anatomy.oid, successor)
    try:
        connection.execute(sql.SQL("DROP TABLE {}").format(table.identifier))
    except psycopg.errors.DependentObjectsStillExist as error:
        msg = (
            f"{table} cannot be replaced: {explain(error)}. Drop what came to depend on it, run "
            "the same again, which has little left to do, and create it anew"
        )
        raise TableError(msg) from None
    rename = sql.SQL("ALTER TABLE {} RENAME TO {}")
    connection.execute(rename.format(successor.identifier, sql.Identifier(table.name)))
    for index in anatomy.indexes:
        renames.append((temporary_name(index), index.name, "INDEX"))
    for former, name, kind in renames:
        connection.execute(
            sql.SQL("ALTER {} {} RENAME TO {}").format(
                sql.SQL("INDEX" if kind == "INDEX" else "SEQUENCE"),
                sql.Identifier(table.schema, former),
                sql.Identifier(name),
            )
        )
    for statement in statements:
        connection.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue] - the server's own text
    _update_ledger(connection, job)


def check_foreign_keys(connection: Connection, table: Table) -> None:
    """Check the foreign keys that the swap could not, without shutting anybody out."""
    rows = connection.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(%s) AND contype = 'f' "
        "AND NOT convalidated",
        (table.identifier.as_string(connection),),
    ).fetchall()
    for (name,) in rows:
        validate = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}")
        connection.execute(validate.format(table.identifier, sql.Identifier(name)))


def _carried_over(connection: Connection, old: int, new: int) -> list[str]:
    query = (files(__package__ or "") / "carried_over.sql").read_text("utf-8")
    rows = connection.execute(query, {"old": old, "new": new})  # pyright: ignore[reportArgumentType, reportCallIssue] - our own file
    return [row[0] for row in rows]


def _take_owner(connection: Connection, old: int, successor: Table) -> None:
    row = connection.execute(
        "SELECT r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = %s",
        (old,),
    ).fetchone()
    if row is not None:
        change = sql.SQL("ALTER TABLE {} OWNER TO {}")
        connection.execute(change.format(successor.identifier, sql.Identifier(row[0])))


def _take_sequences(
    connection: Connection, old: int, successor: Table
) -> list[tuple[str, str, str]]:
    """Save the old table's sequences from its end. Returns those to rename, as former and name."""
    renames: list[tuple[str, str, str]] = []
    rows = connection.execute(
        "SELECT n.nspname, s.relname, a.attname, d.deptype = 'i', "
        "pg_get_serial_sequence(%s, a.attname)::regclass::oid::bigint "
        "FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' "
        "JOIN pg_namespace n ON n.oid = s.relnamespace "
        "JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid "
        "WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass "
        "AND d.refobjid = %s AND d.deptype IN ('a', 'i')",
        (successor.identifier.as_string(connection), old),
    ).fetchall()
    for schema, name, column, is_identity, own in rows:
        sequence = sql.Identifier(schema, name)
        if is_identity:  # LIKE made one of its own, which goes on where the old one stands
            connection.execute(
                sql.SQL("SELECT setval({}::oid::regclass, last_value, is_called) FROM {}").format(
                    sql.Literal(own), sequence
                )
            )
            former = connection.execute(
                "SELECT relname FROM pg_class WHERE oid = %s", (own,)
            ).fetchone()
            if former is not None:
                renames.append((former[0], name, "SEQUENCE"))
        else:
            connection.execute(
                sql.SQL("ALTER SEQUENCE {} OWNED BY {}.{}").format(
                    sequence, successor.identifier, sql.Identifier(column)
                )
            )
    return renames


def _update_ledger(connection: Connection, job: Job) -> None:
    space, table_id = job.space, job.table_id
    connection.execute(
        "UPDATE qwen3_ingest.tables SET fingerprint = %s, model = %s, dimensions = %s, "
        "instruction = %s WHERE id = %s",
        (space.fingerprint, space.model, space.dimensions, space.instruction, table_id),
    )
    connection.execute("DELETE FROM qwen3_ingest.reembeds WHERE table_id = %s", (table_id,))


def _oid(connection: Connection, table: Table) -> int:
    row = connection.execute(
        "SELECT to_regclass(%s)::oid::bigint", (table.identifier.as_string(connection),)
    ).fetchone()
    if row is None or row[0] is None:
        raise TableError(f"the table {table} is gone")
    return row[0]
