"""What makes a table hold each id once: the statements and the words for it. No I/O."""

from __future__ import annotations

from psycopg import sql

from ..layouts import fit_name

__all__ = [
    "duplicates_message",
    "not_unique_message",
    "unique_index_query",
    "unique_index_statement",
]


def unique_index_query(schema: str, table: str, column: str) -> sql.Composed:
    """Return the query that has a row if ON CONFLICT can use the column.

    It can if a valid, plain unique index holds all rows and this column alone.
    """
    query = """
        SELECT 1
        FROM pg_index i
            JOIN pg_class c ON c.oid = i.indrelid
            JOIN pg_namespace n ON n.oid = c.relnamespace
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
        WHERE n.nspname = {} AND c.relname = {} AND a.attname = {} AND i.indnkeyatts = 1
            AND i.indisunique AND i.indisvalid AND i.indimmediate
            AND i.indpred IS NULL AND i.indexprs IS NULL"""
    return sql.SQL(query).format(sql.Literal(schema), sql.Literal(table), sql.Literal(column))


def unique_index_statement(schema: str, table: str, column: str) -> sql.Composed:
    """Return the statement that makes such an index."""
    return sql.SQL("CREATE UNIQUE INDEX IF NOT EXISTS {} ON {} ({})").format(
        sql.Identifier(fit_name(table, f"_{column}_key")),
        sql.Identifier(schema, table),
        sql.Identifier(column),
    )


def duplicates_message(schema: str, table: str, column: str, *, newest: str) -> str:
    """Say that rows share an id, and how to keep the newest of each.

    Args:
        schema: Of the table.
        table: Its name.
        column: That of the id.
        newest: Column whose greatest value is the newest row's.
    """
    each, quoted = _text(sql.Identifier(column)), _text(sql.Identifier(schema, table))
    return (
        f"several rows of {schema}.{table} have the same {column}. Keep the newest of each with: "
        f"DELETE FROM {quoted} a USING {quoted} b WHERE a.{each} = b.{each} "
        f"AND a.{newest} < b.{newest};"
    )


def not_unique_message(schema: str, table: str, column: str) -> str:
    """Say that the index is missing and this user may not make it."""
    statement = _text(unique_index_statement(schema, table, column))
    return (
        f"{schema}.{table} has no unique index on {column}, which keeps rows from doubling; its "
        f"owner must run: {statement};"
    )


def _text(part: sql.Composable) -> str:
    return part.as_string(None)
