"""What callers may send before a request is complete, by raw bytes to the protocol."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
import pytest
import uvicorn
from uvicorn.server import ServerState

from qwen3_triton_gateway.http_protocol import GatewayProtocol, HttpBounds

BOUNDS = HttpBounds(header_bytes=20_000, headers=20)
BODY = b'{"texts": ["a"]}'
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
TLS = b"Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n"
WEBSOCKET = b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n"
OFFERS = [
    pytest.param(H2C, id="h2c"),
    pytest.param(TLS, id="tls"),
    pytest.param(WEBSOCKET, id="ws"),
]
NOT_HTTP = [
    pytest.param(b"NONSENSE\r\n\r\n", id="no-http"),
    pytest.param(b"GET / HTTP/1.1\r\nbad header\r\n\r\n", id="header"),
    pytest.param("GET /ü HTTP/1.1\r\nHost: a\r\n\r\n".encode(), id="path"),
    pytest.param(b"POST /embed HTTP/1.1\r\nContent-Length: many\r\n\r\n", id="length"),
    pytest.param(b"CONNECT host:443 HTTP/1.1\r\nHost: a\r\n\r\n", id="connect"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls"),
]


class Echo:
    """An application that answers with what it got, and can be told to wait before it answers."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.disconnected = asyncio.Event()

    async def __call__(
        self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]
    ) -> None:
        body, more_body = b"", True
        while more_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.set()
                return
            body, more_body = body + message["body"], message["more_body"]
        self.requests.append({"scope": scope, "body": body})
        answer = asyncio.ensure_future(self.may_answer.wait())
        gone = asyncio.ensure_future(receive())
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            self.disconnected.set()
        answer.cancel()
        gone.cancel()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serve(
    app: Echo, bounds: HttpBounds = BOUNDS, state: ServerState | None = None, **options: Any
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve an application with the protocol, and yield a connection to it."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, server_header=False, **options)
    config.load()
    loop = asyncio.get_running_loop()
    state = state or ServerState()
    create = partial(GatewayProtocol, config, state, {}, loop, bounds=bounds)
    server = await loop.create_server(create, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()


async def answer(request: bytes, app: Echo | None = None, **options: Any) -> tuple[str, bytes]:
    """Send bytes, and return everything that comes back until the connection is closed."""
    async with serve(app or Echo(), **options) as (reader, writer):
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    return head.decode(), body


def post(headers: bytes = b"", body: bytes = BODY) -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST /embed HTTP/1.1\r\nHost: a\r\n" + length + headers + b"\r\n" + body


def last(request: bytes) -> bytes:
    """Ask the server to close the connection after a request."""
    return request.replace(b"Host: a\r\n", b"Host: a\r\nConnection: close\r\n", 1)


class Recorder:
    """A transport that notes what is written to it at a time."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
async def test_an_answer_is_one_write(method: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    connect = GatewayProtocol.connection_made

    def record(protocol: GatewayProtocol, transport: Any) -> None:
        connect(protocol, Recorder(transport, writes))  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(GatewayProtocol, "connection_made", record)
    app = Echo()
    async with serve(app) as (reader, writer):
        for _ in range(2):
            writer.write(post().replace(b"POST", method))
            await reader.readuntil(b"\r\n\r\n")
            if method == b"POST":
                assert await reader.readexactly(len(BODY)) == BODY
    assert len(writes) == len(app.requests) == 2


@pytest.mark.parametrize("request_bytes", NOT_HTTP)
async def test_bytes_that_are_not_http_get_the_errors_of_the_gateway(request_bytes: bytes) -> None:
    head, body = await answer(request_bytes)
    status, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 400 Bad Request"
    assert len(headers["x-request-id"]) == 32
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    assert headers["connection"] == "close"
    assert orjson.loads(body)["error"]["code"] == "malformed_request"
    assert orjson.loads(body)["detail"]


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [
        (b"1.1", [], 400),
        (b"1.1", [b"a", b"a"], 400),
        (b"1.1", [b"a", b"b"], 400),
        (b"1.0", [b"a", b"b"], 400),
        (b"1.1", [b"a b"], 400),
        (b"1.1", [b"a, b"], 400),
        (b"1.1", [b"me@a"], 400),
        (b"1.1", [b"a/b"], 400),
        (b"1.0", [], 200),
        (b"1.1", [b""], 200),
        (b"1.1", [b"[::1]:8080"], 200),
        (b"1.1", [b"my_host.example:8080"], 200),
    ],
)
@pytest.mark.parametrize("offer", [b"", H2C])
async def test_a_request_names_its_host_once(
    version: bytes, hosts: list[bytes], status: int, offer: bytes
) -> None:
    lines = b"".join(b"Host: %b\r\n" % host for host in hosts)
    request = b"POST /embed HTTP/%b\r\n%b%b" % (version, lines, offer)
    if not offer:
        request += b"Connection: close\r\n"
    request += b"Content-Length: 1\r\n\r\nx"
    async with serve(Echo()) as (reader, writer):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        if status == 400:
            assert orjson.loads(await reader.read())["error"]["code"] == "malformed_request"


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("size", [len(BODY), 200_000])
async def test_an_offer_of_another_protocol_is_ignored(offer: bytes, size: int) -> None:
    app, body = Echo(), b"x" * size
    async with serve(app) as (reader, writer):
        for _ in range(2):  # clients repeat it on the same connection
            writer.write(post(offer, body))
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(size) == body
    for request in app.requests:
        assert b"upgrade" not in dict(request["scope"]["headers"])
        assert request["scope"]["type"] == "http"


@pytest.mark.parametrize("offer", OFFERS)
async def test_an_offer_in_single_bytes_with_a_chunked_body_is_ignored(offer: bytes) -> None:
    app = Echo()
    chunks = b"5\r\nhello\r\n0\r\n\r\n"
    request = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + offer + b"\r\n" + chunks
    )
    async with serve(app) as (reader, writer):
        for byte in request:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"


async def test_requests_behind_an_offer_are_answered_in_order() -> None:
    first, second = post(H2C), last(post(b"", b"second"))
    async with serve(Echo()) as (reader, writer):
        writer.write(first + second)
        answers = await reader.read()
    assert answers.index(BODY) < answers.index(b"second")


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"GET / HTTP/1.1\r\nX-A: ", id="header"),
        pytest.param(b"GET /", id="url"),
        pytest.param(b"GET / HTTP/1.1\r\n", id="name"),
    ],
)
async def test_headers_beyond_the_limit_are_a_431_although_they_never_end(start: bytes) -> None:
    request = start + b"a" * (BOUNDS.header_bytes * 3)
    head, body = await answer(request)
    assert head.startswith("HTTP/1.1 431 Request Header Fields Too Large")
    assert orjson.loads(body)["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize("size", [1, 1000])
async def test_too_many_headers_are_a_431(size: int) -> None:
    header = b"X-A: " + b"a" * size + b"\r\n"
    head, _ = await answer(b"GET / HTTP/1.1\r\n" + header * (BOUNDS.headers + 1) + b"\r\n")
    assert head.startswith("HTTP/1.1 431")


async def test_headers_within_the_limits_pass() -> None:
    header = b"X-A: " + b"a" * (BOUNDS.header_bytes // BOUNDS.headers - 100) + b"\r\n"
    app = Echo()
    head, body = await answer(last(post(header * (BOUNDS.headers - 3))), app)
    assert head.startswith("HTTP/1.1 200")
    assert body == BODY


async def test_every_request_of_a_connection_may_use_the_limits() -> None:
    request = post(b"X-A: " + b"a" * (BOUNDS.header_bytes // 2) + b"\r\n")
    async with serve(Echo()) as (reader, writer):
        writer.write(request * 5 + last(request))
        assert (await reader.read()).count(BODY) == 6


async def test_trailers_are_not_headers_and_are_bounded() -> None:
    app = Echo()
    start = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    trailer = b"Authorization: Bearer k\r\n"
    head, _ = await answer(last(start) + trailer + b"\r\n", app)
    assert head.startswith("HTTP/1.1 200")
    assert b"authorization" not in dict(app.requests[0]["scope"]["headers"])
    for endless in (trailer * 10_000, b"X-A: " + b"a" * 400_000):
        head, _ = await answer(start + endless)
        assert head.startswith("HTTP/1.1 400")


async def test_a_chunk_extension_is_bounded_and_chunks_of_one_byte_are_not() -> None:
    start = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    head, _ = await answer(start + b"1;" + b"a" * 400_000)
    assert head.startswith("HTTP/1.1 400")
    _, body = await answer(last(start) + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
    assert body == b"x" * 50_000


async def test_headers_that_never_end_are_a_408() -> None:
    bounds = HttpBounds(header_seconds=0.05)
    head, body = await answer(b"GET / HTTP/1.1\r\nX-A: a", bounds=bounds)
    assert head.startswith("HTTP/1.1 408 Request Timeout")
    assert orjson.loads(body)["error"]["code"] == "request_timeout"


async def test_a_body_that_never_ends_is_a_408_and_its_reader_learns_it() -> None:
    app, bounds = Echo(), HttpBounds(body_seconds=-0.95)
    head, _ = await answer(post(b"", b"x" * 100_000)[:-1], app, bounds=bounds)
    assert head.startswith("HTTP/1.1 408")
    assert app.disconnected.is_set()


async def test_a_small_body_that_never_ends_does_not_reach_the_application() -> None:
    app = Echo()
    head, body = await answer(post()[:-1], app, bounds=HttpBounds(body_seconds=0.05))
    assert head.startswith("HTTP/1.1 408")
    assert orjson.loads(body)["error"]["code"] == "request_timeout"
    assert not app.requests
    assert not app.disconnected.is_set()


async def test_a_slow_second_body_does_not_damage_the_first_answer() -> None:
    app = Echo()
    app.may_answer.clear()
    async with serve(app, HttpBounds(body_seconds=0.05)) as (reader, writer):
        writer.write(post() + post()[:-1])
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not app.requests or loop.time() < began + 0.1:
            await asyncio.sleep(0)
        app.may_answer.set()
        answers = await reader.read()
    assert answers.count(b"HTTP/1.1") == 1
    assert answers.endswith(BODY)


@pytest.mark.parametrize("size", [1, 60_000, 70_000, 300_000])
async def test_a_body_in_many_pieces_arrives_whole(size: int) -> None:
    app, body = Echo(), bytes(range(256)) * (size // 256 + 1)
    async with serve(app) as (reader, writer):
        request = last(post(b"", body))
        for start in range(0, len(request), max(1, size // 7)):
            writer.write(request[start : start + max(1, size // 7)])
            await writer.drain()
            await asyncio.sleep(0)
        answer_bytes = await reader.read()
    assert answer_bytes.endswith(body)
    assert app.requests[0]["body"] == body


async def test_a_body_that_announces_too_much_is_not_waited_for() -> None:
    app = Echo()
    async with serve(app, HttpBounds(body_bytes=1000)) as (_, writer):
        writer.write(post(b"", b"x" * 2000)[:-1990])
        writer.write_eof()  # the application learns of it, so it has been started
        await asyncio.wait_for(app.disconnected.wait(), 30)


async def test_a_connection_without_a_request_is_closed_without_an_answer() -> None:
    assert await answer(b"", timeout_keep_alive=0) == ("", b"")


async def test_a_slow_answer_is_not_a_slow_request() -> None:
    app, bounds = Echo(), HttpBounds(header_seconds=0.0, body_seconds=0.0)
    app.may_answer.clear()
    async with serve(app, bounds) as (reader, writer):
        writer.write(post())
        for _ in range(20):
            await asyncio.sleep(0)
        app.may_answer.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_the_request_begins_with_its_first_byte() -> None:
    app = Echo()
    request = post()
    async with serve(app) as (reader, writer):
        for count in (1, 2):
            before = asyncio.get_running_loop().time()
            writer.write(request[:1])
            await writer.drain()
            between = before
            while between - before < 0.01:
                await asyncio.sleep(0)
                between = asyncio.get_running_loop().time()
            writer.write(request[1:])
            await reader.readuntil(BODY)
            assert len(app.requests) == count
            assert before <= app.requests[-1]["scope"]["state"]["began"] < between


async def test_a_caller_that_stopped_sending_gets_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qwen3_triton_gateway.http_protocol.HALF_CLOSED_SECONDS", 60.0)
    app = Echo()
    app.may_answer.clear()
    async with serve(app) as (reader, writer):
        writer.write(post())
        writer.write_eof()
        while not app.requests:
            await asyncio.sleep(0)
        app.may_answer.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert (await reader.read()).endswith(BODY)


async def test_a_caller_that_stopped_sending_still_gets_a_late_answer() -> None:
    app = Echo()
    app.may_answer.clear()
    async with serve(app) as (reader, writer):
        writer.write(post())
        writer.write_eof()
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        app.may_answer.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_caller_that_is_gone_is_noticed(version: bytes, is_reset: bool) -> None:
    app = Echo()
    app.may_answer.clear()
    async with serve(app) as (_, writer):
        writer.write(post().replace(b"HTTP/1.1", b"HTTP/" + version))
        while not app.requests:
            await asyncio.sleep(0)
        if is_reset:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        await asyncio.wait_for(app.disconnected.wait(), timeout=30)


async def test_a_refused_second_request_does_not_damage_the_first_answer() -> None:
    app = Echo()
    app.may_answer.clear()
    async with serve(app) as (reader, writer):
        writer.write(post() + b"NONSENSE\r\n\r\n")
        while not app.requests:
            await asyncio.sleep(0)
        app.may_answer.set()
        answers = await reader.read()
    assert answers.count(b"HTTP/1.1 200") == 1
    assert answers.endswith(BODY)


class Flood(Echo):
    """An application whose answer is longer than what any socket takes."""

    async def __call__(
        self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]
    ) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(1 << 17), "more_body": True})
            await asyncio.sleep(0)
        self.disconnected.set()


async def test_a_caller_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayProtocol, "write_timeout_seconds", 0.2)
    app = Flood()
    async with serve(app) as (reader, writer):
        writer.write(post())
        await reader.read(1)
        transport: Any = writer.transport
        transport.pause_reading()
        await asyncio.wait_for(app.disconnected.wait(), timeout=30)


LONG_BYTES = 32 << 20
LONG_HEADERS = [(b"content-length", str(LONG_BYTES).encode())]


CHUNKED = b"POST /embed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL_BODY = HttpBounds(body_bytes=1000)


@pytest.mark.parametrize(
    "chunks",
    [
        b"E8D4A51000\r\n",
        b"e8d4a51000;name=value\r\n",
        b"5\r\nhello\r\n3e9\r\n",
        b"1f4\r\n" + b"\r\n" * 250 + b"\r\n" + b"1f5\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("offer", [b"", H2C])
async def test_chunks_that_announce_too_much_are_refused_before_they_arrive(
    chunks: bytes, size: int, offer: bytes
) -> None:
    head = CHUNKED[:-2] + offer + b"\r\n"
    async with serve(Echo(), SMALL_BODY) as (reader, writer):
        # The head in one piece: across pieces, its end is not looked for.
        writer.write(head + chunks[:size])
        for start in range(size, len(chunks), size):
            await asyncio.sleep(0)
            writer.write(chunks[start : start + size])
        answered, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 413 ")
    assert orjson.loads(body)["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("size", [1, 7, 30, 100_000])
async def test_chunks_within_the_limit_pass_however_they_are_cut(size: int) -> None:
    body = b"\r\n\r\nFFFFFF\r\n\r\n" * 10
    chunks = b"".join(b"%X;a=b\r\n%b\r\n" % (len(part), part) for part in [body, body[:1], body])
    request = CHUNKED + chunks + b"0\r\nX-A: FFFFFF\r\n\r\n"
    app = Echo()
    async with serve(app, SMALL_BODY) as (reader, writer):
        stream = request * 3 + last(request)
        for start in range(0, len(stream), size):
            writer.write(stream[start : start + size])
            await writer.drain()
        answers = await reader.read()
    assert answers.count(b"HTTP/1.1 200") == 4
    assert {request["body"] for request in app.requests} == {body + body[:1] + body}


class Long(Echo):
    """An application with one long answer, which it writes at once or in parts."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    async def __call__(
        self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]
    ) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": LONG_HEADERS})
        for _ in range(self.parts):
            body = bytes(LONG_BYTES // self.parts)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("parts", [1, 64])
async def test_a_caller_that_does_not_read_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(GatewayProtocol, "write_timeout_seconds", 3600)
    monkeypatch.setattr(GatewayProtocol, "stall_seconds", 0.1)
    state = ServerState()
    async with serve(Long(parts), state=state) as (reader, writer):
        writer.write(post())
        await reader.read(1)
        transport: Any = writer.transport
        transport.pause_reading()
        protocol: Any = next(iter(state.connections))
        protocol.shutdown()
        async with asyncio.timeout(30):
            while state.connections:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("parts", [1, 64])
async def test_a_caller_that_reads_slowly_gets_its_answer_to_the_end(
    monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(GatewayProtocol, "stall_seconds", 3600)
    state = ServerState()
    async with serve(Long(parts), state=state) as (reader, writer):
        # Less than a step, so that each one takes something from the gateway.
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        writer.write(post())
        await reader.readuntil(b"\r\n\r\n")
        protocol: Any = next(iter(state.connections))
        protocol.shutdown()
        for _ in range(LONG_BYTES >> 20):
            assert len(await reader.readexactly(1 << 20)) == 1 << 20
            if state.connections:
                protocol._end_stall()
        assert await reader.read() == b""
    assert not state.connections
