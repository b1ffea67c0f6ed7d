"""The database that holds the vectors: pgvector's version, columns and indexes."""

from __future__ import annotations

import importlib
import re
from typing import Any
from urllib.parse import urlsplit

from ..findings import Finding, failure, ok, skipped, warning

# 0.8.2 fixes a buffer overflow in parallel HNSW builds, 0.8.3 and 0.8.4 fix corruption by vacuum
# (pgvector's CHANGELOG).
MIN_PGVECTOR = (0, 8, 4)
CONNECT_SECONDS = 10
# From about here on, a sequential scan is noticeable.
MIN_ROWS_FOR_INDEX = 50_000
EXTENSIONS = "SELECT extname, extversion FROM pg_extension"
AVAILABLE = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
# pgvector stores the dimensions as the type's modifier, -1 if there are none.
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
# Errors of PostgreSQL and libpq, and what to do about them.
CONNECTION_ERRORS = (
    (r"password authentication failed|no password supplied", "Correct the user or the password."),
    (r"does not exist", "Create it (createdb NAME), or choose another database or role."),
    (
        r"refused|No such file|resolve|timeout|timed out",
        "Start PostgreSQL, or correct host and port.",
    ),
)


def check_database(url: str, *, dimensions: int) -> list[Finding]:
    """Check extensions, vector columns and their indexes."""
    try:
        psycopg: Any = importlib.import_module("psycopg")
    except ImportError:
        message = "the driver psycopg is not installed in this environment"
        return [skipped("database", message, 'pip install "psycopg[binary]"')]
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_SECONDS) as connection:
            connection.read_only = True
            return _check(connection, url, dimensions)
    except psycopg.Error as error:
        text = " ".join(str(error).split())[:300]
        remedies = (remedy for pattern, remedy in CONNECTION_ERRORS if re.search(pattern, text))
        return [failure("database", f"{_without_user(url)}: {text}", next(remedies, ""))]


def _without_user(url: str) -> str:
    """Return host and name of a database, without its user and password."""
    parts = urlsplit(url)
    if not parts.scheme or "@" in parts.path:  # not a URI, or a mistyped one
        return "the database"
    return f"{parts.hostname or 'socket'}{parts.path}"


def _check(connection: Any, url: str, dimensions: int) -> list[Finding]:
    server: tuple[str] = connection.execute("SHOW server_version").fetchone()
    extensions: dict[str, str] = dict(connection.execute(EXTENSIONS).fetchall())
    findings = [ok("database", f"PostgreSQL {server[0]} at {_without_user(url)}")]
    if "vector" not in extensions:
        available = connection.execute(AVAILABLE).fetchone()
        return [*findings, _explain_missing_pgvector(available[0] if available else None)]
    findings += [
        check_pgvector(extensions["vector"]),
        _check_pg_search(extensions.get("pg_search")),
    ]
    columns = connection.execute(COLUMNS).fetchall()
    indexes = connection.execute(INDEXES).fetchall()
    if not columns:
        return [*findings, skipped("vector columns", "no table has one yet")]
    for table, column, kind, size, rows, relation in columns:
        findings.append(check_column(f"{table}.{column}", kind, size, dimensions))
        if rows > MIN_ROWS_FOR_INDEX and all(index[0] != relation for index in indexes):
            message = f"about {int(rows)} rows and no index: every query scans all of them"
            remedy = f"CREATE INDEX ON {table} USING hnsw ({column} {kind}_cosine_ops)"
            findings.append(warning(f"index on {table}", message, remedy))
    relations = {row[-1] for row in columns}
    return findings + [check_index(*index[1:]) for index in indexes if index[0] in relations]


def check_pgvector(version: str) -> Finding:
    """Compare pgvector's version with the release that fixes lost and corrupted rows."""
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < MIN_PGVECTOR:
        minimum = ".".join(map(str, MIN_PGVECTOR))
        message = f"{version}; HNSW indexes can be corrupted before {minimum}"
        remedy = "Upgrade it, then ALTER EXTENSION vector UPDATE, then REINDEX."
        return warning("pgvector", message, remedy)
    return ok("pgvector", version)


def check_column(column: str, kind: str, size: int, dimensions: int) -> Finding:
    """Compare a column's dimensions with those of the gateway's vectors."""
    name = f"column {column}"
    if size < 0:
        message = f"{kind} of any dimensions, which cannot be indexed"
        remedy = f"ALTER TABLE ... ALTER COLUMN ... TYPE {kind}({dimensions})"
        return warning(name, message, remedy)
    if size != dimensions:
        message = f"{kind}({size}), but the gateway's vectors have {dimensions} dimensions"
        remedy = (
            f"Request `dimensions: {size}` (EMBED_OUTPUT_DIM={size}) if the rows are from the same "
            f"model; else embed into a new {kind}({dimensions}) column."
        )
        return failure(name, message, remedy)
    return ok(name, f"{kind}({size})")


def check_index(index: str, method: str, operator_class: str, valid: bool) -> Finding:
    """Check that an index is valid, and that cosine queries can use it."""
    name = f"index {index}"
    message = f"{method}, {operator_class}"
    if not valid:
        remedy = f"REINDEX INDEX CONCURRENTLY {index}"
        return failure(name, f"{message}: its build was interrupted", remedy)
    if operator_class.endswith(("_cosine_ops", "_ip_ops")):
        return ok(name, message)
    remedy = "Create one with vector_cosine_ops (or halfvec_cosine_ops) and drop this one."
    return warning(name, f"{message}: cosine queries (<=>) do not use it", remedy)


def _explain_missing_pgvector(available: str | None) -> Finding:
    if available:
        message = f"Not created in this database; {available} is installed on the server."
        return failure("pgvector", message, "CREATE EXTENSION vector")
    remedy = "Install it (postgresql-18-pgvector, or the image pgvector/pgvector or paradedb)."
    return failure("pgvector", "Not installed on the server.", remedy)


def _check_pg_search(version: str | None) -> Finding:
    if version is None:
        return skipped("pg_search", "not installed; only ParadeDB's BM25 needs it")
    return ok("pg_search", version)
