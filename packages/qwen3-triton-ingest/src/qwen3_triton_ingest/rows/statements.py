"""The statements that write rows, made for a table. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from psycopg import sql

from ..layouts import Table
from .fields import column_types

__all__ = [
    "copy_statement",
    "delete_statement",
    "insert_statement",
    "on_conflict",
    "text_search_vector",
    "update_statement",
]


def copy_statement(table: Table) -> sql.Composed | None:
    """Return the COPY of rows straight into the table; None where PostgreSQL must compute some."""
    if table.vector_type != "vector" or table.metadata_columns or table.tsv_column:
        return None
    columns = sql.SQL(", ").join(map(sql.Identifier, column_types(table)))
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(table.identifier, columns)


def insert_statement(table: Table, *, upsert: bool) -> sql.Composed:
    """Return the INSERT of one row, whose parameters are the binary fields of a row.

    Args:
        table: Where to.
        upsert: Whether a row of the same id takes the new values.
    """
    types = column_types(table)
    values = sql.SQL(", ").join(
        sql.SQL("%b::{}").format(_type(table, kind)) for kind in types.values()
    )
    sources: list[sql.Composable] = [
        sql.SQL("(VALUES ({})) AS given ({})").format(values, _names(types))
    ]
    computed: dict[str, sql.Composable] = {
        name: sql.SQL("filled.{}").format(_name(name)) for name in table.metadata_columns
    }
    if table.metadata_columns:
        sources.append(_filled(table))
    if table.tsv_column:
        text = sql.SQL("given.{}").format(_name(table.layout.content))
        computed[table.tsv_column] = text_search_vector(table.tsv_config, text)
    statement = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
        _qualified(table),
        _names([*types, *computed]),
        sql.SQL(", ").join([sql.SQL("given.*"), *computed.values()]),
        sql.SQL(", ").join(sources),
    )
    if not upsert:
        return statement
    columns = [_name(name) for name in [*types, *computed] if name != table.layout.id]
    return sql.SQL(" ").join([statement, on_conflict(_name(table.layout.id), columns)])


def on_conflict(id_column: sql.Identifier, columns: Iterable[sql.Identifier]) -> sql.Composed:
    """Return the clause that gives these columns of a row of the same id the new values."""
    return sql.SQL("ON CONFLICT ({}) DO UPDATE SET {}").format(
        id_column,
        sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(each) for each in columns),
    )


def update_statement(table: Table) -> sql.Composed:
    """Return the UPDATE of one row's metadata and place: seq (our own layout), metadata, id.

    Where the table has metadata columns, the JSON object of their values stands before the id.
    """
    layout = table.layout
    assigned = [sql.SQL("seq = %b::int4").format()] if layout.name == "own" else []
    metadata_type = sql.SQL(table.metadata_type)
    assigned.append(sql.SQL("{} = %b::{}").format(_name(layout.metadata), metadata_type))
    source = sql.SQL("")
    for name in table.metadata_columns:
        assigned.append(sql.SQL("{0} = filled.{0}").format(_name(name)))
    if table.metadata_columns:
        source = sql.SQL(" FROM {}").format(_filled(table))
    return sql.SQL("UPDATE {} AS t SET {}{} WHERE t.{} = %b::{}").format(
        _qualified(table),
        sql.SQL(", ").join(assigned),
        source,
        _name(layout.id),
        sql.SQL(layout.id_type),  # pyright: ignore[reportArgumentType]
    )


def delete_statement(table: Table) -> sql.Composed:
    """Return the DELETE of rows by an array of their ids."""
    return sql.SQL("DELETE FROM {} WHERE {} = ANY(%b)").format(
        _qualified(table), _name(table.layout.id)
    )


def text_search_vector(config: str | None, text: sql.Composable) -> sql.Composed:
    """Return the expression of a text's words; None takes the database's configuration."""
    if config is None:
        return sql.SQL("to_tsvector({})").format(text)
    return sql.SQL("to_tsvector({}::regconfig, {})").format(sql.Literal(config), text)


def _filled(table: Table) -> sql.Composed:
    # Makes of each JSON value what its column holds, arrays included.
    return sql.SQL("json_populate_record(NULL::{}, %b::json) AS filled").format(_qualified(table))


def _type(table: Table, kind: str) -> sql.Composable:
    return sql.Identifier(table.vector_schema, "vector") if kind == "vector" else sql.SQL(kind)  # pyright: ignore[reportArgumentType]


def _name(name: str) -> sql.Identifier:
    # psycopg looks for its placeholders inside of names, too.
    return sql.Identifier(name.replace("%", "%%"))


def _names(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(_name, names))


def _qualified(table: Table) -> sql.Composed:
    return sql.SQL("{}.{}").format(_name(table.schema), _name(table.name))
