"""What a search needs to know about a table, looked up now and then."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from ..config import Context
from ..database import Connection, narrow_encoding
from ..errors import TableError
from ..index.catalog import find_vector_indexes
from ..layouts import LayoutName, Table
from ..ledger.tables import Space, find_record
from ..tables.preparation import find_table
from .queries import Statement, VectorAccess, vector_access
from .text_access import TextAccess, find_text_access
from .text_indexes import TextBackendChoice

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
    """What a search needs to know about a table.

    Attributes:
        texts: None if the search is by vector alone.
        space: Of the table's vectors; None if they are not in the ledger.
        context: What preceded the chunks when they were embedded, and does when they are reranked.
        path_statement: Adds pgvector's schema to the search_path, if it is missing there.
        encoding: Of the database, if it cannot store every character.
    """

    table: Table
    vectors: VectorAccess
    texts: TextAccess | None
    space: Space | None
    has_ledger: bool
    path_statement: Statement | None = None
    encoding: str | None = None
    context: Context = "none"


def look_up(
    connection: Connection,
    name: str,
    *,
    layout: LayoutName | None,
    text_backend: TextBackendChoice | None,
    text_config: str | None,
    collection: str | None = None,
) -> Target:
    """Return what a search needs to know about a table.

    Args:
        connection: To the database; nothing is changed.
        name: `table` or `schema.table`.
        layout: Layout of the table; None infers it from the columns.
        text_backend: Text search to use; None if texts are not searched.
        text_config: Text search configuration; None takes the index's.
        collection: Of LangChain's old `PGVector`; None takes the only one.

    Raises:
        TableError: The table cannot be searched like that.
    """
    with connection.transaction():
        table = find_table(connection, name, layout, collection=collection)
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
            narrow_encoding(connection),
            record.context if record else "none",
        )


def space_statement(table: Table) -> Statement:
    """Return the query for the fingerprint of a table's vectors."""
    query = sql.SQL(
        "SELECT fingerprint FROM qwen3_ingest.tables "
        "WHERE schema_name = %(schema)s AND table_name = %(table)s"
    )
    return Statement(sql.Composed([query]), {"schema": table.schema, "table": table.name})


def _may_read_ledger(connection: Connection) -> bool:
    """Return whether there is a ledger.

    Raises:
        TableError: There is one that this user may not read, so it is unknown whether the vectors
            of the table and of the question are comparable.
    """
    row = connection.execute(_LEDGER_RIGHTS).fetchone()
    allowed, user = row or (None, "")
    if allowed is False:
        msg = (
            "This user may not read which model made the table's vectors. The owner of the "
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
