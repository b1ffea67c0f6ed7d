"""The temporary PostgreSQL of the demo, really started."""

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from demo.embedded_postgres import EmbeddedPostgresError, embedded_postgres
from polling import wait_for

pytestmark = pytest.mark.stack

EXAMPLES = Path(__file__).parents[1] / "examples"

HOLD_A_SERVER_OPEN = """
import sys
from demo.embedded_postgres import embedded_postgres
import psycopg
with embedded_postgres({port}) as uri, psycopg.connect(uri) as connection:
    directory = connection.execute("show unix_socket_directories").fetchone()[0]
    print(directory, flush=True)
    sys.stdin.read()
"""


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("port", [None, 0], ids=["unix socket", "tcp"])
def test_it_starts_with_a_current_pgvector_and_answers_from_an_hnsw_index(port: int | None):
    source = random.Random(7)
    vectors = [str([source.gauss() for _ in range(1024)]) for _ in range(50)]

    with embedded_postgres(port) as uri, psycopg.connect(uri) as connection:
        connection.execute("CREATE EXTENSION vector")
        query = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        version = connection.execute(query).fetchone()
        assert version is not None
        assert tuple(int(part) for part in version[0].split(".")) >= (0, 8, 4)

        connection.execute("CREATE TABLE items (id int, embedding vector(1024))")
        for row in enumerate(vectors):
            connection.execute("INSERT INTO items VALUES (%s, %s)", row)
        connection.execute("CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops)")
        connection.execute("SET enable_seqscan = off")
        query = "SELECT id FROM items ORDER BY embedding <=> %s LIMIT 1"
        plan = connection.execute(f"EXPLAIN {query}", (vectors[37],)).fetchall()
        assert any("Index Scan using items_embedding_idx" in line for (line,) in plan)
        assert connection.execute(query, (vectors[37],)).fetchone() == (37,)


def test_two_servers_run_at_once_without_interfering():
    with embedded_postgres(0) as first, embedded_postgres(0) as second:
        with psycopg.connect(first) as connection:
            connection.execute("CREATE TABLE only_here (x int)")
        with psycopg.connect(second) as connection:
            found = connection.execute("SELECT to_regclass('only_here')").fetchone()
    assert found == (None,)


@pytest.mark.parametrize(
    ("port", "signal_number"),
    [
        pytest.param(None, signal.SIGTERM, id="unix socket-15", marks=pytest.mark.campaign),
        pytest.param(None, signal.SIGKILL, id="unix socket-9"),
        pytest.param(0, signal.SIGTERM, id="tcp-15"),
        pytest.param(0, signal.SIGKILL, id="tcp-9", marks=pytest.mark.campaign),
    ],
)
def test_a_killed_parent_leaves_neither_server_nor_files(
    port: int | None, signal_number: signal.Signals
):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_A_SERVER_OPEN.format(port=port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        directory = Path(parent.stdout.readline().strip())
        pid = int((directory / "data" / "postmaster.pid").read_text().splitlines()[0])
        assert is_running(pid)
        parent.send_signal(signal_number)
    wait_for(lambda: not is_running(pid), "the server ends")
    wait_for(lambda: not directory.exists(), "its folder is removed")


def test_an_error_in_the_block_stops_the_server_and_removes_its_files():
    seen: list[tuple[Path, int]] = []

    def fail_inside_the_block() -> None:
        with embedded_postgres() as uri, psycopg.connect(uri) as connection:
            row = connection.execute("SHOW unix_socket_directories").fetchone()
            assert row is not None
            directory = Path(row[0])
            pid = (directory / "data" / "postmaster.pid").read_text().splitlines()[0]
            seen.append((directory, int(pid)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside_the_block()
    (directory, pid) = seen[0]
    assert not is_running(pid)
    assert not directory.exists()


def test_an_error_shows_the_end_of_the_log_and_what_to_do():
    with (
        pytest.raises(EmbeddedPostgresError, match=r"(?s)Fix .*`timeout_seconds`.*banana"),
        embedded_postgres(settings={"shared_buffers": "banana"}),
    ):
        pass


def test_a_port_in_use_is_named_with_a_remedy():
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        port = occupant.getsockname()[1]
        with (
            pytest.raises(EmbeddedPostgresError, match=f"Port {port} is in use.*0 for any free"),
            embedded_postgres(port),
        ):
            pass


def test_other_users_of_the_machine_need_the_password():
    with embedded_postgres(0) as uri:
        without_password = uri.replace(uri.split("@")[0], "postgresql://postgres")
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(without_password)


def test_durable_keeps_fsync_on_and_settings_reach_the_server():
    def show(uri: str, *names: str) -> list[str]:
        with psycopg.connect(uri) as connection:
            query = "SELECT current_setting(%s)"
            rows = [connection.execute(query, [name]).fetchone() for name in names]
        return [row[0] for row in rows if row is not None]

    with embedded_postgres() as uri:
        assert show(uri, "fsync", "synchronous_commit") == ["off", "off"]
    with embedded_postgres(durable=True, settings={"work_mem": "12MB"}) as uri:
        assert show(uri, "fsync", "synchronous_commit", "work_mem") == ["on", "on", "12MB"]


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_cannot_exist_is_refused(port: int):
    with pytest.raises(ValueError, match=rf"`port` must be 0 to 65535.*not {port}"):
        embedded_postgres(port).__enter__()
