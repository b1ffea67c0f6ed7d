"""What may be between the gateway and a Triton: proxies, headers, TLS, the wrong port."""

import asyncio
import gzip
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import web
from pydantic import ValidationError
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from local_http import serving
from qwen3_triton_gateway.backends import choose_backend, triton
from qwen3_triton_gateway.backends.address import TritonAddress
from qwen3_triton_gateway.backends.refusals import translate
from qwen3_triton_gateway.backends.triton import MARGIN_BYTES, TritonBackend
from qwen3_triton_gateway.errors import (
    AnswerTooLargeError,
    BackendError,
    BackendUnavailableError,
    DeadlineExceededError,
    EmbeddingServerError,
    StartupError,
)
from qwen3_triton_gateway.settings import Settings, parse_headers
from qwen3_triton_gateway.tensors import TokenBatch

messages: Any = service_pb2  # its classes are made when it is imported
ADDRESS = TritonAddress.parse("http://triton:8000")
HTML = "<html><h1>proxy</h1></html>"
# Far more than the bounds and the buffers of sockets.
ENOUGH_BYTES = 64 << 20
PROXY_STATUSES = [401, 403, 404, 405, 407, 408, 413, 429, 500, 502, 503, 504, 520]


@asynccontextmanager
async def http_server(
    seen: list[web.Request],
    status: int = 502,
    body: str | bytes = HTML,
    ssl: SSLContext | None = None,
    headers: dict[str, str] | None = None,
) -> AsyncGenerator[str]:
    """Answer everything with one status, and record the requests."""

    async def handle(request: web.Request) -> web.Response:
        seen.append(request)
        content = body.encode() if isinstance(body, str) else body
        return web.Response(status=status, body=content, content_type="text/html", headers=headers)

    async with serving(handle, ssl) as netloc:
        yield netloc


INPUTS = ("input_ids", "attention_mask")
METADATA = {
    "name": "m",
    "versions": ["1"],
    "inputs": [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in INPUTS],
    "outputs": [{"name": "last_hidden_state", "datatype": "FP32", "shape": [-1, -1, 8]}],
}
PART = b"\0" * (1 << 18)


@asynccontextmanager
async def endless_server(
    sent: Counter[str], *, headers: dict[str, str] | None = None, is_described: bool = True
) -> AsyncGenerator[str]:
    """Describe a model, if it is to, and answer everything else without an end."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if is_described and request.path == "/v2/models/m":
            return web.json_response(METADATA)
        if is_described and request.path == "/v2/models/m/config":
            return web.json_response({"max_batch_size": 4})
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        with suppress(ConnectionError):
            while sent[request.path] < ENOUGH_BYTES:
                await response.write(PART)
                sent[request.path] += len(PART)
        return response

    async with serving(handle) as netloc:
        yield netloc


@asynccontextmanager
async def grpc_server(
    seen: list[dict[str, Any]],
    credentials: grpc.ServerCredentials | None = None,
    replies: dict[str, Any] | None = None,
) -> AsyncGenerator[str]:
    """Answer what Triton answers while the model loads, or replies; record the metadata."""
    answers = replies or {}

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        async def refuse(self, request: Any, context: Any) -> None:
            seen.append(dict(context.invocation_metadata()))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not ready")

        def reply(self, name: str) -> Any:
            async def answer(request: Any, context: Any) -> Any:
                return answers[name] if name in answers else await self.refuse(request, context)

            return answer

        def __getattribute__(self, name: str) -> Any:
            is_call = name.startswith("Model")
            return self.reply(name) if is_call else super().__getattribute__(name)

    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def connect(url: str, **settings: Any) -> EmbeddingServerError:
    """Connect to something that is not the model, and return the error."""
    backend = choose_backend(Settings.model_validate({"TRITON_URL": url, **settings}))
    with pytest.raises(EmbeddingServerError) as caught:
        await backend.connect()
    await backend.close()
    return caught.value


@pytest.mark.parametrize("status", PROXY_STATUSES)
async def test_whatever_a_proxy_answers_at_start_is_waited_for_and_named(status: int) -> None:
    async with http_server([], status) as netloc:
        error = await connect(f"http://{netloc}")
    assert isinstance(error, BackendUnavailableError)
    assert f"A proxy in front of Triton at http://{netloc} answered {status}" in error.message
    assert "html" not in error.message
    assert ("EMBED_TRITON_HEADERS" in error.message) == (status in {401, 403, 407})


async def test_what_triton_itself_refuses_at_start_ends_it_with_a_sentence() -> None:
    async with http_server([], 400, '{"error": "the model has no config"}') as netloc:
        error = await connect(f"http://{netloc}")
    assert isinstance(error, StartupError)
    assert error.message.endswith("does not describe the model: the model has no config")


async def test_a_restricted_api_names_the_setting_for_its_header() -> None:
    body = '{"error": "This API is restricted, expecting header \'admin-key\'"}'
    async with http_server([], 403, body) as netloc:
        error = await connect(f"http://{netloc}")
    assert isinstance(error, BackendUnavailableError)
    assert "expecting header 'admin-key'" in error.message
    assert "EMBED_TRITON_HEADERS" in error.message


@pytest.mark.parametrize("status", [*map(str, PROXY_STATUSES), "StatusCode.UNAVAILABLE"])
def test_a_proxys_answer_at_run_time_can_be_retried_elsewhere(status: str) -> None:
    words = "an exception occurred in the client while decoding the response: not JSON"
    error = translate(InferenceServerException(words, status), ADDRESS)
    assert isinstance(error, BackendUnavailableError)
    assert error.status == 503
    assert error.retry_after_seconds is not None


@pytest.mark.parametrize("code", [401, 403, 404, 429, 500, 502, 503, 504])
def test_a_proxys_answer_to_grpc_can_be_retried_elsewhere(code: int) -> None:
    words = f"Received http2 header with status: {code}"
    for status in ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "UNIMPLEMENTED"):
        reply = InferenceServerException(words, f"StatusCode.{status}")
        error = translate(reply, TritonAddress.parse("grpc://triton:8001"))
        assert isinstance(error, BackendUnavailableError)
        assert f"answered {code} " in error.message


def test_what_triton_says_of_a_batch_is_not_retried() -> None:
    for status in ("400", "500", "StatusCode.INTERNAL", "StatusCode.INVALID_ARGUMENT"):
        error = translate(InferenceServerException("unexpected shape", status), ADDRESS)
        assert type(error) is BackendError
    late = InferenceServerException("timeout expired", "StatusCode.UNAVAILABLE")
    assert type(translate(late, ADDRESS)) is DeadlineExceededError


@pytest.mark.parametrize(
    ("url", "prefix"), [("", ""), ("/", ""), ("/triton", "/triton"), ("/a/b/", "/a/b")]
)
async def test_requests_go_below_the_path_of_the_address(url: str, prefix: str) -> None:
    seen: list[web.Request] = []
    async with http_server(seen) as netloc:
        backend = TritonBackend(f"http://{netloc}{url}", "m")
        with pytest.raises(BackendUnavailableError):
            await backend.connect()
        assert not await backend.is_ready()
        await backend.close()
        assert str(backend.address) == f"http://{netloc}{prefix}"
    assert {request.path.removeprefix(prefix) for request in seen} >= {
        "/v2/models/m",
        "/v2/models/m/ready",
    }


async def test_one_probe_without_an_answer_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "PROBE_SECONDS", 0.5)
    probes: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/ready"):
            probes.append(request.path)
            if len(probes) == 1:
                monkeypatch.setattr(triton, "PROBE_SECONDS", 60.0)  # for the next one
                await asyncio.Event().wait()
        return web.Response()

    async with serving(answer) as netloc:
        backend = TritonBackend(f"http://{netloc}", "m")
        assert await backend.is_ready()
        await backend.close()
    assert len(probes) == 2


async def test_one_probe_that_is_refused_is_enough() -> None:
    seen: list[web.Request] = []
    async with http_server(seen, 503) as netloc:
        backend = TritonBackend(f"http://{netloc}", "m")
        assert not await backend.is_ready()
        await backend.close()
    assert sum(request.path.endswith("/ready") for request in seen) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("grpc://h:1/triton", "has a path, which gRPC does not support"),
        ("grpcs://me:hunter2@h:1/triton", "grpcs://h:1, or http:// with the path"),
        ("http://h:1/a?token=hunter2", "is followed by a query or a fragment"),
        ("http://h:1/#hunter2", "is followed by a query or a fragment"),
    ],
)
def test_what_an_address_cannot_have_is_refused(url: str, words: str) -> None:
    with pytest.raises(StartupError) as caught:
        TritonAddress.parse(url)
    assert words in caught.value.message
    assert "hunter2" not in caught.value.message


async def test_the_grpc_port_as_http_is_named() -> None:
    async with grpc_server([]) as netloc:
        error = await connect(f"http://{netloc}")
    assert isinstance(error, StartupError)
    assert f"use grpc://{netloc}." in error.message


async def test_the_http_port_as_grpc_is_named() -> None:
    async with http_server([], 200) as netloc:
        error = await connect(f"grpc://{netloc}")
    assert isinstance(error, StartupError)
    assert f"use http://{netloc}." in error.message


async def test_a_description_without_an_end_is_not_read_to_it() -> None:
    sent: Counter[str] = Counter()
    async with endless_server(sent, is_described=False) as netloc:
        error = await connect(f"http://{netloc}")
    assert isinstance(error, StartupError)
    assert "larger than 4194304 bytes" in error.message
    assert max(sent.values()) < ENOUGH_BYTES


async def infer(url: str, rows: int = 2, length: int = 16) -> EmbeddingServerError:
    """Send a batch to something that describes the model, and return the error."""
    backend = TritonBackend(url, "m")
    await backend.connect()
    ids = np.ones((rows, length), dtype=np.int64)
    try:
        with pytest.raises(EmbeddingServerError) as caught:
            await backend.infer(TokenBatch(ids, ids), timeout_seconds=60, priority=1)
        assert not await backend.is_ready()
    finally:
        await backend.close()
    return caught.value


@pytest.mark.parametrize("headers", [{}, {"Content-Length": str(1 << 40)}], ids=["endless", "1TB"])
async def test_an_answer_is_read_up_to_what_the_batch_can_need(headers: dict[str, str]) -> None:
    sent: Counter[str] = Counter()
    async with endless_server(sent, headers=headers) as netloc:
        error = await infer(f"http://{netloc}")
    assert type(error) is AnswerTooLargeError
    assert str(2 * 16 * 8 * 4 + MARGIN_BYTES) in error.message
    assert max(sent.values()) < ENOUGH_BYTES


async def test_a_compressed_answer_is_not_decompressed() -> None:
    body = gzip.compress(b"\0" * ENOUGH_BYTES)
    headers = {"Content-Encoding": "gzip"}
    async with http_server([], 200, body, headers=headers) as netloc:
        error = await connect(f"http://{netloc}")
    assert "is compressed" in error.message


def grpc_replies(values: int) -> dict[str, Any]:
    """Build what a model of hidden size 8 answers for one text, with so many numbers."""
    int64, fp32 = "INT64", "FP32"
    tensor = messages.ModelMetadataResponse.TensorMetadata
    inputs = [tensor(name=name, datatype=int64, shape=[-1, -1]) for name in INPUTS]
    output = tensor(name="last_hidden_state", datatype=fp32, shape=[-1, -1, 8])
    metadata = messages.ModelMetadataResponse(
        name="m", versions=["1"], inputs=inputs, outputs=[output]
    )
    answer = messages.ModelInferResponse(model_name="m", raw_output_contents=[bytes(4 * values)])
    answer.outputs.add(name="last_hidden_state", datatype=fp32, shape=[1, values // 8, 8])
    return {
        "ModelMetadata": metadata,
        "ModelConfig": messages.ModelConfigResponse(),
        "ModelInfer": answer,
    }


async def test_a_description_by_grpc_has_the_same_bound() -> None:
    reply = messages.ModelMetadataResponse(name="m" * (5 << 20))
    async with grpc_server([], replies={"ModelMetadata": reply}) as netloc:
        error = await connect(f"grpc://{netloc}")
    assert isinstance(error, StartupError)
    assert "larger than 4194304 bytes" in error.message


async def test_an_answer_by_grpc_may_have_what_the_batch_needs_and_not_much_more() -> None:
    length = 200_000
    async with grpc_server([], replies=grpc_replies(length * 8)) as netloc:
        error = await infer(f"grpc://{netloc}", rows=1)
        assert type(error) is AnswerTooLargeError
        backend = TritonBackend(f"grpc://{netloc}", "m")
        await backend.connect()
        ids = np.ones((1, length), dtype=np.int64)
        states = await backend.infer(TokenBatch(ids, ids), timeout_seconds=60, priority=1)
        await backend.close()
    assert states.values.shape == (1, length, 8)


HEADERS = {"X-Route": "blue", "triton-grpc-protocol-infer-key": "hunter2"}


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_every_request_carries_the_headers_and_no_error_shows_them(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []
    serve: Callable[[list[Any]], Any] = http_server if scheme == "http" else grpc_server
    values = ",".join(f"{name}={value}" for name, value in HEADERS.items())
    async with serve(seen) as netloc:
        settings = Settings.model_validate(
            {"TRITON_URL": f"{scheme}://{netloc}", "EMBED_TRITON_HEADERS": values}
        )
        backend = choose_backend(settings)
        with pytest.raises(BackendUnavailableError) as caught:
            await backend.connect()
        assert not await backend.is_ready()
        await backend.close()
    assert len(seen) >= 2
    for request in seen:
        headers = dict(request.headers) if scheme == "http" else request
        lower = {name.lower(): value for name, value in headers.items()}
        assert lower["x-route"] == "blue"
        assert lower["triton-grpc-protocol-infer-key"] == "hunter2"
    assert "hunter2" not in f"{settings!r} {caught.value} {backend.description} {caplog.text}"


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("A=b", {"A": "b"}),
        ("A: b", {"A": "b"}),
        ("Authorization=Bearer x==, X-B = c:d", {"Authorization": "Bearer x==", "X-B": "c:d"}),
        ("A: b\nC: d\n", {"A": "b", "C": "d"}),
        ('{"A": "b, c", "D": "e"}', {"A": "b, c", "D": "e"}),
    ],
)
def test_headers_are_read_from_pairs_or_json(text: str, headers: dict[str, str]) -> None:
    assert parse_headers(text) == headers


@pytest.mark.parametrize(
    "text",
    ["hunter2", "A=b,hunter2", "{hunter2", '{"A": 2}', "A b=hunter2", "A=hünter2", "Host=hunter2"],
)
def test_headers_that_cannot_be_sent_are_refused_without_their_values(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"EMBED_TRITON_HEADERS": text})
    assert "hunter2" not in str(caught.value)


def test_a_header_that_grpc_keeps_for_itself_is_refused() -> None:
    address = TritonAddress.parse("grpc://h:1")
    for name in ("Trace-Bin", "grpc-timeout"):
        with pytest.raises(StartupError, match="keeps for itself"):
            address.with_options({name: "x"}, None)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_proxy_of_the_environment_is_not_used(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    seen: list[Any] = []
    serve: Callable[[list[Any]], Any] = http_server if scheme == "http" else grpc_server
    async with serve(seen) as netloc:
        await connect(f"{scheme}://{netloc}")
    assert seen


async def test_https_trusts_the_certificates_of_the_setting(
    certificate: tuple[Path, Path],
) -> None:
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    seen: list[web.Request] = []
    async with http_server(seen, ssl=context) as netloc:
        untrusted = await connect(f"https://{netloc}")
        assert "EMBED_TRITON_CA_FILE" in untrusted.message
        assert not seen
        trusted = await connect(f"https://{netloc}", EMBED_TRITON_CA_FILE=certificate[0])
        assert "502 Bad Gateway" in trusted.message


async def test_grpcs_trusts_the_certificates_of_the_setting(
    certificate: tuple[Path, Path],
) -> None:
    chain, key = certificate[0].read_bytes(), certificate[1].read_bytes()
    seen: list[dict[str, Any]] = []
    async with grpc_server(seen, grpc.ssl_server_credentials([(key, chain)])) as netloc:
        untrusted = await connect(f"grpcs://{netloc}")
        assert isinstance(untrusted, BackendUnavailableError)
        assert not seen
        await connect(f"grpcs://{netloc}", EMBED_TRITON_CA_FILE=certificate[0])
        assert seen


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
async def test_a_file_without_certificates_is_named(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    error = await connect(f"{scheme}://127.0.0.1:1", EMBED_TRITON_CA_FILE=tmp_path / "ca.pem")
    assert isinstance(error, StartupError)
    assert "EMBED_TRITON_CA_FILE" in error.message
