"""The table that takes another's place: made like it, filled elsewhere, given its indexes."""

from __future__ import annotations

from dataclasses import replace

from psycopg import sql

from ..config import IndexOptions
from ..database import Connection, connect
from ..errors import TableError
from ..index.build import OnIndexProgress, OnNotice, build_index, set_up_session
from ..index.plan import BuildStatement
from ..layouts import Table, fit_name
from .anatomy import Anatomy, OldIndex

__all__ = [
    "build_missing_indexes",
    "create_successor",
    "drop_successor",
    "has_all_indexes",
    "insert_from_stage",
    "key_type",
    "successor_of",
    "temporary_name",
]

SUFFIX = "__reembed"
# By its comment the successor is told from a table of that name that somebody needs.
MARK = "Made by qwen3-triton-ingest --reembed, which puts it in the place of another table"


def successor_of(table: Table, dimensions: int) -> Table:
    """Name the table that is to take this one's place."""
    return replace(table, name=fit_name(table.name, SUFFIX), dimensions=dimensions)


def temporary_name(index: OldIndex) -> str:
    """Return what an index is called until it can have the old one's name."""
    return fit_name(index.name, SUFFIX)


def create_successor(
    connection: Connection, table: Table, anatomy: Anatomy, successor: Table
) -> None:
    """Make an empty table like the old one, with its primary key and no other index.

    What `LIKE` leaves out (owner, rights, triggers, foreign keys, policies) is carried over at the
    swap, when the old table's name is free for the definitions.
    """
    kind = sql.SQL("UNLOGGED TABLE" if _is_unlogged(connection, anatomy.oid) else "TABLE")
    connection.execute(
        sql.SQL("CREATE {} {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES)").format(
            kind, successor.identifier, table.identifier
        )
    )
    column = sql.Identifier(table.layout.embedding)
    connection.execute(
        sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {}").format(
            successor.identifier, column, _vector_type(successor)
        )
    )
    comment = sql.SQL("COMMENT ON TABLE {} IS {}").format(successor.identifier, sql.Literal(MARK))
    connection.execute(comment)
    primary = next(index for index in anatomy.indexes if index.is_primary)
    _add_constraint(connection, successor, primary)


def drop_successor(connection: Connection, successor: Table) -> None:
    """Drop what a re-embedding that is given up has filled.

    A sequence that the old table owns stays, for the successor only uses it.

    Raises:
        TableError: A table of that name was not made by a re-embedding.
    """
    row = connection.execute(
        "SELECT obj_description(to_regclass(%s), 'pg_class'), to_regclass(%s) IS NOT NULL",
        [successor.identifier.as_string(connection)] * 2,
    ).fetchone()
    if row is not None and row[1] and row[0] != MARK:
        msg = f"re-embedding needs the name {successor}, which another table has: rename that"
        raise TableError(msg)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(successor.identifier))


def insert_from_stage(
    connection: Connection, table: Table, anatomy: Anatomy, successor: Table, stage: sql.Identifier
) -> None:
    """Copy the rows whose keys are staged, with the staged vectors and all else unchanged."""
    embedding = table.layout.embedding
    names = [name for name, _, computed in anatomy.columns if not computed and name != embedding]
    connection.execute(
        sql.SQL(
            "INSERT INTO {} ({}, {}) OVERRIDING SYSTEM VALUE SELECT {}, s.embedding::{} "
            "FROM {} s JOIN {} o ON o.{} = s.key::{}"
        ).format(
            successor.identifier,
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.Identifier(embedding),
            sql.SQL(", ").join(sql.Identifier("o", name) for name in names),
            _vector_type(successor),
            stage,
            table.identifier,
            sql.Identifier(anatomy.key),
            key_type(anatomy),
        )
    )


def key_type(anatomy: Anatomy) -> sql.SQL:
    """Return the type of the key as PostgreSQL writes it."""
    return sql.SQL(anatomy.key_type)  # pyright: ignore[reportArgumentType] - format_type's answer


def has_all_indexes(connection: Connection, anatomy: Anatomy, successor: Table) -> bool:
    """Tell whether each index of the old table has its like."""
    there = _index_names(connection, successor)
    return all(temporary_name(index) in there for index in anatomy.indexes)


def build_missing_indexes(
    dsn: str,
    anatomy: Anatomy,
    successor: Table,
    options: IndexOptions,
    *,
    on_progress: OnIndexProgress | None = None,
    on_notice: OnNotice | None = None,
) -> None:
    """Build the indexes that the old table has, those of vectors last.

    Raises:
        psycopg.OperationalError: The connection was lost; what was built stays.
    """
    with connect(dsn, autocommit=True) as connection:
        set_up_session(connection)
        there = _index_names(connection, successor)
        missing = [index for index in anatomy.indexes if temporary_name(index) not in there]
        for index in missing:
            if index.constraint is not None:
                _add_constraint(connection, successor, index)
            elif not index.is_vector:
                name = temporary_name(index)
                connection.execute(index.statement.compose(successor, name))
        connection.execute(sql.SQL("ANALYZE {}").format(successor.identifier))
    alone = replace(options, concurrently=False)  # nobody else uses the table
    for index in missing:
        if index.is_vector:
            statement: BuildStatement = replace(index.statement, name=temporary_name(index))
            build_index(
                dsn,
                successor,
                statement,
                alone,
                replaces=False,
                on_progress=on_progress,
                on_notice=on_notice,
            )


def _vector_type(table: Table) -> sql.Composed:
    return sql.SQL("{}({})").format(
        sql.Identifier(table.vector_schema, table.vector_type), table.dimensions
    )


def _add_constraint(connection: Connection, successor: Table, index: OldIndex) -> None:
    definition = sql.SQL(index.constraint or "")  # pyright: ignore[reportArgumentType] - the server's own text
    connection.execute(
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
            successor.identifier, sql.Identifier(temporary_name(index)), definition
        )
    )


def _index_names(connection: Connection, table: Table) -> set[str]:
    rows = connection.execute(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE i.indisvalid AND i.indrelid = to_regclass(%s)",
        (table.identifier.as_string(connection),),
    )
    return {row[0] for row in rows}


def _is_unlogged(connection: Connection, oid: int) -> bool:
    row = connection.execute("SELECT relpersistence = 'u' FROM pg_class WHERE oid = %s", (oid,))
    found = row.fetchone()
    return bool(found and found[0])
