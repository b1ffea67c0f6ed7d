"""Addresses of Triton with credentials: they authenticate requests, and are never shown."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from tritonclient.grpc import service_pb2_grpc

from local_http import serving
from qwen3_triton_gateway.backends import choose_backend
from qwen3_triton_gateway.backends.address import TritonAddress
from qwen3_triton_gateway.backends.triton import TritonBackend
from qwen3_triton_gateway.errors import EmbeddingServerError, StartupError
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings

PASSWORD = "hunter2"
# `me:hunter2` in base64.
HEADER = "Basic bWU6aHVudGVyMg=="


def settings_for(url: str, **values: Any) -> Settings:
    return Settings.model_validate({"TRITON_URL": url, **values})


@asynccontextmanager
async def http_triton(headers: list[str]) -> AsyncGenerator[str]:
    """Serve something that records the header, and is not the model."""

    async def handle(request: web.Request) -> web.Response:
        headers.append(request.headers.get("authorization", ""))
        return web.Response(status=503)

    async with serving(handle) as netloc:
        yield f"http://me:{PASSWORD}@{netloc}"


@asynccontextmanager
async def grpc_triton(headers: list[str]) -> AsyncGenerator[str]:
    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        async def refuse(self, request: Any, context: Any) -> None:
            headers.append(dict(context.invocation_metadata()).get("authorization", ""))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not ready")

        ModelMetadata = ModelReady = refuse

    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"grpc://me:{PASSWORD}@127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("serve", [http_triton, grpc_triton])
async def test_every_request_carries_the_credentials_and_no_error_shows_them(serve: Any) -> None:
    headers: list[str] = []
    async with serve(headers) as url:
        backend = TritonBackend(url, "m")
        with pytest.raises(EmbeddingServerError) as caught:
            await backend.connect()
        assert not await backend.is_ready()
        await backend.close()
    assert set(headers) == {HEADER}
    assert len(headers) >= 2
    assert PASSWORD not in repr(caught.value)


@pytest.mark.parametrize(
    ("url", "pair"),
    [
        ("http://me:p%40ss%2Fword@h:1", "Basic bWU6cEBzcy93b3Jk"),
        ("grpcs://me:hunter2@h:1", HEADER),
        ("token@h:1", "Basic dG9rZW46"),
        ("http://h:1", ""),
    ],
)
def test_credentials_are_decoded_into_a_header(url: str, pair: str) -> None:
    address = TritonAddress.parse(url)
    assert address.authorization == pair
    assert address.netloc == "h:1"


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@host:8200",
        "grpc://me:hunter2@host:8201",
        "me:hunter2@host:8200",
        "http://a:1, http://me:hunter2@host:8200 ,grpc://b:2",
        "http://hunter2@host:1",
    ],
)
def test_credentials_are_in_no_text_form(
    url: str, tokenizer_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = settings_for(url, TOKENIZER_PATH=tokenizer_dir)
    backend = choose_backend(settings)
    service = EmbeddingService(settings, backend)
    addresses = [TritonAddress.parse(part) for part in settings.triton_url]
    shown = f"{settings!r} {backend.description} {backend.states} {service.state()} {addresses}"
    assert PASSWORD not in shown
    assert "host:" in shown
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "ftp://me:hunter2@host:1",
        "http://me:hunter2/x@host:1",
        "http://me:1/hunter2@host",
        "http://me:1?hunter2@host",
        "http://me:1#hunter2@host",
        "http://me:hunter2,x@host:1",
        "http://me:hunter2@",
        "http://me:hunter2@host:port",
        "http://[me:hunter2@host",
        "http://me:hunter2\u2100@host",
    ],
)
def test_an_address_with_an_unescaped_password_is_refused_without_showing_it(
    url: str, tokenizer_dir: Path
) -> None:
    with pytest.raises(StartupError, match="percent-encode") as caught:
        choose_backend(settings_for(url, TOKENIZER_PATH=tokenizer_dir))
    assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_a_gateway_that_waits_for_triton_does_not_log_its_password(
    tokenizer_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = settings_for(
        "http://me:hunter2@127.0.0.1:1,grpc://me:hunter2@127.0.0.1:2", TOKENIZER_PATH=tokenizer_dir
    )
    service = EmbeddingService(settings, choose_backend(settings))
    connecting = asyncio.create_task(service.embedder.connect())
    while not service.readiness.reason.startswith("waiting"):
        await asyncio.sleep(0.01)
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    await service.close()
    assert "127.0.0.1:1" in service.readiness.reason
    assert PASSWORD not in service.readiness.reason + caplog.text
