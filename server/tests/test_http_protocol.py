"""What callers may send before a request is complete, by raw bytes to the protocol."""

import asyncio

import orjson
import pytest

from qwen3_triton_gateway.http_protocol import HttpBounds
from raw_http import BODY, BOUNDS, Echo, answer, last, post, serve

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
