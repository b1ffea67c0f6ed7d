"""What a search must know of a table, looked up once in a while."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from ..database import Connection
from ..errors import TableError
from ..index.catalog import find_vector_indexes
from ..layouts import LayoutName, Table
from ..ledger.tables import Space, find_record
from ..tables.preparation import find_table
from .queries import Statement
from .text_backends import TextAccess, TextBackendChoice
from .text_catalog import find_text_access
from .vector_access import VectorAccess, vector_access

__all__ = ["Target", "look_up", "space_statement"]

_LEDGER_RIGHTS = """
SELECT CASE WHEN n.oid IS NOT NULL THEN
    has_schema_privilege(n.oid, 'USAGE')
    AND coalesce(has_table_privilege(c.oid, 'SELECT'), true) END,
    quote_ident(current_user)
FROM (SELECT) AS one
LEFT JOIN pg_namespace n ON n.nspname = 'qwen3_ingest'
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'tables'"""


@dataclass(frozen=True, slots=True)
class Target:
    """Hold what a search must know of a table."""

    table: Table
    vectors: VectorAccess
    texts: TextAccess | None
    """None where the search goes by meaning alone."""
    space: Space | None
    """Of the table's vectors; None where the ledger knows nothing of them."""
    has_ledger: bool
    path_statement: Statement | None = None
    """Adds pgvector's schema to the search_path, where that lacks it."""


def look_up(
    connection: Connection,
    name: str,
    *,
    layout: LayoutName | None,
    text_backend: TextBackendChoice | None,
    text_config: str | None,
) -> Target:
    """Return what is to be known of a table.

    Args:
        connection: To the database; nothing is changed.
        name: `table` or `schema.table`.
        layout: Whose table; None tells it by the columns.
        text_backend: By which words are found; None if they are not searched.
        text_config: Text search configuration; None takes the index's.

    Raises:
        TableError: The table cannot be searched so.
    """
    with connection.transaction():
        table = find_table(connection, name, layout)
        has_ledger = _may_read_ledger(connection)
        record = find_record(connection, table) if has_ledger else None
        texts = None
        if text_backend is not None:
            texts = find_text_access(connection, table, text_backend, text_config)
        return Target(
            table,
            vector_access(table, find_vector_indexes(connection, table)),
            texts,
            record.space if record else None,
            has_ledger,
            _path_statement(connection, table),
        )


def space_statement(table: Table) -> Statement:
    """Return the query for the fingerprint of a table's vectors."""
    query = sql.SQL(
        "SELECT fingerprint FROM qwen3_ingest.tables "
        "WHERE schema_name = %(schema)s AND table_name = %(table)s"
    )
    return Statement(sql.Composed([query]), {"schema": table.schema, "table": table.name})


def _may_read_ledger(connection: Connection) -> bool:
    """Tell whether there is a ledger.

    Raises:
        TableError: There is one that this user may not read, so nobody could say whether the
            vectors of the table and of a question compare.
    """
    row = connection.execute(_LEDGER_RIGHTS).fetchone()
    allowed, user = row or (None, "")
    if allowed is False:
        msg = (
            "this user may not read which model the table's vectors are of. The owner of the "
            f"schema qwen3_ingest can run: GRANT USAGE ON SCHEMA qwen3_ingest TO {user}; "
            f"GRANT SELECT ON qwen3_ingest.tables TO {user};"
        )
        raise TableError(msg)
    return allowed is not None


def _path_statement(connection: Connection, table: Table) -> Statement | None:
    schema = {"schema": table.vector_schema}
    row = connection.execute(
        "SELECT %(schema)s = ANY (current_schemas(true)::text[])", schema
    ).fetchone()
    if row and row[0]:
        return None
    add = sql.SQL(
        "SELECT set_config('search_path', "
        "concat_ws(', ', nullif(current_setting('search_path'), ''), quote_ident({})), true)"
    )
    return Statement(add.format(sql.Literal(table.vector_schema)))
