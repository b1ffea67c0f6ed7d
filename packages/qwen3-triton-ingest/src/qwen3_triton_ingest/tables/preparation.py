"""Find a table, check that it can be used, and create it where it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

import psycopg
from psycopg import sql

from ..database import Connection, explain
from ..errors import TableError
from ..layouts import LAYOUTS, MAX_NAME_BYTES, Layout, LayoutName, Table, fit_name
from .catalog import (
    Relation,
    columns_of,
    current_user,
    detect_layout,
    find_relation,
    missing_rights,
    pgvector_version,
    read_shape,
    split_name,
)

MAX_DIMENSIONS = 16_000  # of pgvector's `vector`
_WRITING = ("SELECT", "INSERT", "UPDATE", "DELETE")
_LOCK = 0x71776E33_7461626C  # "qwn3tabl": only one process at a time creates tables


def prepare_table(connection: Connection, name: str, layout: LayoutName, dimensions: int) -> Table:
    """Return the table that rows can be written to; create it, and pgvector, if missing.

    No vector index is made here: building it after the load is several times as fast.

    Args:
        connection: All happens in its transaction, or in one of its own.
        name: `table` or `schema.table`; without a schema, the first of the `search_path`. For
            LlamaIndex the name that `PGVectorStore` is given, without `data_`.
        layout: Whose table.
        dimensions: Length of the vectors to come.

    Raises:
        TableError: The table has another shape or other dimensions, or this user may not create
            it or write to it.
    """
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        msg = f"`dimensions` is {dimensions}; allowed are 1 to {MAX_DIMENSIONS}"
        raise TableError(msg)
    schema, table_name = _resolve(connection, name, LAYOUTS[layout])
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        create_extension(connection)
        if find_relation(connection, schema, table_name) is None:
            create_table(connection, schema, table_name, LAYOUTS[layout], dimensions)
        table = find_table(connection, name, layout, rights=_WRITING)
        if table.dimensions != dimensions:
            raise TableError(_other_dimensions(table, dimensions))
        _make_ids_unique(connection, table)
    return table


def find_table(
    connection: Connection,
    name: str,
    layout: LayoutName | None = None,
    *,
    rights: Sequence[str] = ("SELECT",),
) -> Table:
    """Return the table that is there.

    Args:
        connection: To the database; nothing is changed.
        name: `table` or `schema.table`; without a schema, the first of the `search_path`. For
            LlamaIndex the name that `PGVectorStore` is given, without `data_`.
        layout: Whose table; None tells it by the columns.
        rights: What this user must be allowed to do.

    Raises:
        TableError: There is no such table, it has another shape, this user may not use it, or
            pgvector is missing or too old.
    """
    check_version(connection)
    relation = _find(connection, name, layout)
    if relation.kind not in "rp":
        msg = f"{relation} is not a table (its kind is `{relation.kind}`); name a table"
        raise TableError(msg)
    columns = columns_of(connection, relation)
    found = LAYOUTS[layout] if layout else detect_layout(relation, columns)
    grants = missing_rights(connection, relation, rights)
    if grants:
        user = current_user(connection)
        msg = f"user {user!r} may not use {relation}; its owner can run: {' '.join(grants)}"
        raise TableError(msg)
    return read_shape(relation, columns, found, writing="INSERT" in rights)


def _resolve(connection: Connection, name: str, layout: Layout) -> tuple[str, str]:
    given, table_name = split_name(name)
    # Asked for in any case: so a connection without autocommit is in its transaction from here on.
    row = connection.execute("SELECT coalesce(%s, current_schema()::text)", [given]).fetchone()
    schema: str | None = row[0] if row else None
    if schema is None:
        msg = f"`table` is {name!r}, but the search_path names no schema; write SCHEMA.{name}"
        raise TableError(msg)
    if layout.name == "llamaindex":  # as its `PGVectorStore` does
        schema, table_name = schema.lower(), f"{layout.table_prefix}{table_name.lower()}"
        if len(table_name.encode()) > MAX_NAME_BYTES:
            msg = f"`table` is {name!r}; with LlamaIndex' `data_` before it, it is too long"
            raise TableError(msg)
    return schema, table_name


def _find(connection: Connection, name: str, layout: LayoutName | None) -> Relation:
    layouts = [LAYOUTS[layout]] if layout else [LAYOUTS["own"], LAYOUTS["llamaindex"]]
    tried: list[str] = []
    for each in layouts:
        schema, table_name = _resolve(connection, name, each)
        relation = find_relation(connection, schema, table_name)
        if relation is not None:
            return relation
        tried.append(f"{schema}.{table_name}")
    msg = (
        f"there is no table {' or '.join(tried)}; check `table`, the database of the DSN and the "
        "search_path, or load into it first"
    )
    raise TableError(msg)


def _make_ids_unique(connection: Connection, table: Table) -> None:
    """Make sure that a row can be found again by its id; LlamaIndex' tables do not say so."""
    names = table.schema, table.name, table.layout.id
    if connection.execute(unique_index_query(*names)).fetchone():
        return
    try:
        with connection.transaction():
            connection.execute(unique_index_statement(*names))
    except psycopg.errors.UniqueViolation:
        newest = "id" if table.layout.name == "llamaindex" else "ctid"
        raise TableError(duplicates_message(*names, newest=newest)) from None
    except psycopg.errors.InsufficientPrivilege:
        raise TableError(not_unique_message(*names)) from None


def _other_dimensions(table: Table, dimensions: int) -> str:
    return (
        f"`dimensions` is {dimensions}, but {table} holds vectors of {table.dimensions}: name "
        f"another table with --table, ask the gateway for --dimensions {table.dimensions}, or "
        "move the table to the new vectors with --reembed"
    )


# The first with iterative scans; the first without known corruption of HNSW by vacuum.
OLDEST_PGVECTOR, SOUND_PGVECTOR = (0, 8, 0), (0, 8, 4)

_CREATE: dict[LayoutName, LiteralString] = {
    "own": """
        CREATE TABLE {table} (
            id uuid PRIMARY KEY,
            doc_id text NOT NULL,
            seq integer NOT NULL,
            content text NOT NULL,
            metadata jsonb NOT NULL DEFAULT '{{}}',
            embedding {vector_schema}.vector({dimensions}) NOT NULL
        );
        CREATE INDEX ON {table} (doc_id, seq)""",
    # As `PGEngine.init_vectorstore_table` of langchain-postgres makes it.
    "langchain": """
        CREATE TABLE {table} (
            langchain_id uuid PRIMARY KEY,
            content text NOT NULL,
            embedding {vector_schema}.vector({dimensions}) NOT NULL,
            langchain_metadata json
        )""",
    # As `PGVectorStore(use_jsonb=True)` of llama-index-vector-stores-postgres makes it.
    "llamaindex": """
        CREATE TABLE {table} (
            id bigserial NOT NULL PRIMARY KEY,
            text varchar NOT NULL,
            metadata_ jsonb,
            node_id varchar,
            embedding {vector_schema}.vector({dimensions})
        );
        CREATE INDEX {ref_doc_index} ON {table} ((metadata_ ->> 'ref_doc_id'))""",
}


def version_warning(connection: Connection) -> str | None:
    """Return what to tell the user of the version of pgvector, None where it is sound."""
    version = pgvector_version(connection)
    if version is None or _numbers(version) >= SOUND_PGVECTOR:
        return None
    return (
        f"pgvector {version} can corrupt HNSW indexes during vacuum; update the server's package "
        f"to {_dotted(SOUND_PGVECTOR)} or later, run ALTER EXTENSION vector UPDATE and REINDEX"
    )


def create_extension(connection: Connection) -> None:
    if pgvector_version(connection) is None:
        try:
            with connection.transaction():
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.errors.InsufficientPrivilege:
            where = connection.info.dbname
            user = current_user(connection)
            msg = (
                f"pgvector is not enabled in database {where!r} and user {user!r} may not enable "
                "it; a superuser must run there: CREATE EXTENSION vector;"
            )
            raise TableError(msg) from None
        except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported):
            msg = (
                "pgvector is not installed on the server; install its package, such as "
                "postgresql-17-pgvector, or run the image pgvector/pgvector:pg17"
            )
            raise TableError(msg) from None
    check_version(connection)


def check_version(connection: Connection) -> None:
    version = pgvector_version(connection)
    if version is None:
        where = connection.info.dbname
        msg = f"pgvector is not enabled in database {where!r}; run there: CREATE EXTENSION vector;"
        raise TableError(msg)
    if _numbers(version) < OLDEST_PGVECTOR:
        msg = (
            f"pgvector is {version}; at least {_dotted(OLDEST_PGVECTOR)} is needed: update the "
            "server's package and run ALTER EXTENSION vector UPDATE;"
        )
        raise TableError(msg)


def create_table(
    connection: Connection, schema: str, name: str, layout: Layout, dimensions: int
) -> None:
    index_name = f"{name.removeprefix(layout.table_prefix)}_idx_1"
    statement = sql.SQL(_CREATE[layout.name]).format(
        table=sql.Identifier(schema, name),
        vector_schema=sql.Identifier(_vector_schema(connection)),
        dimensions=dimensions,
        ref_doc_index=sql.Identifier(index_name),
    )
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.errors.InvalidSchemaName:
        quoted = sql.Identifier(schema).as_string(connection)
        msg = f"there is no schema {schema!r}; run CREATE SCHEMA {quoted}; or name another"
        raise TableError(msg) from None
    except psycopg.errors.InsufficientPrivilege as error:
        quoted = sql.Identifier(schema).as_string(connection)
        user = sql.Identifier(current_user(connection)).as_string(connection)
        msg = (
            f"{schema}.{name} cannot be created: {explain(error)}. The schema's owner can run: "
            f"GRANT USAGE, CREATE ON SCHEMA {quoted} TO {user};"
        )
        raise TableError(msg) from None


def _vector_schema(connection: Connection) -> str:
    row = connection.execute(
        "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'vector'"
    ).fetchone()
    return row[0] if row else "public"


def _numbers(version: str) -> tuple[int, ...]:
    digits = ["".join(filter(str.isdigit, part.split("-")[0])) for part in version.split(".")[:3]]
    return tuple(int(part or 0) for part in digits)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


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
