"""Waiting for what a test cannot trigger itself."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 120.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Poll until `condition` holds; the limit only ends a test that hangs."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"Never happened: {what}."
        time.sleep(0.005)


def wait_until_alone(uri: str) -> None:
    """Wait until no other session of a database is left.

    A session ends some time after its client has closed the connection. Only then are its locks and
    temporary tables gone, and its statistics complete.
    """
    import psycopg  # which few tests need

    others = """
        SELECT 1 FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND backend_type IN ('client backend', 'parallel worker')
    """
    with psycopg.connect(uri, autocommit=True) as connection:
        wait_for(
            lambda: connection.execute(others).fetchone() is None,
            "all other sessions of the database have ended",
        )
