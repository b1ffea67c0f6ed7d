"""Resident memory of a real gateway, whatever comes in."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from gateway_process import GatewayProcess, running_gateway

pytestmark = pytest.mark.stack

MAX_MIB = 400
GROWTH_MIB = 100
TEXT_BYTES = 7_900_000
# How long a caller that does not read is kept, and a while for glibc to return its memory.
SECONDS_UNTIL_RETURNED = 60


@pytest.fixture(name="gateway", scope="module")
def _gateway() -> Iterator[GatewayProcess]:
    with running_gateway() as gateway:
        yield gateway


class Peak:
    """The most resident memory of a process during a `with` block, in MiB."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._process = psutil.Process(gateway.process.pid)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.mib = 0

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def now(self) -> int:
        return self._process.memory_info().rss >> 20

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            self.mib = max(self.mib, self.now())


@pytest.mark.parametrize("unit", ["0123456789", "!a", "一龥", "a", "🧬"])
def test_a_huge_text_of_any_script_is_bounded(gateway: GatewayProcess, unit: str) -> None:
    text = unit * (TEXT_BYTES // len(unit.encode()))
    body = json.dumps({"texts": [text]}, ensure_ascii=False).encode()
    with Peak(gateway) as peak:
        response = httpx2.post(f"{gateway.url}/embed", content=body, timeout=120)
    assert response.status_code in (200, 400)
    assert peak.mib < MAX_MIB


@pytest.mark.campaign
def test_batches_of_many_shapes_are_bounded_on_openvino() -> None:
    """What OpenVINO keeps depends on the processor, but more batches add nothing to it."""
    with running_gateway("--engine", "openvino") as gateway:
        after_each_round: list[int] = []
        for first_length in (8, 9, 10):
            for length in range(first_length, 257, 8):
                for rows in (1, 3, 8, 20):
                    texts = [f"{row} {'word ' * length}" for row in range(rows)]
                    answer = httpx2.post(f"{gateway.url}/embed", json={"texts": texts}, timeout=120)
                    assert answer.status_code == 200
            resident = psutil.Process(gateway.process.pid).memory_info().rss
            after_each_round.append(resident >> 20)
    assert after_each_round[-1] < after_each_round[0] + GROWTH_MIB


@pytest.mark.campaign
def test_many_large_answers_at_the_same_time_are_bounded(gateway: GatewayProcess) -> None:
    def call(_: int) -> int:
        body = {"texts": ["a"] * 2048}
        return httpx2.post(f"{gateway.url}/embed", json=body, timeout=120).status_code

    with Peak(gateway) as peak, ThreadPoolExecutor(64) as pool:
        statuses = set(pool.map(call, range(64)))
    assert statuses <= {200, 429}
    assert 200 in statuses
    assert peak.mib < MAX_MIB


@pytest.mark.campaign
def test_callers_that_do_not_read_are_bounded_and_their_memory_returns(
    gateway: GatewayProcess,
) -> None:
    body = json.dumps({"texts": ["a"] * 2048}).encode()
    head = f"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    address = urlsplit(gateway.url)
    with Peak(gateway) as peak, ExitStack() as callers:
        before = peak.now()
        for _ in range(200):
            caller = callers.enter_context(socket.socket())
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect((address.hostname, address.port))
            caller.sendall(head.encode() + body)
        end = time.monotonic() + SECONDS_UNTIL_RETURNED
        while time.monotonic() < end:
            assert httpx2.get(f"{gateway.url}/health/live", timeout=60).status_code == 200
            time.sleep(0.5)
        after = peak.now()
    assert peak.mib < MAX_MIB
    assert after < before + 50
