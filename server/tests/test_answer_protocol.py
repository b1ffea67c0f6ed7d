"""What becomes of an answer whose caller stops sending or reading, by raw bytes to the protocol."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.server import ServerState

from qwen3_triton_gateway import answer_protocol
from qwen3_triton_gateway.http_protocol import GatewayProtocol
from raw_http import BODY, Echo, post, serve

LONG_BYTES = 32 << 20
LONG_HEADERS = [(b"content-length", str(LONG_BYTES).encode())]


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


async def test_a_caller_that_stopped_sending_gets_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer_protocol, "HALF_CLOSED_SECONDS", 60.0)
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


async def test_a_caller_that_stopped_sending_still_gets_a_late_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer_protocol, "HALF_CLOSED_SECONDS", 0.05)
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
async def test_a_caller_that_is_gone_is_noticed(
    version: bytes, is_reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_protocol, "HALF_CLOSED_SECONDS", 0.05)
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
