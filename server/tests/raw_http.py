"""Raw bytes to the gateway's protocol, in front of an application that is not the gateway."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from qwen3_triton_gateway.http_protocol import GatewayProtocol, HttpBounds

BOUNDS = HttpBounds(header_bytes=20_000, headers=20)
BODY = b'{"texts": ["a"]}'


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
