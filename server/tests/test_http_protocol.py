"""Bytes that are not HTTP, which uvicorn refuses before the application sees them."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import uvicorn
from uvicorn.server import ServerState

from qwen3_triton_gateway.http_protocol import GatewayProtocol

REQUESTS = [
    pytest.param(b"NONSENSE\r\n\r\n", id="no-http"),
    pytest.param(b"GET / HTTP/1.1\r\nbad header\r\n\r\n", id="header"),
    pytest.param("GET /ü HTTP/1.1\r\nHost: a\r\n\r\n".encode(), id="path"),
    pytest.param(b"POST /embed HTTP/1.1\r\nContent-Length: many\r\n\r\n", id="length"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls"),
]


async def answer(request: bytes) -> tuple[list[str], bytes]:
    """Send bytes to a server with the protocol; return the response's head and body."""

    async def app(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        raise AssertionError(scope)

    config = uvicorn.Config(
        app, http=GatewayProtocol, lifespan="off", log_config=None, server_header=False
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: GatewayProtocol(config, state, {}, loop), "127.0.0.1", 0
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    return head.decode().split("\r\n"), body


@pytest.mark.parametrize("request_bytes", REQUESTS)
async def test_bytes_that_are_not_http_get_the_errors_of_the_gateway(request_bytes: bytes) -> None:
    (status, *lines), body = await answer(request_bytes)
    headers = dict(line.split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 400 Bad Request"
    assert len(headers["x-request-id"]) == 32
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    assert headers["connection"] == "close"
    assert orjson.loads(body)["error"]["code"] == "malformed_request"
    assert orjson.loads(body)["detail"]
