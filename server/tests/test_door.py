"""Refusals before the framework, over real connections to the protocol that the gateway uses."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio
import uvicorn
from uvicorn.server import ServerState

from fake_backend import FakeBackend, FakeReranker
from qwen3_triton_gateway import admission
from qwen3_triton_gateway.admission import ALWAYS_ADMITTED, Admission, Limit
from qwen3_triton_gateway.app import create_app
from qwen3_triton_gateway.batching import Lane
from qwen3_triton_gateway.connections import Connections
from qwen3_triton_gateway.dialects import Dialect, error_response
from qwen3_triton_gateway.door import HELD_BYTES
from qwen3_triton_gateway.http_protocol import GatewayProtocol, HttpBounds
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings

KEY = "long-enough-key"
DIALECTS = [
    ("/embed", {"texts": ["a"]}, Dialect.NATIVE),
    ("/embed", {"inputs": "a"}, Dialect.TEI),
    ("/", {"inputs": ["a"]}, Dialect.TEI),
    ("/v1/embeddings", {"input": "a"}, Dialect.OPENAI),
    ("/v1/v1/embeddings/", {"input": "a"}, Dialect.OPENAI),
    ("/api/embed", {"model": "m", "input": "a"}, Dialect.OLLAMA),
    ("/v2/embed", {"texts": ["a"], "input_type": "search_document"}, Dialect.COHERE),
]
RERANKS = [
    ("/rerank", {"query": "q", "texts": ["a"]}, Dialect.RERANK),
    ("/rerank", {"query": "q", "documents": ["a"]}, Dialect.JINA),
    ("/v1/rerank", {"query": "q", "documents": ["a"]}, Dialect.JINA),
    ("/v2/rerank", {"query": "q", "documents": [{"text": "a"}]}, Dialect.JINA),
    ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}]}, Dialect.NIM),
    ("/v1/retrieval/nvidia/fake/reranking", {"query": {}, "passages": []}, Dialect.NIM),
    ("/score", {"text_1": "q", "text_2": ["a"]}, Dialect.OPENAI),
    ("/v1/score", {"queries": "q", "documents": "a"}, Dialect.OPENAI),
]
QUERIES = [
    ("/embed", {"texts": ["a"], "input_type": "query"}),
    ("/embed", {"inputs": "a", "prompt_name": "query"}),
    ("/v1/embeddings", {"input": "a", "input_type": "query"}),
    ("/v1/embeddings", {"input": "a", "model": "fake-embedding-query"}),
]


@dataclass
class Gateway:
    """A gateway on a socket, whose model answers when its gate opens."""

    service: EmbeddingService
    backend: FakeBackend
    client: httpx2.AsyncClient
    entered: list[str]
    protocol_options: dict[str, Any]
    rerank_backend: FakeBackend

    @property
    def admission(self) -> Admission:
        assert self.service.admission is not None
        return self.service.admission

    @property
    def rerank_admission(self) -> Admission:
        assert self.service.rerank_admission is not None
        return self.service.rerank_admission

    async def close_door(
        self, kind: str = "document", caller: str = ""
    ) -> list[asyncio.Task[httpx2.Response]]:
        """Let more work wait than the model does in a second."""
        self.backend.gate = asyncio.Event()
        bodies = [
            {"texts": [f"text {number}" * 9], "input_type": kind}
            for number in range(ALWAYS_ADMITTED)
        ]
        lane = Lane.QUERY if kind == "query" else Lane.DOCUMENT
        return await self._fill(self.admission, "/embed", bodies, lane, caller)

    async def close_rerank_door(self) -> list[asyncio.Task[httpx2.Response]]:
        """Let more pairs wait than the reranker scores in a second."""
        self.rerank_backend.gate = asyncio.Event()
        bodies = [{"query": "q", "texts": [f"text {i}" * 9]} for i in range(ALWAYS_ADMITTED)]
        return await self._fill(self.rerank_admission, "/rerank", bodies, Lane.QUERY)

    async def _fill(
        self,
        bounds: Admission,
        path: str,
        bodies: list[dict[str, Any]],
        lane: Lane,
        caller: str = "",
    ) -> list[asyncio.Task[httpx2.Response]]:
        self.entered.clear()
        for second in range(3):
            bounds.drain.record(100, float(second), is_backlogged=True)
        requests = [asyncio.create_task(self.client.post(path, json=body)) for body in bodies]
        while len(self.entered) < len(bodies) or bounds.entering:
            await asyncio.sleep(0.01)
        assert bounds.limit_at_the_door(lane, is_bulk=False, timeout_seconds=120, caller=caller)
        self.entered.clear()
        return requests

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.client.base_url.host, self.client.base_url.port)

    async def open_door(self, requests: list[asyncio.Task[httpx2.Response]]) -> None:
        for backend in (self.backend, self.rerank_backend):
            if backend.gate is not None:
                backend.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*requests)} == {200}


@asynccontextmanager
async def running(tokenizer_dir: Path, **values: Any) -> AsyncGenerator[Gateway]:
    backend, rerank_backend = FakeBackend(), FakeReranker()
    values = {"TOKENIZER_PATH": tokenizer_dir, "EMBED_MODEL_ID": "fake-embedding"} | values
    settings = Settings(**values)
    has_reranker = settings.rerank_tokenizer_path is not None
    service = EmbeddingService(settings, backend, rerank_backend if has_reranker else None)
    errors: list[str] = []
    app = create_app(service, on_fatal=errors.append)
    entered: list[str] = []
    options: dict[str, Any] = {}

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        entered.append(scope["path"])
        await app(scope, receive, send)

    async with AsyncExitStack() as stack:
        state: Any = await stack.enter_async_context(app.router.lifespan_context(app))
        config = uvicorn.Config(
            watched, http=GatewayProtocol, lifespan="off", log_config=None, server_header=False
        )
        config.load()
        server_state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: GatewayProtocol(config, server_state, dict(state), loop, **options),
            "127.0.0.1",
            0,
        )
        stack.callback(server.close)
        host, port = server.sockets[0].getsockname()
        client = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=f"http://{host}:{port}", timeout=60)
        )
        while not service.readiness.ready:
            assert not errors
            await asyncio.sleep(0.01)
        yield Gateway(service, backend, client, entered, options, rerank_backend)


@pytest_asyncio.fixture(name="both")
async def _both(tokenizer_dir: Path, rerank_tokenizer_dir: Path) -> AsyncGenerator[Gateway]:
    async with running(tokenizer_dir, RERANK_TOKENIZER_PATH=rerank_tokenizer_dir) as gateway:
        yield gateway


@pytest_asyncio.fixture(name="gateway")
async def _gateway(tokenizer_dir: Path) -> AsyncGenerator[Gateway]:
    async with running(tokenizer_dir) as gateway:
        yield gateway


@pytest.mark.parametrize(("path", "body", "dialect"), DIALECTS)
async def test_a_refusal_is_the_frameworks_own_but_for_its_cost(
    gateway: Gateway, path: str, body: dict[str, Any], dialect: Dialect
) -> None:
    waiting = await gateway.close_door()
    refused = await gateway.client.post(path, json=body, headers={"X-Request-ID": "mine"})
    assert gateway.entered == []
    expected = error_response(gateway.admission.refuse(Limit.WAIT, Lane.DOCUMENT), dialect)
    assert (refused.status_code, refused.content) == (429, expected.body)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["X-Request-ID"] == "mine"
    assert refused.headers["content-type"] == "application/json"
    await gateway.open_door(waiting)


async def test_reranks_are_refused_in_their_dialect_and_texts_are_embedded(both: Gateway) -> None:
    waiting = await both.close_rerank_door()
    for path, body, dialect in RERANKS:
        refused = await both.client.post(path, json=body, headers={"X-Request-ID": "mine"})
        expected = error_response(both.rerank_admission.refuse(Limit.WAIT, Lane.QUERY), dialect)
        assert (path, refused.status_code, refused.content) == (path, 429, expected.body)
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["X-Request-ID"] == "mine"
    assert both.entered == []
    assert (await both.client.post("/embed", json={"texts": ["a"]})).status_code == 200
    metrics = (await both.client.get("/metrics")).text
    assert 'dialect="nim",route="/v1/ranking",status="429"} 2.0' in metrics
    await both.open_door(waiting)


async def test_reranks_are_answered_while_texts_are_refused(both: Gateway) -> None:
    waiting = await both.close_door()
    assert (await both.client.post("/embed", json={"texts": ["a"]})).status_code == 429
    body = {"query": "q", "texts": ["a"]}
    assert (await both.client.post("/rerank", json=body)).status_code == 200
    await both.open_door(waiting)


async def test_many_short_documents_are_bulk_whose_callers_wait(both: Gateway) -> None:
    """Their tokens are in the prompts around them, and not in the body."""
    waiting = await both.close_rerank_door()
    body = {"query": "q", "texts": ["a"] * 100}
    bulk = asyncio.create_task(both.client.post("/rerank", json=body))
    while not both.entered:
        await asyncio.sleep(0.01)
    await both.open_door([*waiting, bulk])


async def announce_large_body(
    gateway: Gateway, path: bytes, monkeypatch: pytest.MonkeyPatch
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """Send the head of a bulk request that may not wait, and return the length of its body."""
    monkeypatch.setattr(admission, "ALWAYS_ADMITTED", 0)
    monkeypatch.setattr(admission, "BULK_WAIT_SHARE", 0.0)
    reader, writer = await gateway.connect()
    length = HELD_BYTES + 1
    writer.write(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path, length))
    return reader, writer, length


async def test_of_a_large_body_to_rerank_nothing_is_read(
    both: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = await both.close_rerank_door()
    reader, writer, length = await announce_large_body(both, b"/v1/ranking", monkeypatch)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 429 ")
    writer.write(b" " * length)
    assert orjson.loads(await reader.read())["object"] == "error"
    writer.close()
    assert both.entered == []
    await both.open_door(waiting)


async def test_a_connection_stays_usable_after_a_refusal(gateway: Gateway) -> None:
    waiting = await gateway.close_door()
    reader, writer = await gateway.connect()
    body = orjson.dumps({"texts": ["a"]})
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(3):
        writer.write(head)
        await asyncio.sleep(0.01)  # the body comes in a packet of its own
        writer.write(body)
        status = await reader.readuntil(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 429 ")
        length = int(status.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
    await gateway.open_door(waiting)
    writer.write(head + body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_of_a_large_body_nothing_is_read(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = await gateway.close_door()
    reader, writer, length = await announce_large_body(gateway, b"/embed", monkeypatch)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"connection: close" in head
    writer.write(b" " * length)
    assert b"queue_full" in await reader.read()
    writer.close()
    assert gateway.entered == []
    await gateway.open_door(waiting)


def in_one_piece(extra: bytes = b"", body: bytes = b'{"texts": ["a"]}') -> bytes:
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % len(body)
    return head + extra + b"\r\n" + body


ODD_REQUESTS = [
    pytest.param(in_one_piece(b"bad header\r\n"), b"400", id="bad-header"),
    pytest.param(in_one_piece(b"Content-Length: 9\r\n"), b"400", id="two-lengths"),
    pytest.param(
        b"POST /embed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"10\r\n" + b'{"texts": ["a"]}' + b"\r\n0\r\n\r\n",
        b"429",
        id="chunked",
    ),
    pytest.param(in_one_piece(b"Connection: close\r\n"), b"429", id="close"),
    pytest.param(in_one_piece(b"Expect: 100-continue\r\n"), b"429", id="expect"),
    pytest.param(in_one_piece(b"Content-Encoding: gzip\r\n"), b"400", id="not-gzip"),
    pytest.param(in_one_piece().replace(b"1.1", b"1.0", 1), b"429", id="http-1.0"),
    pytest.param(in_one_piece() * 3, b"429", id="pipelined"),
    pytest.param(in_one_piece(body=b"no JSON"), b"429", id="not-json"),
]


@pytest.mark.parametrize("piece_bytes", [50, 10_000])
@pytest.mark.parametrize(("request_bytes", "status"), ODD_REQUESTS)
async def test_every_request_is_refused_or_judged_whatever_its_pieces(
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    request_bytes: bytes,
    status: bytes,
    piece_bytes: int,
) -> None:
    waiting = await gateway.close_door()
    monkeypatch.setattr(admission, "LATE_WAIT_SECONDS", admission.MAX_WAIT_SECONDS)
    reader, writer = await gateway.connect()
    for start in range(0, len(request_bytes), piece_bytes):
        writer.write(request_bytes[start : start + piece_bytes])
        await asyncio.sleep(0)
    line = await reader.readuntil(b"\r\n\r\n")
    while line.startswith(b"HTTP/1.1 100 "):
        line = await reader.readuntil(b"\r\n\r\n")
    assert line.split()[1] == status
    writer.close()
    await gateway.open_door(waiting)


@pytest.mark.parametrize(
    "request_bytes",
    [in_one_piece(b"Connection: close\r\n"), in_one_piece().replace(b"1.1", b"1.0", 1)],
)
async def test_a_refusal_closes_the_connection_of_a_caller_that_waits_for_that(
    gateway: Gateway, request_bytes: bytes
) -> None:
    waiting = await gateway.close_door()
    reader, writer = await gateway.connect()
    writer.write(request_bytes)
    head, _, _ = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nconnection: close" in head
    writer.close()
    await gateway.open_door(waiting)


@pytest.mark.parametrize(("path", "body"), QUERIES)
async def test_queries_pass_while_documents_are_refused(
    gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    waiting = await gateway.close_door()
    query = asyncio.create_task(gateway.client.post(path, json=body))
    while not gateway.entered:
        await asyncio.sleep(0.01)
    await gateway.open_door([*waiting, query])


async def test_an_alias_of_queries_passes_while_documents_are_refused(tokenizer_dir: Path) -> None:
    aliases = '{"code": {"input_type": "query"}, "docs": {}}'
    async with running(tokenizer_dir, EMBED_MODEL_ALIASES=aliases) as gateway:
        waiting = await gateway.close_door()
        document = {"input": "a", "model": "docs"}
        assert (await gateway.client.post("/v1/embeddings", json=document)).status_code == 429
        query = {"input": "a", "model": "code"}
        task = asyncio.create_task(gateway.client.post("/v1/embeddings", json=query))
        while not gateway.entered:
            await asyncio.sleep(0.01)
        await gateway.open_door([*waiting, task])


@pytest.mark.parametrize("piece_bytes", [50, 10_000])
async def test_a_key_passes_while_another_is_refused(
    tokenizer_dir: Path, tmp_path: Path, piece_bytes: int
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"flood:{KEY}\nlone:{KEY}-2\n")
    async with running(tokenizer_dir, EMBED_API_KEYS_FILE=file) as gateway:
        gateway.client.headers["Authorization"] = f"Bearer {KEY}"
        waiting = await gateway.close_door(caller="flood")
        writers: list[asyncio.StreamWriter] = []

        async def send(key: str) -> asyncio.StreamReader:
            reader, writer = await gateway.connect()
            writers.append(writer)
            data = in_one_piece(b"Authorization: Bearer %b\r\n" % key.encode())
            for start in range(0, len(data), piece_bytes):
                writer.write(data[start : start + piece_bytes])
                await asyncio.sleep(0)
            return reader

        refused = await send(KEY)
        assert (await refused.readuntil(b"\r\n")).startswith(b"HTTP/1.1 429 ")
        answered = await send(f"{KEY}-2")
        while not gateway.entered:
            await asyncio.sleep(0.01)
        metrics = (await gateway.client.get("/metrics")).text
        assert 'key_requests_total{key="flood",status="429"} 1.0' in metrics
        await gateway.open_door(waiting)
        assert (await answered.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        for writer in writers:
            writer.close()


async def test_queries_are_refused_when_too_many_of_them_wait(gateway: Gateway) -> None:
    waiting = await gateway.close_door("query")
    refused = await gateway.client.post("/embed", json={"texts": ["a"], "input_type": "query"})
    assert refused.status_code == 429
    assert gateway.entered == []
    await gateway.open_door(waiting)


@pytest.mark.parametrize("path", ["/health", "/metrics", "/tokenizer", "/nowhere"])
async def test_nothing_else_is_refused(gateway: Gateway, path: str) -> None:
    waiting = await gateway.close_door()
    assert (await gateway.client.get(path)).status_code in {200, 404}
    assert (await gateway.client.post("/tokenize", json={"inputs": "a"})).status_code == 200
    await gateway.open_door(waiting)


async def test_a_stranger_gets_401_and_a_page_its_headers(tokenizer_dir: Path) -> None:
    keys = {"EMBED_API_KEYS": KEY, "EMBED_CORS_ORIGINS": "https://page.example"}
    async with running(tokenizer_dir, **keys) as gateway:
        gateway.client.headers["Authorization"] = f"Bearer {KEY}"
        waiting = await gateway.close_door(caller="key-1")

        async def post(**headers: str) -> httpx2.Response:
            return await gateway.client.post("/embed", json={"texts": ["a"]}, headers=headers)

        assert (await post()).status_code == 429
        assert (await post(Authorization="Bearer wrong")).status_code == 401
        # Only the middleware knows the headers that a page needs; the framework judges later.
        from_page = asyncio.create_task(post(Origin="https://page.example"))
        await gateway.open_door([*waiting, from_page])
        assert (await from_page).headers["access-control-allow-origin"] == "https://page.example"


async def test_refusals_are_counted_and_share_a_log_line(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3_triton_gateway.door.LOG_SECONDS", 1.0)
    waiting = await gateway.close_door()
    caplog.set_level(logging.INFO)
    for _ in range(30):
        await gateway.client.post("/v1/embeddings", json={"input": "a"})
    text = (await gateway.client.get("/metrics")).text
    assert 'dialect="openai",route="/v1/embeddings",status="429"} 30.0' in text
    assert 'qwen3_triton_rejected_requests_total{limit="wait"} 30.0' in text
    while not _lines_of_refusals(caplog):
        await asyncio.sleep(0.05)
    assert 1 <= len(_lines_of_refusals(caplog)) < 30
    await gateway.open_door(waiting)


def _lines_of_refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("status=429")]


async def test_what_another_application_answers_does_not_count_for_ever(gateway: Gateway) -> None:
    """The protocol answers by itself while there are too many connections."""
    gateway.protocol_options["connections"] = Connections(limit=-1)
    for _ in range(3):
        refused = await gateway.client.post("/embed", json={"texts": ["a"]})
        assert refused.status_code == 429
    assert not gateway.admission.entering


async def test_a_body_that_is_held_and_never_ends_is_a_408(gateway: Gateway) -> None:
    waiting = await gateway.close_door()
    gateway.protocol_options["bounds"] = HttpBounds(body_seconds=0.1)
    reader, writer = await gateway.connect()
    writer.write(b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
    assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    assert gateway.entered == []
    await gateway.open_door(waiting)


async def test_callers_that_leave_do_not_count_for_ever(gateway: Gateway) -> None:
    gateway.backend.gate = asyncio.Event()
    for _ in range(5):
        _, writer = await gateway.connect()
        writer.write(in_one_piece())
        await writer.drain()
        writer.transport.abort()
    gateway.backend.gate.set()
    while gateway.admission.entering or gateway.admission.requests:
        await asyncio.sleep(0.01)


async def test_nothing_counts_as_entering_once_all_is_answered(gateway: Gateway) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: gateway.client.post("/embed", json={"texts": ["a"]}),
        lambda: gateway.client.post("/embed", json={"texts": [" "]}),
        lambda: gateway.client.post("/embed", content=b"no JSON"),
        lambda: gateway.client.post("/embed", content=b""),
        lambda: gateway.client.post("/v1/embeddings", json={"input": "a", "model": "other"}),
    ]
    for call in calls:
        await call()
    assert not gateway.admission.entering


async def test_no_rerank_counts_as_entering_once_all_is_answered(both: Gateway) -> None:
    for body in ({"query": "q", "texts": ["a"]}, {"query": "q", "texts": [" "]}, {}):
        await both.client.post("/rerank", json=body)
    assert not both.rerank_admission.entering
    assert not both.admission.entering
