"""Load that does not wait for answers, from a process of lower priority.

    python tests/support/load_generator.py URL --rate 2000 --seconds 10 --kind short
    python tests/support/load_generator.py URL --callers 64 --seconds 10

It prints what came back as JSON. `run_load` starts it as a child: the generator must not take time
from the gateway that it measures. (Where the kernel groups processes by session, priorities count
within one session only, so the child stays in the caller's.)
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx2

# Below the gateway, but not so low that a busy gateway keeps it from sending.
NICE = 5
TICK_SECONDS = 0.01
# Texts in the different bodies, of which there are a few at least.
TEXTS = 4000
MIN_BODIES = 8
MAX_CONNECTIONS = 2000
PATIENCE_SECONDS = 60.0
RERANK_QUERY = "How do rivers carry sand?"
# Texts per request, words per text, and the path and fields of each kind of request.
KINDS: dict[str, tuple[int, int, str, dict[str, str]]] = {
    "short": (1, 6, "/embed", {}),
    "documents": (8, 50, "/embed", {}),
    "long": (16, 400, "/embed", {}),
    "bulk": (128, 12, "/embed", {}),
    "huge": (2048, 12, "/embed", {}),
    "query": (1, 6, "/embed", {"input_type": "query"}),
    "plain": (1, 12, "/v1/embeddings", {}),
    "rerank": (50, 112, "/rerank", {"query": RERANK_QUERY}),
}
WORDS = [
    f"{first}{last}" for first in ("ri", "mo", "da", "que", "ve") for last in ("ver", "ta", "n")
]
STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
CHUNKED = -1
# It is nowhere else in an answer, which is JSON in one line.
LAST_CHUNK = b"\r\n0\r\n\r\n"
RETRY_AFTER = re.compile(rb"\r\nretry-after: (\d+)", re.IGNORECASE)


@dataclass
class Outcome:
    """What came back.

    Attributes:
        statuses: Responses by status; 0 for a connection that failed.
        answered_per_second: Texts in responses with status 200, while requests were sent.
        seconds: The times from sending to the whole response of those: median, 99th percentile,
            maximum.
        refused_seconds: The same of responses with status 429.
        retry_after: Responses by their `Retry-After`.
        sent_per_second: Requests.
        not_sent: Requests that were due when every connection was waiting.
        lag_seconds: How late the generator itself was, 99th percentile: a part of the times above.
    """

    statuses: dict[int, int] = field(default_factory=dict[int, int])
    answered_per_second: float = 0.0
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    refused_seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    retry_after: dict[int, int] = field(default_factory=dict[int, int])
    sent_per_second: float = 0.0
    not_sent: int = 0
    lag_seconds: float = 0.0


class Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = bytearray()
        self._needed: int | None = None
        self._began = 0.0
        self._is_waiting = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes, began: float) -> None:
        assert self._transport is not None
        self._began, self._is_waiting = began, True
        self._received.clear()
        self._needed = None
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._needed is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            length = LENGTH.search(self._received, 0, end + 2)
            self._needed = end + 4 + int(length[1]) if length else CHUNKED
        if self._needed == CHUNKED:
            is_whole = self._received.endswith(LAST_CHUNK)
        else:
            is_whole = len(self._received) >= self._needed
        if is_whole:
            self._is_waiting = False
            self._load.finish(self, bytes(self._received[:400]), self._began)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lose(self, was_waiting=self._is_waiting)


class Load:
    """Requests of one kind, and what came back."""

    def __init__(self, url: str, kind: str, seconds: float, key: str = "") -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._texts, words, path, fields = KINDS[kind]
        self._path = path
        self._key = f"Authorization: Bearer {key}\r\n" if key else ""
        # The same requests every time, and others for every key.
        numbers = random.Random(f"7{key}")
        bodies = max(MIN_BODIES, TEXTS // self._texts)
        self._requests = [self._request(numbers, words, fields) for _ in range(bodies)]
        self._numbers = numbers
        self._seconds = seconds
        self._began = time.perf_counter()
        self._idle: list[Connection] = []
        self._open = 0
        self._waiting = 0
        self._sent = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._done: dict[int, list[float]] = {}
        self._in_time = 0
        self._retry_after: Counter[int] = Counter()
        self._not_sent = 0
        self._lags: list[float] = []

    def _request(self, numbers: random.Random, words: int, fields: dict[str, str]) -> bytes:
        texts = [
            f"{' '.join(numbers.choices(WORDS, k=words))} {numbers.randrange(10**9)}"
            for _ in range(self._texts)
        ]
        field = "input" if self._path == "/v1/embeddings" else "texts"
        body = json.dumps({field: texts, "encoding_format": "base64"} | fields).encode()
        head = f"POST {self._path} HTTP/1.1\r\nHost: a\r\n{self._key}"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def run_open(self, rate: float) -> Outcome:
        """Send requests at random times, whether or not others have been answered."""
        ticking = asyncio.create_task(self._tick())
        due, end = self._began, self._began + self._seconds
        while due < end:
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            self._send()
            due += self._numbers.expovariate(rate)
        ticking.cancel()
        return await self._settle(time.perf_counter() - self._began)

    async def run_closed(self, callers: int) -> Outcome:
        """Keep this many requests waiting."""
        self._is_closed = True
        for _ in range(callers):
            self._send()
        await asyncio.sleep(self._seconds)
        self._is_closed = False
        return await self._settle(time.perf_counter() - self._began)

    async def _tick(self) -> None:
        """Measure how late timers are."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            self._lags.append(time.perf_counter() - began - TICK_SECONDS)

    def finish(self, connection: Connection, head: bytes, began: float) -> None:
        now = time.perf_counter()
        status = STATUS.match(head)
        code = int(status[1]) if status else 0
        self._done.setdefault(code, []).append(now - began)
        self._waiting -= 1
        self._in_time += code == 200 and now <= self._began + self._seconds
        if (retry_after := RETRY_AFTER.search(head)) is not None:
            self._retry_after[int(retry_after[1])] += 1
        self._idle.append(connection)
        if self._is_closed:
            self._send()

    def lose(self, connection: Connection, *, was_waiting: bool) -> None:
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if was_waiting:
            self._waiting -= 1
            self._done.setdefault(0, []).append(0.0)

    def _send(self) -> None:
        began = time.perf_counter()
        if not self._idle and self._open >= MAX_CONNECTIONS:
            self._not_sent += 1
            return
        self._waiting += 1
        self._sent += 1
        request = self._numbers.choice(self._requests)
        if self._idle:
            self._idle.pop().send(request, began)
            return
        self._open += 1
        task = asyncio.create_task(self._connect(request, began))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, request: bytes, began: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self), self._host, self._port
            )
        except OSError:
            self._open -= 1
            self._waiting -= 1
            self._done.setdefault(0, []).append(0.0)
        else:
            connection.send(request, began)

    async def _settle(self, seconds: float) -> Outcome:
        end = time.perf_counter() + PATIENCE_SECONDS
        sent = self._sent
        while self._waiting and time.perf_counter() < end:
            await asyncio.sleep(0.05)
        statuses = {code: len(times) for code, times in sorted(self._done.items())}
        if self._waiting:
            statuses[0] = statuses.get(0, 0) + self._waiting
        return Outcome(
            statuses=statuses,
            answered_per_second=self._in_time * self._texts / seconds,
            seconds=_percentiles(self._done.get(200, [])),
            refused_seconds=_percentiles(self._done.get(429, [])),
            retry_after=dict(sorted(self._retry_after.items())),
            sent_per_second=sent / seconds,
            not_sent=self._not_sent,
            lag_seconds=_percentiles(self._lags)[1],
        )


def _percentiles(times: list[float]) -> tuple[float, float, float]:
    if not times:
        return 0.0, 0.0, 0.0
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100], times[-1]


def run_load(
    url: str, seconds: float, *, kind: str = "short", key: str = "", **how: float
) -> Outcome:
    """Run the generator in a process of lower priority.

    Args:
        url: The gateway.
        seconds: How long requests are sent.
        kind: One of `KINDS`.
        key: The API key.
        how: `rate` requests per second, or `callers` that each wait for their answer.
    """
    return start_load(url, seconds, kind=kind, key=key, **how)()


def start_load(
    url: str, seconds: float, *, kind: str = "short", key: str = "", **how: float
) -> Running:
    """Start the generator; call the result to wait for its outcome."""
    flags = [part for name, value in how.items() for part in (f"--{name}", f"{value:g}")]
    command = [sys.executable, __file__, url, "--seconds", f"{seconds:g}", "--kind", kind, *flags]
    command += ["--key", key] if key else []
    return Running(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))


@dataclass
class Running:
    """A generator at work."""

    process: subprocess.Popen[str]

    def __call__(self) -> Outcome:
        output, _ = self.process.communicate()
        assert self.process.returncode == 0, output
        values = json.loads(output)
        for name in ("statuses", "retry_after"):
            values[name] = {int(key): count for key, count in values[name].items()}
        return Outcome(**values)


@dataclass
class Watch:
    """What a prober outside of the load sees.

    Attributes:
        not_ready: Probes of `/health/ready` that were not answered with 200.
        slowest_seconds: The slowest of them.
        peak_mib: The largest resident memory of the gateway.
    """

    not_ready: int = 0
    slowest_seconds: float = 0.0
    peak_mib: float = 0.0


@contextmanager
def watching(url: str, pid: int) -> Generator[Watch]:
    """Ask for readiness five times a second for the length of a `with` block."""
    watch, ended = Watch(), threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=url, timeout=30) as client:
            while not ended.wait(0.2):
                began = time.perf_counter()
                watch.not_ready += client.get("/health/ready").status_code != 200
                watch.slowest_seconds = max(watch.slowest_seconds, time.perf_counter() - began)
                watch.peak_mib = max(watch.peak_mib, resident_mib(pid))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def resident_mib(pid: int) -> float:
    """Read a process's resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmRSS"))
    return int(kilobytes) / 1024


@click.command()
@click.argument("url")
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--kind", default="short", type=click.Choice(list(KINDS)), show_default=True)
@click.option("--rate", type=float, help="Requests per second.")
@click.option("--callers", type=int, help="Callers that each wait for their answer.")
@click.option("--key", default="", help="API key.")
def main(
    url: str, *, seconds: float, kind: str, rate: float | None, callers: int | None, key: str
) -> None:
    """Send requests to the gateway at URL, and print what came back."""
    os.nice(NICE)
    load = Load(url, kind, seconds, key)
    run = load.run_closed(callers) if callers else load.run_open(rate or 1.0)
    click.echo(json.dumps(asdict(asyncio.run(run))))


if __name__ == "__main__":
    main()
