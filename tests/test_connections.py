"""Slow, silent and half-closed connections, and signals, against a real gateway."""

from __future__ import annotations

import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from embed_call import post
from gateway_process import GatewayProcess, running_gateway
from polling import wait_for

# These start a gateway of their own, with the model in its process.
pytestmark = pytest.mark.slow

BODY = b'{"texts": ["a"]}'
HEAD = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
MIB = 1 << 20
# The gateway ends slow headers after 10 s, and slow bodies after 60. Whoever had to wait for them
# would wait that long; a busy machine is far from half of it.
KEPT_OUT_SECONDS = 5.0


def connect(gateway: GatewayProcess, stack: ExitStack, sent: bytes = b"") -> socket.socket:
    """Open a connection that stays open until the stack closes it, and send something."""
    url = urlsplit(gateway.url)
    assert url.port is not None
    connection = socket.create_connection((url.hostname, url.port), timeout=60)
    stack.enter_context(connection)
    if sent:
        connection.sendall(sent)
    return connection


def read(connection: socket.socket) -> bytes:
    """Read until the gateway closes the connection."""
    parts: list[bytes] = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def answers(gateway: GatewayProcess) -> bool:
    try:
        return post(gateway.url, texts=["a"]).status_code == 200
    except httpx2.TransportError:
        return False


def is_live(gateway: GatewayProcess) -> bool:
    # Without httpx2, which takes most of a second on a busy machine to prepare for TLS.
    connection = HTTPConnection(urlsplit(gateway.url).netloc, timeout=60)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture(name="strict", scope="module")
def _strict() -> Generator[GatewayProcess]:
    """A gateway with short times and one place, started with few file descriptors."""
    flags = ("--max-queue-requests", "1", "--read-timeout-s", "3", "--keep-alive-s", "2")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    with running_gateway(*flags) as gateway:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        yield gateway


@pytest.fixture(name="small", scope="module")
def _small() -> Generator[GatewayProcess]:
    with running_gateway("--max-connections", "20") as gateway:
        yield gateway


def test_the_limit_of_file_descriptors_is_raised(strict: GatewayProcess) -> None:
    raised, hard = resource.prlimit(strict.process.pid, resource.RLIMIT_NOFILE)
    assert raised == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))


def test_bodies_that_do_not_arrive_take_no_place_and_end_with_408(strict: GatewayProcess) -> None:
    with ExitStack() as stack:
        slow = [connect(strict, stack, HEAD % 1000 + b'{"texts"') for _ in range(5)]
        assert answers(strict)
        for connection in slow:
            answer = read(connection)
            assert answer.startswith(b"HTTP/1.1 408 ")
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert error["code"] == "request_timeout"
    assert strict.metric("qwen3_triton_requests_total", route="/embed", status="408") == 5


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nX-A: ", HEAD % 1000], ids=["nothing", "headers", "body"]
)
def test_connections_that_wait_for_their_caller_make_room_for_others(
    small: GatewayProcess, sent: bytes
) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            waiting = [connect(small, stack) for _ in range(40)]
            for connection in waiting:
                with suppress(OSError):  # refused already
                    connection.sendall(sent)
            wait_for(lambda: answers(small), "an answer")
            wait_for(lambda: is_live(small), "an answer to a health check")
    assert "Traceback" not in small.log


def test_without_a_file_descriptor_callers_are_refused_and_the_log_stays_short() -> None:
    with running_gateway() as gateway, ExitStack() as stack:
        process = psutil.Process(gateway.process.pid)
        limits = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)
        low = process.num_fds() + 10
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (low, limits[1]))
        refused = [connect(gateway, stack) for _ in range(40)][-1]
        assert read(refused).startswith(b"HTTP/1.1 429 ")
        wait_for(lambda: is_live(gateway), "an answer to a health check")
        assert "No file descriptor is left" in gateway.log
        assert len(gateway.log.splitlines()) < 30


def test_an_idle_connection_is_closed_after_the_time_that_is_set(strict: GatewayProcess) -> None:
    with ExitStack() as stack:
        connection = connect(strict, stack, HEAD % len(BODY) + BODY)
        answer = read(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" not in answer


def test_a_half_closed_connection_gets_its_answer(in_process_gateway: GatewayProcess) -> None:
    with ExitStack() as stack:
        connection = connect(in_process_gateway, stack, HEAD % len(BODY) + BODY)
        connection.shutdown(socket.SHUT_WR)
        answer = read(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer


def test_sighup_reads_the_keys_again_and_cuts_no_request(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("the-first-key\n")
    keys.chmod(0o600)
    done = threading.Event()
    with running_gateway("--api-keys-file", str(keys)) as gateway, ThreadPoolExecutor(3) as pool:

        def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            body = {"texts": ["a", "b"]}
            return httpx2.post(
                f"{gateway.url}/embed", json=body, headers=headers, timeout=60
            ).status_code

        def call() -> set[int]:
            statuses = {status("the-first-key")}
            while not done.is_set():
                statuses.add(status("the-first-key"))
            return statuses

        def read_again(content: str) -> None:
            keys.write_text(content)
            gateway.process.send_signal(signal.SIGHUP)

        callers = [pool.submit(call) for _ in range(3)]
        try:
            assert status("the-second-key") == 401
            read_again("the-first-key\nthe-second-key\n")
            wait_for(lambda: status("the-second-key") == 200, "the second key")
            read_again("# none\n")
            wait_for(lambda: "the API keys stay as they were" in gateway.log, "the refusal")
            assert status("the-second-key") == 200
        finally:
            done.set()
        assert [caller.result() for caller in callers] == [{200}] * 3
        read_again("the-second-key\n")
        wait_for(lambda: status("the-first-key") == 401, "the end of the first key")
        assert "the-first-key" not in gateway.log


def test_sighup_without_a_key_file_changes_nothing(strict: GatewayProcess) -> None:
    strict.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "SIGHUP: there is no EMBED_API_KEYS_FILE" in strict.log, "a line")
    assert answers(strict)


@contextmanager
def watched(gateway: GatewayProcess) -> Generator[dict[str, float]]:
    """Measure resident memory and the latency of `/health/live` while a block runs."""
    process, most, done = psutil.Process(gateway.process.pid), {}, threading.Event()
    most.update(memory=0.0, seconds=0.0)

    def watch() -> None:
        while not done.wait(0.05):
            began = time.monotonic()
            assert is_live(gateway)
            most["seconds"] = max(most["seconds"], time.monotonic() - began)
            most["memory"] = max(most["memory"], process.memory_info().rss / MIB)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield most
        finally:
            done.set()
        watching.result()


@pytest.mark.campaign
@pytest.mark.parametrize("line", [b"X-A: " + b"a" * 65_000 + b"\r\n", b"a" * 65_000])
def test_headers_without_an_end_cost_no_memory(line: bytes) -> None:
    with running_gateway("--api-keys", "long-enough-key") as gateway, ExitStack() as stack:
        with watched(gateway) as most:
            connections = [
                connect(gateway, stack, b"POST /embed HTTP/1.1\r\nX-B: ") for _ in range(64)
            ]
            for connection in connections:
                try:
                    for _ in range(100):
                        connection.sendall(line)
                except OSError:
                    continue
        assert most["memory"] < 400
        assert most["seconds"] < KEPT_OUT_SECONDS
        assert all(read(connection).startswith(b"HTTP/1.1 431 ") for connection in connections[-3:])


@pytest.mark.campaign
@pytest.mark.parametrize("start", [HEAD % 500_000, b"POST /embed HTTP/1.1\r\nX-A: "])
def test_1100_slow_requests_keep_no_one_out(start: bytes) -> None:
    with running_gateway() as gateway, ExitStack() as stack, watched(gateway) as most:
        slow = [connect(gateway, stack, start) for _ in range(1100)]
        for _ in range(40):
            time.sleep(1)  # a byte a second
            for connection in slow:
                try:
                    connection.send(b"a")
                except OSError:
                    continue
            assert answers(gateway)
        assert all(read(connection).startswith(b"HTTP/1.1 408 ") for connection in slow)
    assert most["memory"] < 400
    assert most["seconds"] < KEPT_OUT_SECONDS


@pytest.mark.campaign
def test_more_connections_than_file_descriptors_keep_no_one_out() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running_gateway() as gateway, ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
        try:
            for _ in range(3):
                for _ in range(1500):
                    connect(gateway, stack)
                wait_for(lambda: answers(gateway), "an answer")
                wait_for(lambda: is_live(gateway), "an answer to a health check")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert gateway.log_path.stat().st_size < 100_000
