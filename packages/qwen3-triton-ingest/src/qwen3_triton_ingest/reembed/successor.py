"""The new table: created like the old one, given its rows and indexes, and put in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import psycopg
from psycopg import sql

from qwen3_triton_client import Vector

from .. import queries
from ..config import IndexOptions
from ..database import Connection, connect, explain, unlimited
from ..errors import TableError
from ..index.build import OnIndexProgress, OnNotice, build_index, set_for_build
from ..layouts import Table, fit_name
from ..rows.binary import copy_stream, pack_vector
from .old_table import OldIndex, OldTable

SUFFIX = "__reembed"
# The comment distinguishes a successor from another table that happens to have its name.
MARK = "Made by qwen3-triton-ingest --reembed, which puts it in the place of another table"
_STAGE = "qwen3_ingest_stage"


def successor_of(table: Table, dimensions: int) -> Table:
    """Return the name and shape of the table that will take this one's place."""
    return replace(table, name=fit_name(table.name, SUFFIX), dimensions=dimensions)


def create_successor(connection: Connection, table: Table, old: OldTable, successor: Table) -> None:
    """Create an empty table like the old one, with its primary key and no other index."""
    for statement in (
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES)").format(
            successor.identifier, table.identifier
        ),
        sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {}").format(
            successor.identifier, sql.Identifier(table.layout.embedding), _vector_type(successor)
        ),
        sql.SQL("COMMENT ON TABLE {} IS {}").format(successor.identifier, sql.Literal(MARK)),
    ):
        connection.execute(statement)
    primary = next(index for index in old.indexes if index.is_primary)
    _add_constraint(connection, successor, primary)


def drop_successor(connection: Connection, successor: Table) -> None:
    """Drop what an abandoned re-embedding has filled.

    Raises:
        TableError: A table of that name was not made by a re-embedding.
    """
    row = connection.execute(
        "SELECT obj_description(to_regclass(%s), 'pg_class'), to_regclass(%s) IS NOT NULL",
        [successor.identifier.as_string(connection)] * 2,
    ).fetchone()
    if row is not None and row[1] and row[0] != MARK:
        msg = f"Re-embedding needs the name {successor}, which another table has. Rename that one."
        raise TableError(msg)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(successor.identifier))


def insert_rows(
    connection: Connection,
    table: Table,
    old: OldTable,
    successor: Table,
    vectors: Sequence[tuple[str, Vector]],
) -> None:
    """Copy rows of the old table, each with a new vector and everything else as it is now.

    Args:
        connection: In whose transaction it happens.
        table: The old table.
        old: Its description.
        successor: The new table.
        vectors: Key, as text, and vector of each row. Rows that no longer exist are left out.
    """
    stage = sql.Identifier(_STAGE)
    connection.execute(
        sql.SQL(
            "CREATE TEMPORARY TABLE IF NOT EXISTS {} (key text, embedding {}) ON COMMIT DROP"
        ).format(stage, sql.Identifier(table.vector_schema, "vector"))
    )
    copy = sql.SQL("COPY {} (key, embedding) FROM STDIN (FORMAT binary)").format(stage)
    with connection.cursor().copy(copy) as stream:
        for block in copy_stream((key.encode(), pack_vector(vector)) for key, vector in vectors):
            stream.write(block)
    connection.execute(
        sql.SQL(
            "INSERT INTO {} ({}, {}) SELECT {}, s.embedding::{} "
            "FROM {} s JOIN {} o ON o.{} = s.key::{}"
        ).format(
            successor.identifier,
            sql.SQL(", ").join(map(sql.Identifier, old.copied_columns)),
            sql.Identifier(table.layout.embedding),
            sql.SQL(", ").join(sql.Identifier("o", name) for name in old.copied_columns),
            _vector_type(successor),
            stage,
            table.identifier,
            sql.Identifier(old.key),
            old.key_type,
        )
    )


def has_same_columns(connection: Connection, table: Table, successor: Table) -> bool:
    """Return whether both tables have the same columns, apart from the vectors' length."""
    query = (
        "SELECT array_agg((attname, atttypid, CASE attname WHEN %s THEN 0 ELSE atttypmod END, "
        "attnotnull, attgenerated)::text ORDER BY attnum) FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
    )
    names = [each.identifier.as_string(connection) for each in (table, successor)]
    old, new = (
        connection.execute(query, (table.layout.embedding, name)).fetchone() for name in names
    )
    return old == new


def has_all_indexes(connection: Connection, old: OldTable, successor: Table) -> bool:
    """Return whether each index of the old table has its counterpart."""
    existing = _index_names(connection, successor)
    return all(_temporary_name(index) in existing for index in old.indexes)


def build_missing_indexes(
    dsn: str,
    old: OldTable,
    successor: Table,
    options: IndexOptions,
    *,
    on_progress: OnIndexProgress | None = None,
    on_notice: OnNotice | None = None,
) -> None:
    """Build the indexes that the old table has, vector indexes last.

    Raises:
        psycopg.OperationalError: The connection was lost; what was built stays.
    """
    with connect(dsn, autocommit=True) as connection:
        with unlimited(connection):
            existing = _index_names(connection, successor)
        missing = [index for index in old.indexes if _temporary_name(index) not in existing]
        for index in missing:
            with connection.transaction():
                set_for_build(connection, {})
                if index.constraint is not None:
                    _add_constraint(connection, successor, index)
                elif not index.is_vector:
                    name = _temporary_name(index)
                    connection.execute(index.statement.compose(successor, name))
        with unlimited(connection):
            connection.execute(sql.SQL("ANALYZE {}").format(successor.identifier))
    alone = replace(options, concurrently=False)  # nobody else uses the table
    for index in missing:
        if index.is_vector:
            build_index(
                dsn,
                successor,
                replace(index.statement, name=_temporary_name(index)),
                alone,
                replaces=False,
                on_progress=on_progress,
                on_notice=on_notice,
            )


def put_in_place(connection: Connection, table: Table, old: OldTable, successor: Table) -> None:
    """Drop the old table and give its name, and everything else it had, to the new one.

    It happens in the caller's transaction and locks both tables until that ends.

    Raises:
        TableError: Something has come to depend on the old table.
    """
    for each in (table, successor):
        lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE")
        connection.execute(lock.format(each.identifier))
    row = connection.execute(
        "SELECT to_regclass(%s)::oid::bigint", (successor.identifier.as_string(connection),)
    ).fetchone()
    oids = {"old": old.oid, "new": row and row[0]}
    statements = [row[0] for row in connection.execute(queries.LEFT_OUT_BY_LIKE, oids)]
    _take_owner(connection, old.oid, successor)
    _take_sequences(connection, old.oid, successor)
    try:
        connection.execute(sql.SQL("DROP TABLE {}").format(table.identifier))
    except psycopg.errors.DependentObjectsStillExist as error:
        msg = (
            f"{table} cannot be replaced: {explain(error)}. Drop what has come to depend on it, "
            "run the same command again, which has little left to do, and create it again."
        )
        raise TableError(msg) from None
    rename = sql.SQL("ALTER {} {} RENAME TO {}")
    connection.execute(
        rename.format(sql.SQL("TABLE"), successor.identifier, sql.Identifier(table.name))
    )
    for index in old.indexes:
        former = sql.Identifier(table.schema, _temporary_name(index))
        connection.execute(rename.format(sql.SQL("INDEX"), former, sql.Identifier(index.name)))
    for statement in statements:
        connection.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue] - the server's own text


def _take_owner(connection: Connection, old: int, successor: Table) -> None:
    row = connection.execute(
        "SELECT r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = %s",
        (old,),
    ).fetchone()
    if row is not None:
        change = sql.SQL("ALTER TABLE {} OWNER TO {}")
        connection.execute(change.format(successor.identifier, sql.Identifier(row[0])))


def _take_sequences(connection: Connection, old: int, successor: Table) -> None:
    """Keep the sequences of serial columns from being dropped with the old table."""
    rows = connection.execute(
        "SELECT n.nspname, s.relname, a.attname "
        "FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' "
        "JOIN pg_namespace n ON n.oid = s.relnamespace "
        "JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid "
        "WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass "
        "AND d.refobjid = %s AND d.deptype = 'a'",
        (old,),
    ).fetchall()
    for schema, name, column in rows:
        connection.execute(
            sql.SQL("ALTER SEQUENCE {} OWNED BY {}.{}").format(
                sql.Identifier(schema, name), successor.identifier, sql.Identifier(column)
            )
        )


def _temporary_name(index: OldIndex) -> str:
    """Return the name that an index has until it can take the old one's."""
    return fit_name(index.name, SUFFIX)


def _vector_type(table: Table) -> sql.Composed:
    return sql.SQL("{}({})").format(
        sql.Identifier(table.vector_schema, table.vector_type), table.dimensions
    )


def _add_constraint(connection: Connection, successor: Table, index: OldIndex) -> None:
    definition = sql.SQL(index.constraint or "")  # pyright: ignore[reportArgumentType] - the server's own text
    connection.execute(
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
            successor.identifier, sql.Identifier(_temporary_name(index)), definition
        )
    )


def _index_names(connection: Connection, table: Table) -> set[str]:
    rows = connection.execute(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE i.indisvalid AND i.indrelid = to_regclass(%s)",
        (table.identifier.as_string(connection),),
    )
    return {row[0] for row in rows}
