"""PgBouncer in transaction mode, as managed services put it in front of PostgreSQL."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from demo.supervised import start_supervised
from demo.unprivileged import unprivileged
from polling import wait_for
from qwen3_triton_tools.local_triton.process import free_ports

# Small, so that connections of one client meet in one session of the server.
POOL_SIZE = 5
_CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
"""


def find_pgbouncer() -> str | None:
    """Return the program, which Debian has outside of the search path of ordinary users."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def pgbouncer(uri: str) -> Generator[str]:
    """Run PgBouncer in front of the server of a libpq URI; yield the URI of the same database."""
    program = find_pgbouncer()
    if program is None:
        reason = "PgBouncer is not installed. On Debian: apt install pgbouncer"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    parts = conninfo_to_dict(uri)
    identity = unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="qwen3-pgbouncer-"))
    listen_port = free_ports(1)[0]
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        _CONFIGURATION.format(**parts, listen_port=listen_port, size=POOL_SIZE), encoding="utf-8"
    )
    identity.own(directory)
    identity.own(configuration)
    server = start_supervised(
        [*identity.prefix, program, str(configuration)], directory=directory, uid=identity.uid
    )
    pooled = f"postgresql://postgres@127.0.0.1:{listen_port}/{parts['dbname']}"

    def answers() -> bool:
        assert not server.has_ended(), server.log_tail()
        try:
            psycopg.connect(pooled).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        wait_for(answers, "PgBouncer answers")
        yield pooled
    finally:
        server.stop()
