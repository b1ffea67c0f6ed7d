"""A reverse proxy between a client and the real gateway that breaks what passes through it.

It speaks HTTP/1.1 with keep-alive on loopback, forwards each request as it came, and answers with
the gateway's own bytes or with one of the faults below. What it does to a request depends on the
request and on how often it came before, never on the order of arrival, so that a test knows the
number of tries of every batch beforehand.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import math
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Literal

import httpx2

Kind = Literal[
    "status",  # answers itself, with `status` and `headers`
    "reset",  # RST instead of an answer
    "reset_in_body",  # RST after half of the body
    "cut_body",  # FIN after half of the body that content-length announces
    "cut_json",  # half of the body, under a content-length that agrees with it
    "drop_result",  # a vector or score fewer than texts
    "nan",  # the vector or score of the last text is not a number
    "slow",  # the whole answer, late
    "drip",  # the whole answer, in small pieces
    "trickle",  # so few bytes at a time that it never ends, but is never silent for long
    "hang",  # no answer at all
]
Batch = tuple[str, ...]

SLOW_SECONDS = 0.05
DRIP_PIECES = 8
DRIP_SECONDS = 0.005  # between two pieces
TRICKLE_SECONDS = 0.05  # between two bytes
HUNG_SECONDS = 60.0  # longer than any test waits: the client hangs up, or the proxy closes
_HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
_NO_LINGER = struct.pack("ii", 1, 0)  # a socket closed so sends RST


@dataclass(frozen=True)
class Fault:
    """One way of breaking an answer."""

    kind: Kind = "status"
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict[str, str])
    message: str = "broken on purpose"


def busy(status: int = 503) -> Fault:
    """Return a refusal after which a client may retry at once."""
    return Fault(status=status, headers={"Retry-After-Ms": "0"})


# Transient faults: a client that retries gets its vectors, without waiting long.
PASSING: dict[str, Fault] = {
    "503": Fault(headers={"Retry-After": "0"}),
    "429-seconds": Fault(status=429, headers={"Retry-After": "0"}),
    "429-date": Fault(status=429, headers={"Retry-After": formatdate(0, usegmt=True)}),
    "429-milliseconds": Fault(status=429, headers={"Retry-After-Ms": "10"}),
    "500": busy(500),
    "reset": Fault("reset"),
    "reset-in-body": Fault("reset_in_body"),
    "cut-body": Fault("cut_body"),
    "cut-json": Fault("cut_json"),
}
# Correct responses that are difficult to receive.
BEARABLE: dict[str, Fault] = {"slow": Fault("slow"), "drip": Fault("drip")}


@dataclass(eq=False)
class Recorded:
    """A request and its outcome."""

    texts: Batch
    body: dict[str, Any]
    try_number: int
    """1 for the first request with this batch."""
    started: float
    fault: Fault | None = None
    status: int | None = None
    """Status of the response; None if there was none."""
    request_id: str = ""
    ended: float = math.nan
    hung_up: bool = False
    """Whether the client disconnected before its response was complete."""

    @property
    def seconds_in_flight(self) -> float:
        return self.ended - self.started


Rule = Callable[[Recorded], Fault | None]


def forward(_: Recorded) -> Fault | None:
    """Inject no fault."""
    return None


def poison(texts: Collection[str], fault: Fault) -> Rule:
    """Fail every batch that contains one of these texts, forever."""
    bad = frozenset(texts)
    return lambda request: None if bad.isdisjoint(request.texts) else fault


def first_tries(text: str, *faults: Fault) -> Rule:
    """Fail the first tries of the batch that contains a text, with one fault each."""

    def rule(request: Recorded) -> Fault | None:
        broken = text in request.texts and request.try_number <= len(faults)
        return faults[request.try_number - 1] if broken else None

    return rule


@dataclass(frozen=True)
class RandomPlan:
    """Random faults from a seed, always the same for a batch and its try."""

    seed: int
    faults: Sequence[Fault]
    probability: float = 0.5
    most_tries: int = 4
    """The try that never fails, so that a client with as many tries succeeds."""

    def __call__(self, request: Recorded) -> Fault | None:
        return self.fault(request.texts, request.try_number)

    def fault(self, batch: Batch, try_number: int) -> Fault | None:
        draw = random.Random(
            hashlib.sha256(json.dumps([self.seed, batch, try_number]).encode()).digest()
        )
        faults = self.faults
        if try_number >= self.most_tries:
            faults = [fault for fault in faults if _is_bearable(fault)]
        elif try_number > 1:  # where no header says how long, waits double with every try
            faults = [fault for fault in faults if fault.headers or _is_bearable(fault)]
        return draw.choice(faults) if faults and draw.random() < self.probability else None

    def tries(self, batch: Batch) -> int:
        """Return the number of the first try that succeeds."""
        numbers = range(1, self.most_tries + 1)
        return next(number for number in numbers if _is_bearable(self.fault(batch, number)))


def _is_bearable(fault: Fault | None) -> bool:
    return fault is None or fault.kind in {"slow", "drip"}


class FaultProxy:
    """A proxy whose faults a test chooses and whose requests it can read, from any thread."""

    def __init__(self, upstream: str) -> None:
        self.rule: Rule = forward
        self.requests: list[Recorded] = []
        self.tries: Counter[Batch] = Counter()
        """The number of requests for each batch."""
        self.in_flight = 0
        self.most_in_flight = 0
        self.connections = 0
        self._upstream = upstream
        self._held: Callable[[Recorded], bool] = lambda _: False
        self._turns: list[Recorded] = []
        self._expected = 0
        self._changed = asyncio.Condition()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._ready.wait(HUNG_SECONDS), "The proxy does not listen."

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def answered(self) -> set[str]:
        """Return the texts whose vectors were returned completely."""
        whole = [request for request in self.requests if request.status == 200]
        return {text for request in whole for text in request.texts if not request.hung_up}

    def answer_in_reverse(self, count: int) -> None:
        """Hold requests until `count` have arrived, then answer the last one first."""
        self._expected = count

    def hold(self, which: Callable[[Recorded], bool]) -> None:
        """Hold the requests for which `which` is true until `release` is called."""
        self._held = which

    def release(self) -> None:
        self._held = lambda _: False
        asyncio.run_coroutine_threadsafe(self._notify(), self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # The rest runs in the proxy's own event loop.

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # Without TLS and proxies, a client is created many times faster.
        client = httpx2.AsyncClient(verify=False, trust_env=False, timeout=HUNG_SECONDS)
        async with client as self._http:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self._port: int = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after another, until either side ends the connection."""
        first = b""
        try:
            while True:
                message = await _read_message(reader, first)
                answer = asyncio.create_task(self._answer(message, writer))
                # Anything but silence until then means that the client has disconnected.
                silence = asyncio.create_task(reader.read(1))
                try:
                    await asyncio.wait({answer, silence}, return_when=asyncio.FIRST_COMPLETED)
                    if not answer.done() and not silence.result():
                        answer.cancel()
                    if not await answer:
                        return
                finally:
                    answer.cancel()
                    silence.cancel()
                    await asyncio.wait({answer, silence})
                first = b"" if silence.cancelled() else silence.result()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            return
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, message: _Message, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return False if the connection ends with it."""
        if not message.content:
            return await self._pass_on(message, writer)
        request = self._record(message.content)
        try:
            await self._wait_for_turn(request)
            request.fault = self.rule(request)
            reply = await self._reply(request, message)
            return await _send(reply, request, writer)
        except httpx2.TransportError:  # as if the proxy were down, too
            _reset(writer)
            return False
        except asyncio.CancelledError:
            request.hung_up = True
            raise
        finally:
            request.ended = time.monotonic()
            self.in_flight -= 1
            if request in self._turns:
                self._turns.remove(request)
            await self._notify()

    async def _pass_on(self, message: _Message, writer: asyncio.StreamWriter) -> bool:
        """Pass on requests that are not for vectors."""
        try:
            reply = await self._http.get(self._upstream + message.path, headers=message.headers)
        except httpx2.TransportError:  # as in `_answer`
            _reset(writer)
            return False
        return await _send(reply, Recorded((), {}, 1, time.monotonic()), writer)

    def _record(self, content: bytes) -> Recorded:
        body = json.loads(content)
        texts = tuple(body["texts"])
        self.tries[texts] += 1
        request = Recorded(texts, body, self.tries[texts], time.monotonic())
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return request

    async def _wait_for_turn(self, request: Recorded) -> None:
        async with self._changed:
            self._changed.notify_all()  # others may wait for this one
            if self._expected:
                self._expected -= 1
                self._turns.append(request)
                await self._changed.wait_for(
                    lambda: not self._expected and self._turns[-1] is request
                )
            await self._changed.wait_for(lambda: not self._held(request))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _reply(self, request: Recorded, message: _Message) -> httpx2.Response:
        fault = request.fault
        if fault is not None and fault.kind == "hang":
            await asyncio.sleep(HUNG_SECONDS)
        if fault is not None and fault.kind in {"status", "reset"}:
            error = {"message": fault.message, "type": "t", "code": "c", "param": None}
            request.request_id = f"proxy-{len(self.requests)}"
            return httpx2.Response(
                fault.status,
                headers={"X-Request-ID": request.request_id, **fault.headers},
                json={"error": error, "detail": fault.message},
            )
        reply = await self._http.post(
            self._upstream + message.path, headers=message.headers, content=message.content
        )
        request.request_id = reply.headers.get("x-request-id", "")
        return _spoiled(reply, fault)


@dataclass(frozen=True)
class _Message:
    path: str
    headers: dict[str, str]
    content: bytes


async def _read_message(reader: asyncio.StreamReader, first: bytes) -> _Message:
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.split("\r\n")
    pairs = (line.split(":", 1) for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    kept = {name: value for name, value in headers.items() if name not in _HOP_BY_HOP}
    return _Message(request_line.split(" ")[1], kept, content)


async def _send(reply: httpx2.Response, request: Recorded, writer: asyncio.StreamWriter) -> bool:
    """Write a response as the fault demands; return False if the connection ends with it."""
    kind = request.fault.kind if request.fault else None
    if kind == "reset":
        _reset(writer)
        return False
    if kind == "slow":
        await asyncio.sleep(SLOW_SECONDS)
    body = reply.content
    sent = body[: len(body) // 2] if kind in {"reset_in_body", "cut_body", "cut_json"} else body
    announced = len(sent) if kind == "cut_json" else len(body)
    request.status = reply.status_code if kind in {None, "status", "slow", "drip"} else None
    writer.write(_head(reply, announced))
    sizes = {"drip": math.ceil(len(sent) / DRIP_PIECES), "trickle": 1}
    pauses = {"drip": DRIP_SECONDS, "trickle": TRICKLE_SECONDS}
    for piece in _pieces(sent, sizes.get(kind or "", len(sent))):
        if kind in pauses:
            await asyncio.sleep(pauses[kind])
        # No pause after the last piece: a client that has everything may send the next request.
        writer.write(piece)
        await writer.drain()
    if kind == "reset_in_body":
        _reset(writer)
    return len(sent) == announced


def _head(reply: httpx2.Response, length: int) -> bytes:
    skipped = _HOP_BY_HOP | {"content-encoding"}
    headers = [(name, value) for name, value in reply.headers.items() if name not in skipped]
    lines = [f"{name}: {value}" for name, value in [*headers, ("content-length", str(length))]]
    status = HTTPStatus(reply.status_code)
    return "\r\n".join([f"HTTP/1.1 {status} {status.phrase}", *lines, "", ""]).encode("latin-1")


def _pieces(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


def _reset(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


def _spoiled(reply: httpx2.Response, fault: Fault | None) -> httpx2.Response:
    """Remove the result of the last text from a response, or put NaN into it."""
    if fault is None or fault.kind not in {"drop_result", "nan"}:
        return reply
    answer = reply.json()
    if isinstance(answer, list):
        last = answer.pop(max(range(len(answer)), key=lambda rank: answer[rank]["index"]))
        if fault.kind == "nan":
            answer.append(last | {"score": math.nan})
    else:
        last = base64.b64decode(answer["embeddings"].pop())
        if fault.kind == "nan":
            spoiled = struct.pack("<f", math.nan) + last[4:]
            answer["embeddings"].append(base64.b64encode(spoiled).decode())
    headers = {"X-Request-ID": reply.headers["x-request-id"]}
    return httpx2.Response(reply.status_code, headers=headers, content=json.dumps(answer))


@contextmanager
def fault_proxy(upstream: str) -> Generator[FaultProxy]:
    """Run a proxy for the length of a `with` block."""
    proxy = FaultProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
