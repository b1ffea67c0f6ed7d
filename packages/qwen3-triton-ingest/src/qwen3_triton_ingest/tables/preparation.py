"""Find a table, check that it can be used, and create it where it is missing."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from .. import queries
from ..database import Connection, explain
from ..errors import TableError
from ..layouts import LANGCHAIN_V1, LAYOUTS, MAX_NAME_BYTES, Layout, LayoutName, Table, fit_name
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
from .collections import read_collection

MAX_DIMENSIONS = 16_000  # of pgvector's `vector`
# The first pgvector with iterative scans; the first that vacuum is not known to corrupt HNSW in.
OLDEST_PGVECTOR, SOUND_PGVECTOR = (0, 8, 0), (0, 8, 4)
_WRITING = ("SELECT", "INSERT", "UPDATE", "DELETE")
_LEDGER = "qwen3_ingest"
_LEDGER_TABLES = ("tables", "runs", "shards", "documents", "dead_letters")
_LOCK = 0x71776E33_7461626C  # "qwn3tabl": only one process at a time creates tables


def prepare_table(connection: Connection, name: str, layout: LayoutName, dimensions: int) -> Table:
    """Return the table that rows can be written to; create it, and pgvector, if missing.

    No vector index is created here: building it after the load is several times as fast.

    Args:
        connection: Everything happens in its transaction, or in a new one.
        name: `table` or `schema.table`; without a schema, the first of the `search_path`. For
            LlamaIndex the name that `PGVectorStore` is given, without `data_`.
        layout: The layout that the table has or gets.
        dimensions: Length of the vectors to be written.

    Raises:
        TableError: The table has another shape or other dimensions, or this user may not create
            it or write to it.
    """
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        msg = f"`dimensions` is {dimensions}; it must be from 1 to {MAX_DIMENSIONS}."
        raise TableError(msg)
    schema, table_name = _resolve(connection, name, LAYOUTS[layout])
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        _create_extension(connection)
        if find_relation(connection, schema, table_name) is None:
            _create_table(connection, schema, table_name, LAYOUTS[layout], dimensions)
        table = find_table(connection, name, layout, rights=_WRITING)
        if table.dimensions != dimensions:
            msg = (
                f"`dimensions` is {dimensions}, but {table} holds vectors of {table.dimensions}. "
                "Name another table with --table, ask the gateway for --dimensions "
                f"{table.dimensions}, or move the table to the new vectors with --reembed."
            )
            raise TableError(msg)
        _make_ids_unique(connection, table)
        _check_writable(connection, table)
    return table


def find_table(
    connection: Connection,
    name: str,
    layout: LayoutName | None = None,
    *,
    rights: Sequence[str] = ("SELECT",),
    collection: str | None = None,
) -> Table:
    """Return an existing table.

    Args:
        connection: To the database; nothing is changed.
        name: `table` or `schema.table`; without a schema, the first of the `search_path`. For
            LlamaIndex the name that `PGVectorStore` is given, without `data_`.
        layout: The table's layout; None infers it from the columns.
        rights: What this user must be allowed to do.
        collection: Name of a collection of LangChain's old `PGVector`; None takes the only one.

    Raises:
        TableError: There is no such table, it has another shape, this user may not use it, or
            pgvector is missing or too old.
    """
    _check_version(connection)
    relation = _find(connection, name, layout)
    if relation.kind not in "rp":
        msg = f"{relation} is not a table (its kind is `{relation.kind}`). Name a table."
        raise TableError(msg)
    columns = columns_of(connection, relation)
    found = LAYOUTS[layout] if layout else detect_layout(relation, columns)
    grants = missing_rights(connection, relation, rights)
    if grants:
        user = current_user(connection)
        msg = f"The user {user!r} may not use {relation}. Its owner can run: {' '.join(grants)}"
        raise TableError(msg)
    if found is LANGCHAIN_V1:
        return read_collection(connection, relation, columns, collection)
    if collection is not None:
        msg = f"{relation} has no collections. Leave out `collection`, or name another table."
        raise TableError(msg)
    return read_shape(relation, columns, found, writing="INSERT" in rights)


def check_ledger_rights(connection: Connection, rights: Sequence[str] = _WRITING) -> None:
    """Check that this user may use all tables of the ledger, as far as it exists.

    Raises:
        TableError: It may not.
    """
    found = (find_relation(connection, _LEDGER, name) for name in _LEDGER_TABLES)
    grants = [
        grant
        for relation in found
        if relation is not None
        for grant in missing_rights(connection, relation, rights)
    ]
    if grants:
        msg = (
            f"The user {current_user(connection)!r} may not use the ledger in the schema "
            f"`{_LEDGER}`. Its owner can run: {' '.join(dict.fromkeys(grants))}"
        )
        raise TableError(msg)


def version_warning(connection: Connection) -> str | None:
    """Return what to tell the user about the version of pgvector, None if it is sound."""
    version = pgvector_version(connection)
    if version is None or _numbers(version) >= SOUND_PGVECTOR:
        return None
    return (
        f"pgvector {version} can corrupt HNSW indexes during vacuum. Update the server's package "
        f"to {_dotted(SOUND_PGVECTOR)} or later, run ALTER EXTENSION vector UPDATE and REINDEX."
    )


def unique_index_query(schema: str, table: str, column: str) -> sql.Composed:
    """Return the query that has a row if ON CONFLICT can use the column."""
    return sql.SQL(queries.UNIQUE_INDEX).format(
        sql.Literal(schema), sql.Literal(table), sql.Literal(column)
    )


def unique_index_statement(schema: str, table: str, column: str) -> sql.Composed:
    """Return the statement that creates an index which ON CONFLICT can use."""
    return sql.SQL("CREATE UNIQUE INDEX IF NOT EXISTS {} ON {} ({})").format(
        sql.Identifier(fit_name(table, f"_{column}_key")),
        sql.Identifier(schema, table),
        sql.Identifier(column),
    )


def duplicates_message(schema: str, table: str, column: str, *, newest: str) -> str:
    """Return the message that rows share an id, and how to keep the newest of each.

    Args:
        schema: The table's schema.
        table: Its name.
        column: The column of the id.
        newest: The column whose greatest value is the newest row's.
    """
    each = sql.Identifier(column).as_string(None)
    quoted = sql.Identifier(schema, table).as_string(None)
    return (
        f"Several rows of {schema}.{table} have the same {column}. Keep the newest of each with: "
        f"DELETE FROM {quoted} a USING {quoted} b WHERE a.{each} = b.{each} "
        f"AND a.{newest} < b.{newest};"
    )


def not_unique_message(schema: str, table: str, column: str) -> str:
    """Return the message that the unique index is missing and this user may not create it."""
    statement = unique_index_statement(schema, table, column).as_string(None)
    return (
        f"{schema}.{table} has no unique index on {column}, without which rows would be "
        f"duplicated. Its owner must run: {statement};"
    )


def _resolve(connection: Connection, name: str, layout: Layout) -> tuple[str, str]:
    requested_schema, table_name = split_name(name)
    # Always executed, so that a connection without autocommit is in its transaction from here on.
    row = connection.execute(
        "SELECT coalesce(%s, current_schema()::text)", [requested_schema]
    ).fetchone()
    schema: str | None = row[0] if row else None
    if schema is None:
        msg = f"`table` is {name!r}, but the search_path has no schema. Write SCHEMA.{name}."
        raise TableError(msg)
    if layout.name == "llamaindex":  # as its `PGVectorStore` does
        schema, table_name = schema.lower(), f"{layout.table_prefix}{table_name.lower()}"
        if len(table_name.encode()) > MAX_NAME_BYTES:
            msg = f"`table` is {name!r}; with LlamaIndex's prefix `data_`, it is too long."
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
        f"There is no table {' or '.join(tried)}. Check `table`, the database of the DSN and the "
        "search_path, or load into it first."
    )
    raise TableError(msg)


def _create_extension(connection: Connection) -> None:
    if pgvector_version(connection) is None:
        try:
            with connection.transaction():
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.errors.InsufficientPrivilege:
            database, user = connection.info.dbname, current_user(connection)
            msg = (
                f"pgvector is not enabled in the database {database!r}, and the user {user!r} may "
                "not enable it. A superuser must run there: CREATE EXTENSION vector;"
            )
            raise TableError(msg) from None
        except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported):
            msg = (
                "pgvector is not installed on the server. Install its package, such as "
                "postgresql-17-pgvector, or run the image pgvector/pgvector:pg17."
            )
            raise TableError(msg) from None
    _check_version(connection)
    query = "SELECT has_schema_privilege(%s, 'USAGE')"
    schema = _vector_schema(connection)
    if connection.execute(query, [schema]).fetchone() == (False,):
        user = current_user(connection)
        grant = sql.SQL("GRANT USAGE ON SCHEMA {} TO {};").format(
            sql.Identifier(schema), sql.Identifier(user)
        )
        msg = f"The user {user!r} may not use pgvector. The schema's owner can run: "
        raise TableError(msg + grant.as_string(connection))


def _check_version(connection: Connection) -> None:
    version = pgvector_version(connection)
    if version is None:
        database = connection.info.dbname
        msg = (
            f"pgvector is not enabled in the database {database!r}. Run there: "
            "CREATE EXTENSION vector;"
        )
        raise TableError(msg)
    if _numbers(version) < OLDEST_PGVECTOR:
        msg = (
            f"pgvector is {version}; at least {_dotted(OLDEST_PGVECTOR)} is required. Update the "
            "server's package and run ALTER EXTENSION vector UPDATE;"
        )
        raise TableError(msg)


def _create_table(
    connection: Connection, schema: str, name: str, layout: Layout, dimensions: int
) -> None:
    index_name = f"{name.removeprefix(layout.table_prefix)}_idx_1"
    statement = sql.SQL(queries.CREATE_TABLE[layout.name]).format(
        table=sql.Identifier(schema, name),
        vector_schema=sql.Identifier(_vector_schema(connection)),
        dimensions=dimensions,
        ref_doc_index=sql.Identifier(index_name),
    )
    quoted = sql.Identifier(schema).as_string(connection)
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.errors.InvalidSchemaName:
        msg = f"There is no schema {schema!r}. Run CREATE SCHEMA {quoted}; or name another one."
        raise TableError(msg) from None
    except psycopg.errors.InsufficientPrivilege as error:
        user = sql.Identifier(current_user(connection)).as_string(connection)
        msg = (
            f"{schema}.{name} cannot be created: {explain(error)}. The schema's owner can run: "
            f"GRANT USAGE, CREATE ON SCHEMA {quoted} TO {user};"
        )
        raise TableError(msg) from None


def _make_ids_unique(connection: Connection, table: Table) -> None:
    """Create the unique index that LlamaIndex's tables lack, so that a row is found by its id."""
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
    except psycopg.errors.FeatureNotSupported as error:  # partitions by other columns
        msg = (
            f"A load finds rows of {table} by {table.layout.id} alone, which must be unique: "
            f"{explain(error)}. Partition it by {table.layout.id}, or name another table."
        )
        raise TableError(msg) from None


def _check_writable(connection: Connection, table: Table) -> None:
    """Check what would refuse every row, which PostgreSQL reports only when one is written."""
    row = connection.execute(
        queries.OBSTACLES_TO_ROWS, {"table": table.identifier.as_string(connection)}
    ).fetchone()
    is_secured, lacks_partitions = row or (False, False)
    if is_secured:
        msg = (
            f"Row-level security applies to the user {current_user(connection)!r} on {table}, and "
            "COPY cannot be used with it. Load as the table's owner or as a role with BYPASSRLS."
        )
        raise TableError(msg)
    if lacks_partitions:
        raise TableError(f"{table} has no partitions that could hold rows. Create them first.")


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
