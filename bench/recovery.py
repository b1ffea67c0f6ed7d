"""How fast readiness follows when Triton is killed or paused under load, and when it returns.

    python bench/recovery.py            # five rounds of each
    python bench/recovery.py --rounds 2

A request is sent every 0.1 s all the time; responses are counted by status, and every vector is
compared with the first.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import click
import httpx2
import numpy as np
from rich.console import Console
from rich.table import Table

import qwen3_nano
from gateway_process import GatewayProcess, running_gateway, triton_flags
from qwen3_triton_tools.local_triton import LocalTriton

TEXTS = [f"{'filler ' * (index % 9)}text {index}" for index in range(24)]
POLL_SECONDS = 0.01
LOAD_INTERVAL_SECONDS = 0.1
PATIENCE_SECONDS = 60.0
MIN_COSINE = 0.99999


@dataclass
class Load:
    """Requests that continue whatever happens, and their results."""

    url: str
    expected: np.ndarray
    statuses: Counter[int] = field(default_factory=Counter[int])
    wrong: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        senders: list[threading.Thread] = []
        while not self._stop.wait(LOAD_INTERVAL_SECONDS):
            sender = threading.Thread(target=self._send)
            sender.start()
            senders.append(sender)
        for sender in senders:
            sender.join()

    def _send(self) -> None:
        answer = httpx2.post(f"{self.url}/embed", json={"texts": TEXTS}, timeout=PATIENCE_SECONDS)
        self.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            cosines = (np.array(answer.json()["embeddings"]) * self.expected).sum(axis=1)
            self.wrong += int((cosines < MIN_COSINE).sum())


def seconds_until(condition: Callable[[], bool]) -> float:
    """Poll until `condition` holds, and return how long it took."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > PATIENCE_SECONDS:
            raise TimeoutError
        time.sleep(POLL_SECONDS)
    return time.perf_counter() - began


def kill(triton: LocalTriton, gateway: GatewayProcess) -> tuple[float, float]:
    """Kill Triton and restart it; return seconds to not ready, and to ready once it responds."""
    os.kill(triton.pid, signal.SIGKILL)
    lost = seconds_until(lambda: not gateway.is_ready())
    seconds_until(lambda: triton.poll() is not None)
    triton.start()
    triton.wait_ready()
    return lost, seconds_until(gateway.is_ready)


def pause(triton: LocalTriton, gateway: GatewayProcess) -> tuple[float, float]:
    """Pause and resume Triton; return seconds to not ready, and to ready again."""
    os.kill(triton.pid, signal.SIGSTOP)
    try:
        lost = seconds_until(lambda: not gateway.is_ready())
    finally:
        os.kill(triton.pid, signal.SIGCONT)
    return lost, seconds_until(gateway.is_ready)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Rounds per failure.")
def main(rounds: int) -> None:
    """Disrupt a local Triton under load, and print how fast readiness follows."""
    console = Console()
    table = Table(
        "", "not ready after", "ready after its return", "worst", "statuses", "wrong vectors"
    )
    with LocalTriton(
        model_dir=qwen3_nano.model_dir(), model_name=qwen3_nano.MODEL_ID, max_batch_size=8
    ) as triton:
        for url in (triton.grpc_url, triton.http_url):
            with running_gateway(*triton_flags(url), "--timeout-s", "10") as gateway:
                first = httpx2.post(f"{gateway.url}/embed", json={"texts": TEXTS}).json()
                for name, fault in (("killed", kill), ("paused", pause)):
                    with Load(gateway.url, np.array(first["embeddings"])) as load:
                        times = [fault(triton, gateway) for _ in range(rounds)]
                    lost, found = zip(*times, strict=True)
                    table.add_row(
                        f"{name}, {url.partition(':')[0]}",
                        f"{statistics.median(lost):.2f} s",
                        f"{statistics.median(found):.2f} s",
                        f"{max(lost):.2f} s, {max(found):.2f} s",
                        ", ".join(f"{code}: {n}" for code, n in sorted(load.statuses.items())),
                        str(load.wrong),
                    )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
