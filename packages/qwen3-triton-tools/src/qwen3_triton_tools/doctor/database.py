"""The database that holds the vectors: pgvector's version, columns and indexes."""

from __future__ import annotations

import importlib
import re
from typing import Any
from urllib.parse import urlsplit

from .checks import Check, absent, failed, ok, skipped, version_tuple, warning

# Below these: 0.8.2 mends a buffer overflow in parallel HNSW builds, 0.8.3 and 0.8.4 corruption
# by vacuum (pgvector's CHANGELOG).
LEAST_PGVECTOR = (0, 8, 4)
CONNECT_SECONDS = 10
# From about here a sequential scan is felt.
ROWS_WORTH_AN_INDEX = 50_000
EXTENSIONS = "SELECT extname, extversion FROM pg_extension"
AVAILABLE = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
# pgvector keeps the dimensions as the type's modifier, -1 where none are given.
COLUMNS = """
SELECT format('%I.%I', n.nspname, c.relname), a.attname, t.typname, a.atttypmod, c.reltuples, c.oid
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid
WHERE t.typname IN ('vector', 'halfvec') AND c.relkind IN ('r', 'p', 'm') AND NOT a.attisdropped
ORDER BY 1, 2
"""
INDEXES = """
SELECT i.indrelid, ic.relname, am.amname, oc.opcname, i.indisvalid
FROM pg_index i
JOIN pg_class ic ON ic.oid = i.indexrelid
JOIN pg_am am ON am.oid = ic.relam
JOIN pg_opclass oc ON oc.oid = i.indclass[0]
WHERE am.amname IN ('hnsw', 'ivfflat')
ORDER BY 2
"""
# What PostgreSQL and libpq say, and the way out of it.
REFUSALS = (
    (r"password authentication failed|no password supplied", "mend user or password in the URI"),
    (r"does not exist", "create it: createdb NAME, or name another database or role"),
    (r"refused|No such file|resolve|timeout|timed out", "start PostgreSQL, or mend host and port"),
)


def check_database(url: str, *, dimensions: int) -> list[Check]:
    """Connect and look at extensions, vector columns and their indexes."""
    try:
        psycopg: Any = importlib.import_module("psycopg")
    except ImportError:
        seen = "the driver psycopg is not installed beside this command"
        return [skipped("database", seen, 'pip install "psycopg[binary]"')]
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_SECONDS) as connection:
            connection.read_only = True
            return _look(connection, url, dimensions)
    except psycopg.Error as error:
        said = " ".join(str(error).split())[:300]
        remedy = next((way for pattern, way in REFUSALS if re.search(pattern, said)), "")
        return [absent("database", f"{shown(url)}: {said}", remedy, named=True)]


def shown(url: str) -> str:
    """Name a database without its user and password."""
    parts = urlsplit(url)
    if not parts.scheme or "@" in parts.path:  # no URI, or a mistyped one
        return "the database"
    return f"{parts.hostname or 'socket'}{parts.path}"


def _look(connection: Any, url: str, dimensions: int) -> list[Check]:
    server: tuple[str] = connection.execute("SHOW server_version").fetchone()
    extensions: dict[str, str] = dict(connection.execute(EXTENSIONS).fetchall())
    checks = [ok("database", f"PostgreSQL {server[0]} at {shown(url)}")]
    if "vector" not in extensions:
        available = connection.execute(AVAILABLE).fetchone()
        return [*checks, _no_pgvector(available[0] if available else None)]
    checks += [check_pgvector(extensions["vector"]), _pg_search(extensions.get("pg_search"))]
    columns = connection.execute(COLUMNS).fetchall()
    indexes = connection.execute(INDEXES).fetchall()
    if not columns:
        return [*checks, skipped("vector columns", "no table has one yet")]
    for table, column, kind, size, rows, relation in columns:
        checks.append(check_column(f"{table}.{column}", kind, size, dimensions))
        if rows > ROWS_WORTH_AN_INDEX and all(index[0] != relation for index in indexes):
            seen = f"about {int(rows)} rows and no index: every query reads them all"
            remedy = f"CREATE INDEX ON {table} USING hnsw ({column} {kind}_cosine_ops)"
            checks.append(warning(f"index on {table}", seen, remedy))
    relations = {row[-1] for row in columns}
    return checks + [check_index(*index[1:]) for index in indexes if index[0] in relations]


def check_pgvector(version: str) -> Check:
    """Hold pgvector's version against the releases that mend lost or broken rows."""
    if version_tuple(version) < LEAST_PGVECTOR:
        wanted = ".".join(map(str, LEAST_PGVECTOR))
        seen = f"{version}; HNSW indexes can be corrupted before {wanted}"
        return warning("pgvector", seen, "upgrade it, ALTER EXTENSION vector UPDATE, then REINDEX")
    return ok("pgvector", version)


def check_column(column: str, kind: str, size: int, dimensions: int) -> Check:
    """Compare a column's dimensions with those of the gateway's vectors."""
    name = f"column {column}"
    if size < 0:
        seen = f"{kind} of any dimensions, which cannot be indexed"
        remedy = f"ALTER TABLE ... ALTER COLUMN ... TYPE {kind}({dimensions})"
        return warning(name, seen, remedy)
    if size != dimensions:
        seen = f"{kind}({size}), and the gateway's vectors have {dimensions} dimensions"
        remedy = (
            f"ask for `dimensions: {size}` (EMBED_OUTPUT_DIM={size}) if the rows are of the same "
            f"model, else index into a new {kind}({dimensions}) column"
        )
        return failed(name, seen, remedy)
    return ok(name, f"{kind}({size})")


def check_index(index: str, method: str, operator_class: str, valid: bool) -> Check:
    """Say whether an index is whole and of the distance that cosine queries use."""
    name = f"index {index}"
    seen = f"{method}, {operator_class}"
    if not valid:
        return failed(name, f"{seen}: its build broke off", f"REINDEX INDEX CONCURRENTLY {index}")
    if operator_class.endswith(("_cosine_ops", "_ip_ops")):
        return ok(name, seen)
    remedy = "create it with vector_cosine_ops (or halfvec_cosine_ops) and drop this one"
    return warning(name, f"{seen}: cosine queries (<=>) do not use it", remedy)


def _no_pgvector(available: str | None) -> Check:
    if available:
        seen = f"not created in this database; {available} is installed on the server"
        return failed("pgvector", seen, "CREATE EXTENSION vector")
    remedy = "install it (postgresql-18-pgvector, or the image pgvector/pgvector or paradedb)"
    return failed("pgvector", "not installed on the server", remedy)


def _pg_search(version: str | None) -> Check:
    if version is None:
        return skipped("pg_search", "not here; only ParadeDB's BM25 needs it")
    return ok("pg_search", version)
