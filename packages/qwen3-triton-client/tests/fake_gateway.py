"""A gateway on loopback that speaks the native dialect and misbehaves on request.

It speaks real HTTP over real sockets, so that the tests replace no part of the client. The tests of
the framework adapters use it, too.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import random
import socket
import struct
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pytest

DIMENSIONS = 32
FINGERPRINT = "fake-0001"
INFO_JSON = b'{"model": "fake", "max_length": 1024}'
TOKENIZER_JSON = b'{"model": {"type": "BPE"}}'

Kind = Literal[
    "status",
    "reset",
    "cut_body",
    "drip",
    "not_json",
    "drop_vector",
    "nan",
    "zero",
    "wrong_length",
]


@dataclass(frozen=True)
class Fault:
    """A wrong answer to a request."""

    kind: Kind = "status"
    status: int = 503
    message: str = "out of order"
    param: str | None = None
    code: str = "fault"
    headers: dict[str, str] = field(default_factory=dict[str, str])


def busy(status: int = 503) -> Fault:
    """A fault after which a client may retry at once."""
    return Fault(status=status, headers={"Retry-After-Ms": "0"})


@dataclass(frozen=True, eq=False)
class Recorded:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        return self.body["texts"]


def expected_vector(
    text: str,
    *,
    input_type: str = "document",
    instruction: str | None = None,
    dimensions: int = DIMENSIONS,
) -> list[float]:
    """The vector of a text: unit length, float32, different for each way of embedding it."""
    seed = json.dumps([text, input_type, instruction, dimensions])
    generator = random.Random(hashlib.sha256(seed.encode()).digest())
    values = [generator.gauss() for _ in range(dimensions)]
    norm = math.hypot(*values)
    return array("f", [value / norm for value in values]).tolist()


def expected_vectors(texts: Sequence[str]) -> list[list[float]]:
    return [expected_vector(text) for text in texts]


def expected_raw_score(query: str, document: str, instruction: str | None = None) -> float:
    """The raw score of a pair: "score 7" has 7, for whatever query."""
    if document.startswith("score "):
        return float(document.split()[1])
    return expected_vector(json.dumps([query, document]), instruction=instruction)[0]


def files_entered(call: Callable[[], object]) -> set[str]:
    """Return the files of the client and the adapters that a call enters in this thread."""
    entered: set[Path] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        del argument
        if event == "call":
            entered.add(Path(frame.f_code.co_filename))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {str(path) for path in entered if "qwen3_triton" in path.parent.name}


class FakeGateway:
    """A gateway whose behavior a test chooses and whose requests it can read."""

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.fingerprint = FINGERPRINT
        self.max_texts = 2048
        self.answer_floats = False
        self.rule: Callable[[Recorded], Fault | None] = lambda _: None
        self.in_flight = 0
        self.most_in_flight = 0
        self.connections = 0
        self._script: deque[Fault] = deque()
        self._changed = threading.Condition()
        self._expected = 0
        self._waiting: list[Recorded] = []
        self._held: Callable[[Recorded], bool] | None = None
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def then(self, *faults: Fault) -> None:
        """Answer the next requests with these faults, one per request."""
        self._script.extend(faults)

    def answer_in_reverse(self, count: int) -> None:
        """Hold requests until `count` have arrived, then answer the last one first."""
        self._expected = count

    def hold(self, which: Callable[[Recorded], bool]) -> None:
        """Hold the requests for which `which` is true until `release`."""
        self._held = which

    @property
    def open_connections(self) -> int:
        return len(self._server.open)

    def notify(self) -> None:
        """Make waiting threads check their conditions again."""
        with self._changed:
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._held = None
            self._changed.notify_all()

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.hang_up()
        self._thread.join()
        self._server.server_close()

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Wait, but not forever: a failing test must end, too."""
        return self._changed.wait_for(condition, timeout=120)

    # The methods below run in the server's threads.

    def entered(self, recorded: Recorded) -> None:
        with self._changed:
            self.requests.append(recorded)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._changed.notify_all()
            self._wait(lambda: self._held is None or not self._held(recorded))
            if self._expected:
                self._expected -= 1
                self._waiting.append(recorded)
                self._changed.notify_all()
                self._wait(lambda: not self._expected and self._waiting[-1] is recorded)

    def answering(self) -> None:
        """Count a request as done before its answer is sent; a client may then send more."""
        with self._changed:
            self.in_flight -= 1
            self._changed.notify_all()

    def left(self, recorded: Recorded) -> None:
        with self._changed:
            if recorded in self._waiting:
                self._waiting.remove(recorded)
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[FakeGateway], bool]) -> None:
        """Block until the gateway is in a given state."""
        with self._changed:
            assert self._wait(lambda: condition(self))

    def fault_for(self, recorded: Recorded) -> Fault | None:
        with self._changed:
            if self._script:
                return self._script.popleft()
        if len(recorded.texts) > self.max_texts:
            return Fault(status=413, message="the body is too large")
        return self.rule(recorded)

    def fingerprint_of(self, dimensions: int) -> str:
        """The fingerprint; like the gateway's, it depends on the number of dimensions."""
        return self.fingerprint + (f"-{dimensions}" if dimensions != DIMENSIONS else "")

    def answer(self, recorded: Recorded) -> dict[str, Any]:
        body = recorded.body
        dimensions = body.get("dimensions", DIMENSIONS)
        vectors = [
            expected_vector(
                text,
                input_type=body["input_type"],
                instruction=body.get("instruction"),
                dimensions=dimensions,
            )
            for text in recorded.texts
        ]
        tokens = sum(len(text.split()) for text in recorded.texts)
        return {
            "embeddings": vectors,
            "model": body.get("model", "fake-model"),
            "dimensions": dimensions,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "truncated": [i for i, text in enumerate(recorded.texts) if text.startswith("long")],
            "fingerprint": self.fingerprint_of(dimensions),
        }

    def ranks(self, recorded: Recorded) -> list[dict[str, Any]]:
        query, instruction = recorded.body["query"], recorded.body.get("instruction")
        scores = [expected_raw_score(query, text, instruction) for text in recorded.texts]
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
        return [{"index": index, "score": scores[index]} for index in ranked]

    def rerank_headers(self, recorded: Recorded) -> dict[str, str]:
        truncated = [str(i) for i, text in enumerate(recorded.texts) if text.startswith("long")]
        tokens = sum(len(text.split()) for text in recorded.texts)
        headers = {"X-Rerank-Fingerprint": self.fingerprint, "X-Compute-Tokens": str(tokens)}
        return headers | ({"X-Rerank-Truncated": ",".join(truncated)} if truncated else {})


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, gateway: FakeGateway) -> None:
        self.gateway = gateway
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def hang_up(self) -> None:
        """Close connections that clients left open; their threads wait for more requests."""
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up, as some tests make them do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)
        self.server.gateway.connections += 1

    def finish(self) -> None:
        super().finish()
        self.server.open.discard(self.connection)
        self.server.gateway.notify()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass

    def do_GET(self) -> None:
        self._handle({"texts": []})

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _handle(self, body: dict[str, Any]) -> None:
        gateway = self.server.gateway
        headers = {name.lower(): value for name, value in self.headers.items()}
        recorded = Recorded(self.path, headers, body)
        gateway.entered(recorded)
        try:
            fault = gateway.fault_for(recorded)
            gateway.answering()
            self._respond(gateway, recorded, fault)
        finally:
            gateway.left(recorded)

    def _respond(self, gateway: FakeGateway, recorded: Recorded, fault: Fault | None) -> None:
        if fault is not None and fault.kind == "reset":
            # With a linger time of 0, the socket closes with RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault is not None and fault.kind == "status":
            error = {
                "message": fault.message,
                "type": "t",
                "code": fault.code,
                "param": fault.param,
            }
            content = {"error": error, "detail": fault.message}
            if recorded.path.endswith("/rerank"):
                content = {**error, "error": fault.message, "error_type": "t"}
            body = json.dumps(content).encode()
            self._send(fault.status, body, fault.headers)
            return
        if recorded.path.endswith("/tokenizer"):
            self._send(200, TOKENIZER_JSON, {})
            return
        if recorded.path.endswith("/info"):
            self._send(200, INFO_JSON, {})
            return
        headers: dict[str, str] = {}
        if recorded.path.endswith("/rerank"):
            headers = gateway.rerank_headers(recorded)
            body = json.dumps(_spoil_ranks(gateway.ranks(recorded), fault)).encode()
        else:
            answer = gateway.answer(recorded)
            _spoil(answer["embeddings"], fault.kind if fault else None)
            if recorded.body.get("encoding_format") == "base64" and not gateway.answer_floats:
                answer["embeddings"] = [_base64(row) for row in answer["embeddings"]]
            body = json.dumps(answer).encode()
        if fault is not None and fault.kind == "not_json":
            body = body[: len(body) // 2]
        if fault is not None and fault.kind == "drip":
            self._drip(body)
            return
        self._send(200, body, headers, cut=fault is not None and fault.kind == "cut_body")

    def _drip(self, body: bytes) -> None:
        """Send one byte at a time until the client hangs up."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for byte in body:
            self.wfile.write(bytes([byte]))
            time.sleep(0.01)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"X-Request-ID": "request-7", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


def _base64(row: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()


def _spoil(rows: list[list[float]], kind: str | None) -> None:
    match kind:
        case "drop_vector":
            rows.pop()
        case "nan":
            rows[-1][0] = math.nan
        case "zero":
            rows[-1][:] = [0.0] * len(rows[-1])
        case "wrong_length":
            rows[-1].pop()
        case _:
            pass


def _spoil_ranks(ranks: list[dict[str, Any]], fault: Fault | None) -> list[dict[str, Any]]:
    match fault.kind if fault else None:
        case "drop_vector":
            return ranks[:-1]
        case "nan":
            return [ranks[0] | {"score": math.nan}, *ranks[1:]]
        case _:
            return ranks


@pytest.fixture(name="fake")
def fake_fixture() -> Iterator[FakeGateway]:
    gateway = FakeGateway()
    yield gateway
    gateway.close()
