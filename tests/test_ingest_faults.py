"""Whatever is killed while a corpus is loaded, the table ends up with every chunk exactly once.

Each test kills one part of the system with SIGKILL at random moments of a load and compares the
table with that of an undisturbed load: with one kill in `make test`, with ten in `make campaign`.
FAULT_SEED changes the moments. A load may end before its moment, if this process gets no CPU for a
while; then nothing is left to kill, and the table must be as complete.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier, Literal

from demo.unprivileged import unprivileged
from filled_tables import create_database
from gateway_process import GatewayProcess
from ingest_corpus import LoadedRow, assert_same_rows, assert_true_ledger, rows_of, write_corpus
from polling import wait_for
from qwen3_triton_ingest.config import GatewayOptions, IndexOptions, LoadOptions, SplitOptions
from qwen3_triton_ingest.load import load
from qwen3_triton_tools.local_triton.process import free_ports
from restartable_postgres import RestartablePostgres, restartable_postgres

COMMAND = Path(sys.executable).with_name("qwen3-triton-ingest")
DOCUMENTS = 20  # in a file
CHUNK_TOKENS, OVERLAP_TOKENS = 48, 8
FLAGS = ("--chunk-tokens", str(CHUNK_TOKENS), "--overlap-tokens", str(OVERLAP_TOKENS))
NO_INDEX = ("--index", "none", "--text-index", "none")
# A graph that takes seconds to build, so that a kill can hit the middle of it.
SLOW_INDEX = ("--hnsw-m", "64", "--hnsw-ef-construction", "800", "--text-index", "none")
END_SECONDS = 240.0
# An empty database takes half of the disk, and each document 4 KB.
DISK_MIB, DISK_DOCUMENTS = 12, 2500


@dataclass(frozen=True)
class Scale:
    """How many times to kill a load, and how many files it loads."""

    kills: int
    files: int


@pytest.fixture(
    name="scale",
    scope="module",
    params=[
        pytest.param(Scale(kills=1, files=15), id="1-kill"),
        pytest.param(Scale(kills=10, files=40), id="10-kills", marks=pytest.mark.campaign),
    ],
)
def _scale(request: pytest.FixtureRequest) -> Scale:
    return request.param


@pytest.fixture(name="corpus", scope="module")
def _corpus(tmp_path_factory: pytest.TempPathFactory, scale: Scale) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, files=scale.files, documents=DOCUMENTS)


@pytest.fixture(name="expected", scope="module")
def _expected(
    corpus: Path, scale: Scale, postgres_uri: str, in_process_gateway: GatewayProcess
) -> Generator[dict[str, LoadedRow]]:
    """The rows of an undisturbed load."""
    options = LoadOptions(
        split=SplitOptions(chunk_tokens=CHUNK_TOKENS, overlap_tokens=OVERLAP_TOKENS),
        gateway=GatewayOptions(url=in_process_gateway.url),
        index=IndexOptions(policy="none", text="none"),
    )
    for dsn in create_database(postgres_uri):
        load([corpus], dsn=dsn, table="undisturbed", options=options)
        assert_true_ledger(dsn, "undisturbed", documents=scale.files * DOCUMENTS)
        yield rows_of(dsn, "undisturbed")


@dataclass
class Kills:
    """How many times to kill, the documents to load, and the source of the random moments."""

    count: int
    documents: int
    rng: random.Random


@pytest.fixture(name="kills")
def _kills(request: pytest.FixtureRequest, scale: Scale) -> Kills:
    seed = os.environ.get("FAULT_SEED", request.node.name)
    return Kills(scale.kills, scale.files * DOCUMENTS, random.Random(seed))


@pytest.fixture(name="server")
def _server() -> Generator[RestartablePostgres]:
    with restartable_postgres() as server:
        yield server


class Loader:
    """A run of the `load` command in a process of its own."""

    def __init__(self, corpus: Path, dsn: str, gateway_url: str, *flags: str) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        variables = {"DATABASE_URL": dsn, "QWEN3_TRITON_URL": gateway_url}
        self.process = subprocess.Popen(
            [str(COMMAND), "load", str(corpus), "--table", "chunks", *FLAGS, *flags],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
        )

    @property
    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def is_running(self) -> bool:
        """Return whether it runs; fail if it has failed."""
        assert self.process.poll() in {None, 0}, self.output[-3000:]
        return self.process.poll() is None

    def kill(self) -> bool:
        """Kill it; return whether it was killed before it had loaded everything."""
        self.process.kill()
        return self.process.wait() != 0

    def finish(self) -> None:
        code = self.process.wait(END_SECONDS)
        assert code == 0, self.output[-3000:]

    def descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def close(self) -> None:
        """Kill it and every process that it started."""
        descendants = self.descendants()
        if self.process.poll() is None:
            self.kill()
        for each in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._output.close()


@contextlib.contextmanager
def loading(corpus: Path, dsn: str, gateway_url: str, *flags: str) -> Generator[Loader]:
    loader = Loader(corpus, dsn, gateway_url, *flags)
    try:
        yield loader
    finally:
        loader.close()


def assert_whole(dsn: str, expected: dict[str, LoadedRow]) -> None:
    assert_same_rows(rows_of(dsn, "chunks"), expected)
    documents = len({row.doc_id for row in expected.values()})
    assert_true_ledger(dsn, "chunks", documents=documents)


def _own_backends(dsn: str, state: str = "%") -> list[int]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'qwen3-triton-ingest' "
            "AND state LIKE %s",
            (state,),
        )
        return [row[0] for row in rows]


def _documents_done(dsn: str) -> int:
    with contextlib.suppress(psycopg.Error), psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM qwen3_ingest.documents").fetchone()
        return row[0] if row else 0
    return 0


def _index_is_being_built(dsn: str) -> bool:
    with contextlib.suppress(psycopg.Error), psycopg.connect(dsn) as connection:
        query = "SELECT 1 FROM pg_stat_progress_create_index WHERE phase <> 'initializing'"
        return connection.execute(query).fetchone() is not None
    return False


def _wait_for_index_build(dsn: str, loader: Loader) -> None:
    wait_for(
        lambda: _index_is_being_built(dsn) or not loader.is_running(), "the index build starts"
    )


class Moments:
    """Random moments of a load, spread over it by the number of documents that are done."""

    def __init__(self, kills: Kills, dsn: str) -> None:
        # Not in the last quarter, so that the load still runs when the part is killed.
        last = kills.documents * 3 // 4
        self.marks = sorted(kills.rng.randrange(last) for _ in range(kills.count))
        self._rng = kills.rng
        self._dsn = dsn

    def wait(self, mark: int, loader: Loader) -> None:
        """Wait until that many documents are loaded, and a random moment longer."""

        def reached() -> bool:
            return _documents_done(self._dsn) >= mark or not loader.is_running()

        wait_for(reached, f"{mark} documents are loaded")
        time.sleep(self._rng.uniform(0, 0.4))


def test_a_killed_loader_resumes_where_it_stopped(
    corpus: Path,
    expected: dict[str, LoadedRow],
    database_url: str,
    in_process_gateway: GatewayProcess,
    kills: Kills,
) -> None:
    moments = Moments(kills, database_url)
    before = in_process_gateway.metric("qwen3_triton_texts_total")
    for mark in moments.marks:
        with loading(corpus, database_url, in_process_gateway.url, *NO_INDEX) as loader:
            moments.wait(mark, loader)
            if not loader.kill():
                break
    else:
        with loading(corpus, database_url, in_process_gateway.url, *NO_INDEX) as loader:
            loader.finish()
    assert_whole(database_url, expected)
    texts = in_process_gateway.metric("qwen3_triton_texts_total") - before
    # A kill costs at most the work in flight; finished work is not repeated.
    assert texts < 2 * len(expected)


def test_a_loader_killed_while_it_builds_the_index_builds_it_on_resuming(
    corpus: Path,
    expected: dict[str, LoadedRow],
    database_url: str,
    in_process_gateway: GatewayProcess,
    kills: Kills,
) -> None:
    for _ in range(kills.count):
        with loading(corpus, database_url, in_process_gateway.url, *SLOW_INDEX) as loader:
            _wait_for_index_build(database_url, loader)
            time.sleep(kills.rng.uniform(0, 0.5))
            if not loader.kill():
                break
    else:
        with loading(corpus, database_url, in_process_gateway.url, *SLOW_INDEX) as loader:
            loader.finish()
    assert_whole(database_url, expected)
    assert_one_valid_index(database_url)


def assert_one_valid_index(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw'"
        ).fetchall()
    assert rows == [(True,)]


def test_a_load_survives_kills_of_the_gateway(
    corpus: Path,
    expected: dict[str, LoadedRow],
    database_url: str,
    kills: Kills,
) -> None:
    port = str(free_ports(1)[0])
    gateway = GatewayProcess("--port", port)
    try:
        gateway.wait_ready()
        url = gateway.url
        moments = Moments(kills, database_url)
        with loading(corpus, database_url, url, *NO_INDEX) as loader:
            for mark in moments.marks:
                moments.wait(mark, loader)
                gateway.kill()
                time.sleep(kills.rng.uniform(0, 0.5))
                gateway = GatewayProcess("--port", port)
                gateway.wait_ready()
            loader.finish()
    finally:
        gateway.stop()
    assert_whole(database_url, expected)


def test_a_load_survives_kills_of_postgres(
    corpus: Path,
    expected: dict[str, LoadedRow],
    server: RestartablePostgres,
    in_process_gateway: GatewayProcess,
    kills: Kills,
) -> None:
    moments = Moments(kills, server.uri)
    with loading(corpus, server.uri, in_process_gateway.url, *NO_INDEX) as loader:
        for mark in moments.marks:
            moments.wait(mark, loader)
            server.kill()
            time.sleep(kills.rng.uniform(0, 0.5))
            server.start()
        loader.finish()
    assert_whole(server.uri, expected)


def test_a_load_survives_kills_of_postgres_while_it_builds_the_index(
    corpus: Path,
    expected: dict[str, LoadedRow],
    server: RestartablePostgres,
    in_process_gateway: GatewayProcess,
    kills: Kills,
) -> None:
    with loading(corpus, server.uri, in_process_gateway.url, *SLOW_INDEX) as loader:
        for _ in range(kills.count):
            _wait_for_index_build(server.uri, loader)
            time.sleep(kills.rng.uniform(0, 0.5))
            server.cut_power()
            server.start()
        loader.finish()
    assert_whole(server.uri, expected)
    assert_one_valid_index(server.uri)


def test_a_load_survives_kills_of_postgres_backends(
    corpus: Path,
    expected: dict[str, LoadedRow],
    server: RestartablePostgres,
    in_process_gateway: GatewayProcess,
    kills: Kills,
) -> None:
    moments = Moments(kills, server.uri)
    with loading(corpus, server.uri, in_process_gateway.url, *NO_INDEX) as loader:
        for mark in moments.marks:
            moments.wait(mark, loader)

            def kill_one() -> bool:
                # Preferably an active one: in the middle of a COPY or of a transaction.
                backends = _own_backends(server.uri, "%active%") or _own_backends(server.uri)
                if not backends:
                    return not loader.is_running()
                return server.kill_backend(kills.rng.choice(backends))

            wait_for(kill_one, "a backend of the loader is killed")
            server.wait()
        loader.finish()
    assert_whole(server.uri, expected)


def _ray_workers(loader: Loader) -> list[psutil.Process]:
    def is_worker(each: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            title = " ".join(each.cmdline())
            # Ray's own agents have such names too, and the node dies with them.
            return title.startswith("ray::ingest")
        return False

    return [each for each in loader.descendants() if is_worker(each)]


@pytest.mark.campaign  # a cluster costs more CPU than all of the load
def test_a_load_survives_kills_of_ray_workers(
    corpus: Path,
    expected: dict[str, LoadedRow],
    database_url: str,
    in_process_gateway: GatewayProcess,
    kills: Kills,
) -> None:
    flags = (*NO_INDEX, "--engine", "ray")
    moments = Moments(kills, database_url)
    with loading(corpus, database_url, in_process_gateway.url, *flags) as loader:
        for mark in moments.marks:
            moments.wait(mark, loader)
            # A worker may end by itself just before.
            wait_for(
                lambda: _kill_one(_ray_workers(loader), kills.rng) or not loader.is_running(),
                "a Ray worker dies",
            )
        loader.finish()
    assert_whole(database_url, expected)


def _kill_one(processes: list[psutil.Process], rng: random.Random) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        rng.choice(processes).send_signal(signal.SIGKILL)
        return True
    return False


@pytest.mark.campaign
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_load_resumes_after_the_disk_was_full(
    postgres_uri: str, in_process_gateway: GatewayProcess, tmp_path: Path
) -> None:
    source = tmp_path / "articles.jsonl"
    lines = (f'{{"id": {n}, "text": "Article number {n}"}}' for n in range(DISK_DOCUMENTS))
    source.write_text("\n".join(lines), encoding="utf-8")
    with full_disk(postgres_uri) as (dsn, grow):
        with loading(source, dsn, in_process_gateway.url, *NO_INDEX) as loader:
            assert loader.process.wait(END_SECONDS) == 1
            assert "PostgreSQL has no space left" in loader.output
        grow()
        with loading(source, dsn, in_process_gateway.url, *NO_INDEX) as loader:
            loader.finish()
        assert_true_ledger(dsn, "chunks", documents=DISK_DOCUMENTS)
        assert len(rows_of(dsn, "chunks")) == DISK_DOCUMENTS


@contextlib.contextmanager
def full_disk(postgres_uri: str) -> Generator[tuple[str, Callable[[], None]]]:
    """Create a database on a small disk; yield its DSN, and what enlarges the disk."""
    disk = Path(tempfile.mkdtemp(prefix="qwen3-disk-"))
    unprivileged().own(disk)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        disk.rmdir()
        pytest.skip("This machine does not allow to mount a file system.")
    name = f"disk_{secrets.token_hex(4)}"
    try:
        (disk / "space").mkdir()
        unprivileged().own(disk / "space")
        with psycopg.connect(postgres_uri, autocommit=True) as connection:
            connection.execute(
                SQL("CREATE TABLESPACE {} LOCATION {}").format(
                    Identifier(name), Literal(str(disk / "space"))
                )
            )
            connection.execute(
                SQL("CREATE DATABASE {} TABLESPACE {}").format(Identifier(name), Identifier(name))
            )

        def grow() -> None:
            subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)

        try:
            yield make_conninfo(postgres_uri, dbname=name), grow
        finally:
            with psycopg.connect(postgres_uri, autocommit=True) as connection:
                connection.execute(SQL("DROP DATABASE {} (FORCE)").format(Identifier(name)))
                connection.execute(SQL("DROP TABLESPACE {}").format(Identifier(name)))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()
