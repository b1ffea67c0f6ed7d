"""The version of the ledger's tables, and the migrations that bring a ledger to it.

To change the ledger, add a file to `migrations/` with the next number. Files that were released
stay as they are.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

import psycopg

from ..database import Connection
from ..errors import TableError

# The first key of this package's advisory locks; the second is the table's id in the ledger, and
# here 0. Any number would do: "Qwen" in ASCII.
LOCK_CLASS = 0x5177656E
_MIGRATION_LOCK = 0


def prepare_ledger(connection: Connection) -> None:
    """Create the ledger, or bring an older one to this program's version.

    Everything happens in one transaction, under a lock that other processes wait for.

    Raises:
        TableError: A newer program made the ledger, or this user may not create or change it.
    """
    found = ledger_version(connection)
    if found == len(_migrations()):
        return
    try:
        with connection.transaction():
            connection.execute(
                "SELECT pg_advisory_xact_lock(%s, %s)", (LOCK_CLASS, _MIGRATION_LOCK)
            )
            done = ledger_version(connection) or 0  # another process may have been first
            for version, statements in enumerate(_migrations()[done:], start=done + 1):
                connection.execute(statements)
                connection.execute(
                    "INSERT INTO qwen3_ingest.migrations (version) VALUES (%s)", (version,)
                )
    except psycopg.errors.InsufficientPrivilege as error:
        raise TableError(_refusal(connection, found, error)) from None


def ledger_version(connection: Connection) -> int | None:
    """Return the number of the last migration, 0 for a ledger without one, None for no ledger.

    Raises:
        TableError: A newer program made the ledger.
    """
    # Not by to_regclass: after the wait for the lock it would still answer from its cache.
    rows = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'qwen3_ingest' AND c.relname IN ('tables', 'migrations')"
    )
    tables = {row[0] for row in rows}
    if "migrations" not in tables:
        return 0 if tables else None
    row = connection.execute(
        "SELECT coalesce(max(version), 0) FROM qwen3_ingest.migrations"
    ).fetchone()
    version: int = row[0] if row else 0
    if version > len(_migrations()):
        msg = (
            f"The ledger in the schema `qwen3_ingest` has version {version}, and this program "
            f"knows versions up to {len(_migrations())}. Update it: pip install --upgrade "
            "qwen3-triton-ingest."
        )
        raise TableError(msg)
    return version


@cache
def _migrations() -> tuple[LiteralString, ...]:
    folder = files(__package__ or "") / "migrations"
    scripts = sorted(folder.iterdir(), key=lambda script: script.name)
    return tuple(cast("LiteralString", script.read_text("utf-8")) for script in scripts)


def _refusal(connection: Connection, found: int | None, error: psycopg.Error) -> str:
    user, reason = connection.info.user, error.diag.message_primary
    if found is None:
        return (
            f"The user `{user}` may not create the schema `qwen3_ingest`, where the ledger is "
            f"kept ({reason}). As the database's owner run: GRANT CREATE ON DATABASE "
            f'"{connection.info.dbname}" TO "{user}"'
        )
    row = connection.execute(
        "SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'qwen3_ingest'"
    ).fetchone()
    return (
        f"The ledger in the schema `qwen3_ingest` has version {found} and must be migrated to "
        f"{len(_migrations())}, which the user `{user}` may not do ({reason}). Run this command "
        f"once as its owner, `{row and row[0]}`."
    )
