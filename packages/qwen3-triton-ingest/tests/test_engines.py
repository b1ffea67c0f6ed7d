"""Threads and Ray do the same work, under the same limits, and fail with the same messages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from fault_proxy import Fault, FaultProxy, fault_proxy
from filled_tables import create_database
from gateway_process import GatewayProcess
from ingest_corpus import LoadedRow, assert_same_rows, assert_true_ledger, rows_of, write_corpus
from polling import wait_for
from qwen3_triton_ingest.engines import map_shards, open_engine
from qwen3_triton_ingest.errors import SourceError
from qwen3_triton_ingest.sources import Shard

COMMAND = Path(sys.executable).with_name("qwen3-triton-ingest")
FILES, DOCUMENTS = 12, 20
FLAGS = (
    *("--chunk-tokens", "48", "--overlap-tokens", "8", "--workers", "2"),
    *("--index", "none", "--text-index", "none"),
)
ENGINES = ("threads", "ray")


@pytest.fixture(name="corpus", scope="module")
def _corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), files=FILES, documents=DOCUMENTS)


@contextmanager
def command(
    dsn: str, gateway_url: str, *arguments: str, program: tuple[str, ...] = (str(COMMAND),)
) -> Generator[subprocess.Popen[str]]:
    """Run `load` as users do; if the test fails, kill it and everything it started."""
    variables = {"DATABASE_URL": dsn, "QWEN3_TRITON_URL": gateway_url, "TERM": "dumb"}
    process = subprocess.Popen(
        [*program, "load", *arguments, "--table", "chunks", *FLAGS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(dsn: str, gateway_url: str, *arguments: str, **options: tuple[str, ...]) -> tuple[int, str]:
    with command(dsn, gateway_url, *arguments, **options) as process:
        output, _ = process.communicate(timeout=200)
    return process.returncode, output


@pytest.fixture(name="expected", scope="module")
def _expected(
    corpus: Path, postgres_uri: str, in_process_gateway: GatewayProcess
) -> Generator[dict[str, LoadedRow]]:
    for dsn in create_database(postgres_uri):
        code, output = run(dsn, in_process_gateway.url, str(corpus), "--workers", "1")
        assert code == 0, output
        yield rows_of(dsn, "chunks")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_makes_the_same_table_within_the_limit_of_requests(
    corpus: Path,
    expected: dict[str, LoadedRow],
    database_url: str,
    in_process_gateway: GatewayProcess,
    engine: str,
) -> None:
    proxy = FaultProxy(in_process_gateway.url)
    proxy.rule = lambda _: Fault("slow")  # so that requests overlap
    try:
        arguments = (str(corpus), "--engine", engine, "--max-concurrency", "4")
        code, output = run(database_url, proxy.url, *arguments)
    finally:
        proxy.close()
    assert code == 0, output
    assert 1 < proxy.most_in_flight <= 4
    assert_same_rows(rows_of(database_url, "chunks"), expected)
    assert_true_ledger(database_url, "chunks", documents=FILES * DOCUMENTS)
    assert "240 documents written" in output
    assert "usage stats" not in output.lower()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_in_a_shard_keeps_its_message(
    database_url: str, in_process_gateway: GatewayProcess, engine: str
) -> None:
    arguments = (database_url, "--query", "SELECT 1/0 AS id, 'a' AS text", "--engine", engine)
    code, output = run(database_url, in_process_gateway.url, *arguments)
    assert code == 1, output
    assert output.strip().splitlines()[-1].startswith("Error: The query on "), output
    assert "division by zero" in output
    assert "Traceback" not in output


def test_missing_ray_is_an_error_with_the_command_that_installs_it(
    corpus: Path, database_url: str, in_process_gateway: GatewayProcess
) -> None:
    hidden = (
        "import sys; sys.modules['ray'] = None\nfrom qwen3_triton_ingest.cli import main\nmain()"
    )
    code, output = run(
        database_url,
        in_process_gateway.url,
        *(str(corpus), "--engine", "ray"),
        program=(sys.executable, "-c", hidden),
    )
    assert code == 1
    assert "pip install 'qwen3-triton-ingest[ray]'" in output
    assert "Traceback" not in output


def test_missing_ray_cluster_is_an_error_that_names_the_option(
    corpus: Path, database_url: str, in_process_gateway: GatewayProcess
) -> None:
    arguments = (str(corpus), "--engine", "ray", "--engine-address", "127.0.0.1:9")
    code, output = run(database_url, in_process_gateway.url, *arguments)
    assert code == 1, output
    assert "--engine-address" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("engine", ["threads", pytest.param("ray", marks=pytest.mark.campaign)])
def test_an_interrupt_ends_soon_and_the_run_resumes(
    tmp_path: Path, database_url: str, in_process_gateway: GatewayProcess, engine: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", files=30, documents=10)

    def documents() -> int:
        with psycopg.connect(database_url) as connection:
            exists = connection.execute("SELECT to_regclass('qwen3_ingest.documents')").fetchone()
            if exists == (None,):
                return 0
            row = connection.execute("SELECT count(*) FROM qwen3_ingest.documents").fetchone()
            return row[0] if row else 0

    arguments = (str(corpus), "--engine", engine)
    with (
        fault_proxy(in_process_gateway.url) as proxy,
        command(database_url, proxy.url, *arguments) as process,
    ):
        # The rest has to wait, so that the load cannot end before the interrupt.
        proxy.hold(lambda _: documents() > 0)
        wait_for(lambda: documents() > 0 or process.poll() is not None, "documents are loaded")
        process.send_signal(signal.SIGINT)
        proxy.release()
        output, _ = process.communicate(timeout=120)
    assert process.returncode in {1, 130}, output
    assert "Traceback" not in output
    assert 0 < documents() < 300, "it ended before the load did"
    code, output = run(database_url, in_process_gateway.url, str(corpus))
    assert code == 0, output
    assert "An interrupted run was resumed" in output
    assert documents() == 300


def shards(count: int) -> Generator[Shard]:
    for number in range(count):
        yield Shard("here", f"part {number}", number.to_bytes(2, "big"), "text")


def test_no_more_shards_than_workers_run_at_once() -> None:
    lock, under_way, most = threading.Lock(), 0, 0
    taken: list[Shard] = []

    def work(shard: Shard, _: Callable[[], bool]) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
            taken.append(shard)
        time.sleep(0.005)
        with lock:
            under_way -= 1

    planned = 0

    def plan() -> Iterator[Shard]:
        nonlocal planned
        for shard in shards(40):
            planned += 1
            assert planned <= len(taken) + 3, "shards are planned far ahead"
            yield shard

    with open_engine("threads", work, workers=3) as engine:
        assert sum(map_shards(engine, plan(), workers=3)) == 40
    assert most == 3
    assert taken[0].name == "part 0"
    assert len({shard.key for shard in taken}) == 40


def test_a_failing_shard_stops_the_rest(tmp_path: Path) -> None:
    begun: list[str] = []

    def work(shard: Shard, is_stopped: Callable[[], bool]) -> None:
        begun.append(shard.name)
        fail_beside_a_running_shard(tmp_path, shard, is_stopped)

    with (
        pytest.raises(SourceError, match="no more"),
        open_engine("threads", work, workers=2) as engine,
    ):
        list(map_shards(engine, shards(1000), workers=2))
    assert len(begun) <= 6
    assert (tmp_path / "stopped").exists(), "running work is told to stop"


def fail_beside_a_running_shard(folder: Path, shard: Shard, is_stopped: Callable[[], bool]) -> None:
    """Run part 2 until it is told to stop, and fail in part 3 while part 2 runs."""
    running = folder / "running"
    if shard.name == "part 2":
        running.touch()
        wait_for(is_stopped, "the load is stopped")
        (folder / "stopped").touch()
    if shard.name == "part 3":
        wait_for(running.exists, "the other shard is running")
        raise SourceError("no more")


def in_a_program_that_uses_ray(script: str, *arguments: str) -> None:
    """Run a script in a process of its own: Ray aborts the process that it breaks in."""
    start = "import sys, ray\nray.init(log_to_driver=False, num_cpus=2)\n"
    process = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.campaign
@pytest.mark.stack
def test_a_failing_shard_stops_the_rest_in_a_program_that_uses_ray(tmp_path: Path) -> None:
    in_a_program_that_uses_ray(
        """
        from functools import partial
        from pathlib import Path
        import test_engines as tests

        folder = Path(sys.argv[1])
        work = partial(tests.fail_beside_a_running_shard, folder)
        try:
            with tests.open_engine("ray", work, workers=2) as engine:
                list(tests.map_shards(engine, tests.shards(1000), workers=2))
        except tests.SourceError:
            assert (folder / "stopped").exists(), "running work is told to stop"
            assert ray.is_initialized(), "the program keeps its Ray"
        else:
            raise AssertionError("no error")
        """,
        str(tmp_path),
    )


@pytest.mark.campaign
def test_shards_that_finish_while_another_fails_leave_ray_alone() -> None:
    in_a_program_that_uses_ray(
        """
        import random, time
        import test_engines as tests

        def work(shard, is_stopped):
            time.sleep(random.random() / 100)
            if shard.name == "part 2":
                raise tests.SourceError("no more")

        failed = 0
        for _ in range(15):
            try:
                with tests.open_engine("ray", work, workers=3) as engine:
                    list(tests.map_shards(engine, tests.shards(6), workers=3))
            except tests.SourceError:
                failed += 1
        assert failed == 15
        """
    )
