"""Create pgvector and the tables of each layout, and say what to do where that is not allowed."""

from __future__ import annotations

from typing import LiteralString

import psycopg
from psycopg import sql

from ..database import Connection, explain
from ..errors import TableError
from ..layouts import Layout, LayoutName
from .catalog import current_user, pgvector_version

__all__ = ["check_version", "create_extension", "create_table", "version_warning"]

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
