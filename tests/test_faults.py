"""Triton is really killed, paused and restarted; the gateway keeps running."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

import qwen3_nano
from embed_call import embed, post
from gateway_process import TOKENIZER, GatewayProcess, running_gateway, triton_flags
from polling import wait_for
from qwen3_triton_tools.local_triton import LocalTriton
from traffic import (
    TEXTS,
    UNAVAILABLE,
    Embedding,
    Reranking,
    Traffic,
    flags_of_both,
    traffic_of_both,
    triton_of_both,
)

pytestmark = pytest.mark.stack

SCHEMES = ("http", "grpc")


@pytest.fixture(
    name="kind", params=[Embedding, pytest.param(Reranking, marks=pytest.mark.campaign)]
)
def _kind(request: pytest.FixtureRequest) -> type[Traffic]:
    """What the gateway serves, and is asked for."""
    return request.param


@pytest.fixture(name="reranking_triton", scope="module")
def _reranking_triton() -> Generator[LocalTriton]:
    with Reranking.triton() as triton:
        yield triton


@pytest.fixture(name="healthy_triton")
def _healthy_triton(request: pytest.FixtureRequest, kind: type[Traffic]) -> LocalTriton:
    """A Triton that no test breaks."""
    return request.getfixturevalue("triton" if kind is Embedding else "reranking_triton")


@pytest.fixture(name="own_triton")
def _own_triton(kind: type[Traffic]) -> Generator[LocalTriton]:
    with kind.triton() as triton:
        yield triton


@pytest.fixture(name="own_triton_of_both")
def _own_triton_of_both() -> Generator[LocalTriton]:
    with triton_of_both() as triton:
        yield triton


@pytest.fixture(name="own_gateway", params=SCHEMES)
def _own_gateway(
    request: pytest.FixtureRequest, own_triton_of_both: LocalTriton
) -> Generator[GatewayProcess]:
    triton = own_triton_of_both
    url = triton.http_url if request.param == "http" else triton.grpc_url
    with running_gateway(*flags_of_both(url), "--timeout-s", "10") as gateway:
        yield gateway


def test_a_triton_killed_under_load_costs_no_wrong_answer_and_service_resumes(
    own_triton_of_both: LocalTriton, own_gateway: GatewayProcess
) -> None:
    triton = own_triton_of_both
    both = traffic_of_both(own_gateway.url)
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(traffic.ask) for _ in range(12) for traffic in both]
        wait_for(lambda: any(future.done() for future in pending), "a first answer")
        os.kill(triton.pid, signal.SIGKILL)
        statuses = {future.result() for future in pending}
    assert statuses <= {200, *UNAVAILABLE}
    wait_for(lambda: not own_gateway.is_ready(), "not ready without Triton")
    assert httpx2.get(f"{own_gateway.url}/health/live", timeout=60).status_code == 200
    assert [traffic.ask() for traffic in both] == [503, 503]

    wait_for(lambda: triton.poll() is not None, "Triton's end")
    triton.start()
    triton.wait_ready()
    wait_for(own_gateway.is_complete, "both models are ready again")
    assert [traffic.ask() for traffic in both] == [200, 200]


def test_a_paused_triton_is_a_503_or_504_and_service_resumes(
    own_triton_of_both: LocalTriton, own_gateway: GatewayProcess
) -> None:
    both = traffic_of_both(own_gateway.url)
    os.kill(own_triton_of_both.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            assert set(pool.map(lambda traffic: traffic.ask(), both)) <= UNAVAILABLE
        wait_for(lambda: not own_gateway.is_ready(), "not ready while Triton is paused")
    finally:
        os.kill(own_triton_of_both.pid, signal.SIGCONT)
    _wait_until_back(own_triton_of_both, own_gateway)
    assert [traffic.ask() for traffic in both] == [200, 200]


def test_a_dead_triton_of_two_is_excluded_and_comes_back(
    kind: type[Traffic], healthy_triton: LocalTriton, own_triton: LocalTriton
) -> None:
    urls = f"{own_triton.grpc_url},{healthy_triton.http_url}"
    with running_gateway("--triton-url", urls, *kind.flags) as gateway:
        traffic = kind(gateway.url)
        os.kill(own_triton.pid, signal.SIGKILL)
        assert [traffic.ask() for _ in range(10)] == [200] * 10
        wait_for(lambda: "is excluded" in gateway.log, "the dead one is excluded")
        wait_for(lambda: own_triton.poll() is not None, "Triton's end")
        own_triton.start()
        own_triton.wait_ready()
        before = _inferences(own_triton)

        def both_work() -> bool:
            assert traffic.ask() == 200
            return _inferences(own_triton) > before

        wait_for(both_work, "the restarted Triton computes")


@contextmanager
def flaky_proxy(url: str, statuses: Sequence[int]) -> Generator[tuple[str, Callable[[], None]]]:
    """Forward to a Triton; once told to, answer some inferences in its place.

    Yields its address, and what starts the answers: with them, a gateway that checks a model with
    several inferences might never start.
    """
    turns: Iterator[int | None] = itertools.repeat(None)

    def start() -> None:
        nonlocal turns
        turns = itertools.cycle([None, None, *statuses])

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._forward(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = next(turns)
            if status is None:
                self._forward(body)
            else:
                self._answer(status, {}, b"<html>proxy</html>")

        def _forward(self, body: bytes) -> None:
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            reply = client.request(self.command, url + self.path, headers=headers, content=body)
            names = ("content-type", "inference-header-content-length")
            kept = {name: reply.headers[name] for name in names if name in reply.headers}
            self._answer(reply.status_code, kept, reply.content)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in (headers | {"content-length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            del format, args

    with (
        # To load certificates, unused here, takes longer than a request.
        httpx2.Client(timeout=60, verify=False) as client,
        ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server,
    ):
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", start
        finally:
            server.shutdown()


def test_a_proxy_that_answers_for_one_triton_reaches_no_caller(
    kind: type[Traffic], healthy_triton: LocalTriton
) -> None:
    statuses = (502, 504, 429, 403)
    with flaky_proxy(healthy_triton.http_url, statuses) as (proxy, start):
        flags = ("--triton-url", f"{proxy},{healthy_triton.grpc_url}", *kind.flags)
        with running_gateway(*flags) as gateway, ThreadPoolExecutor(4) as pool:
            traffic = kind(gateway.url)
            start()
            assert list(pool.map(lambda _: traffic.ask(), range(40))) == [200] * 40
            wait_for(lambda: "A proxy in front of Triton" in gateway.log, "the proxy is named")


def test_a_proxy_that_answers_for_the_only_triton_is_a_503(
    kind: type[Traffic], healthy_triton: LocalTriton
) -> None:
    with (
        flaky_proxy(healthy_triton.http_url, (502,)) as (proxy, start),
        running_gateway("--triton-url", proxy, *kind.flags) as gateway,
    ):
        traffic = kind(gateway.url)
        start()
        assert {traffic.ask(texts=1) for _ in range(6)} == {200, 503}


def test_batches_on_a_paused_triton_of_two_are_run_on_the_other(
    kind: type[Traffic], healthy_triton: LocalTriton, own_triton: LocalTriton
) -> None:
    urls = f"{own_triton.grpc_url},{healthy_triton.grpc_url}"
    with running_gateway("--triton-url", urls, *kind.flags, "--timeout-s", "60") as gateway:
        traffic = kind(gateway.url)
        os.kill(own_triton.pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(lambda _: traffic.ask(), range(24))) == [200] * 24
        finally:
            os.kill(own_triton.pid, signal.SIGCONT)
        assert "is excluded" in gateway.log
        assert gateway.metric(f"{kind.metrics}_backend_up") in {1, 2}


def test_the_texts_of_a_caller_that_disconnects_leave_the_queue(
    kind: type[Traffic], own_triton: LocalTriton
) -> None:
    # Triton has two batches of eight, or one if a slot is reserved for queries.
    left = {len(TEXTS) - 16, len(TEXTS) - 8}
    body = json.dumps(kind.body(TEXTS)).encode()
    head = f"POST {kind.path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with running_gateway("--triton-url", own_triton.grpc_url, *kind.flags) as gateway:
        address = urlsplit(gateway.url)
        traffic = kind(gateway.url)

        def is_queued() -> bool:
            return gateway.metric(f"{kind.metrics}_queue_texts") in left

        def disconnect_while_queued() -> bool:
            os.kill(own_triton.pid, signal.SIGSTOP)
            with socket.create_connection((address.hostname or "", address.port or 0)) as caller:
                caller.sendall(head.encode() + body)
                wait_for(lambda: is_queued() or not gateway.is_ready(), "a queue")
                if is_queued():
                    return True
            # A probe found the pause before the request came, so this was refused.
            os.kill(own_triton.pid, signal.SIGCONT)
            _wait_until_back(own_triton, gateway)
            return False

        try:
            wait_for(disconnect_while_queued, "a caller disconnects")
            wait_for(lambda: gateway.metric(f"{kind.metrics}_queue_texts") == 0, "an empty queue")
            wait_for(lambda: gateway.metric(f"{kind.metrics}_requests_under_way") == 0, "its end")
            assert gateway.metric(f"{kind.metrics}_abandoned_texts_total") in left
            wait_for(lambda: "status=499" in gateway.log, "a line in the log")
        finally:
            os.kill(own_triton.pid, signal.SIGCONT)
        _wait_until_back(own_triton, gateway)
        assert traffic.ask() == 200


def test_an_overloaded_gateway_refuses_whole_requests_and_answers_the_others(
    kind: type[Traffic], healthy_triton: LocalTriton
) -> None:
    # Of 24 callers, more than three ask at once even if this process gets little CPU.
    bounds = ("--max-queue-tokens", "2000", "--max-queue-requests", "3")
    flags = ("--triton-url", healthy_triton.grpc_url, *kind.flags, *bounds)
    with running_gateway(*flags) as gateway:
        traffic = kind(gateway.url)
        with ThreadPoolExecutor(24) as pool:
            statuses = list(pool.map(lambda _: traffic.ask(), range(96)))
        assert set(statuses) == {200, 429}
        refused = gateway.metric(f"{kind.metrics}_rejected_requests_total")
        assert refused == statuses.count(429)


def _wait_until_back(triton: LocalTriton, gateway: GatewayProcess) -> None:
    """Wait until every model is served after a pause.

    On a machine without CPU time to spare, Triton's supervisor may have killed it: a process of its
    models got none for a second. `up` would restart it.
    """

    def is_back() -> bool:
        if triton.poll() is not None:
            triton.start()
        return gateway.is_complete()

    wait_for(is_back, "ready again")


def _inferences(triton: LocalTriton) -> int:
    """Return how many inferences Triton has computed since its start, by its own metrics."""
    lines = httpx2.get(triton.metrics_url, timeout=60).text.splitlines()
    values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith("nv_inference_count{")]
    return sum(int(float(value)) for value in values)


def test_a_gateway_started_before_triton_waits_and_names_it() -> None:
    triton = LocalTriton(model_dir=qwen3_nano.model_dir(), model_name=qwen3_nano.MODEL_ID)
    with triton:
        url = triton.http_url
    gateway = GatewayProcess(*triton_flags(url))
    try:
        gateway.wait_listening()
        refused = post(gateway.url, texts=["a"])
        assert refused.status_code == 503
        assert "waiting for Triton at" in refused.json()["detail"]
        wait_for(lambda: f"Waiting for Triton at {url}" in gateway.log, "a line in the log")
        with triton:
            gateway.wait_ready()
            assert embed(gateway.url, ["a"]).shape == (1, 1024)
    finally:
        gateway.stop()


def test_no_request_is_dropped_by_a_gateway_that_stops(
    kind: type[Traffic], healthy_triton: LocalTriton
) -> None:
    """Callers that respect readiness, as load balancers do, get every response."""
    flags = ("--triton-url", healthy_triton.grpc_url, *kind.flags, "--shutdown-delay-s", "100")
    with running_gateway(*flags) as gateway, ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(_call_while_ready, gateway.url, kind) for _ in range(4)]
        route = {"route": kind.path, "status": "200"}
        wait_for(lambda: gateway.metric("qwen3_triton_requests_total", **route) > 4, "load")
        gateway.process.send_signal(signal.SIGTERM)
        statuses = [status for caller in callers for status in caller.result()]
        assert set(statuses) == {200}
        gateway.process.send_signal(signal.SIGTERM)  # the rest of the delay is not needed
        assert gateway.process.wait(timeout=60) == 0


def test_a_second_ctrl_c_ends_without_the_requests_in_progress(
    kind: type[Traffic], healthy_triton: LocalTriton
) -> None:
    with (
        running_gateway("--triton-url", healthy_triton.grpc_url, *kind.flags) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        texts = [f"{number} {'word ' * 300}" for number in range(1000)]
        caller = pool.submit(kind(gateway.url).send, texts)
        wait_for(lambda: gateway.metric(f"{kind.metrics}_batches_in_flight") > 0, "batches")
        gateway.process.send_signal(signal.SIGINT)
        wait_for(lambda: "Shutting down" in gateway.log, "the first one counts")
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(timeout=60) == 0
        assert "Traceback" not in gateway.log
        with pytest.raises(httpx2.TransportError):
            caller.result()


def _call_while_ready(url: str, kind: type[Traffic]) -> list[int]:
    """Send requests on kept-alive connections until the gateway is no longer ready."""
    statuses: list[int] = []
    with httpx2.Client(base_url=url, timeout=60) as client:
        while client.get("/health/ready").status_code == 200:
            statuses.append(client.post(kind.path, json=kind.body(TEXTS)).status_code)
    return statuses


def test_more_dimensions_than_the_model_has_end_the_start_with_a_message(
    triton: LocalTriton,
) -> None:
    gateway = GatewayProcess(*triton_flags(triton.http_url), "--output-dim", "2560")
    assert gateway.process.wait(timeout=60) == 1
    assert "EMBED_OUTPUT_DIM is 2560, but model 'qwen3-nano' has hidden size" in gateway.log
    assert "Traceback" not in gateway.log


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(("--triton-url", "http://127.0.0.1:1"), "TOKENIZER_PATH is not set", id="tok"),
        pytest.param(("--tokenizer-path", "/nowhere"), "No tokenizer at /nowhere", id="no-file"),
        pytest.param(
            ("--triton-url", "ftp://x", *TOKENIZER), "TRITON_URL 'ftp://x' is invalid", id="url"
        ),
        pytest.param(("--model-dir", "/nowhere"), "no file or folder /nowhere", id="no-model"),
        pytest.param(
            ("--model-dir", "/nowhere", *TOKENIZER), "no file or folder /nowhere", id="onnx"
        ),
    ],
)
def test_a_wrong_setting_ends_the_start_with_a_message(flags: tuple[str, ...], words: str) -> None:
    gateway = GatewayProcess(*flags)
    assert gateway.process.wait(timeout=60) == 1
    assert words in gateway.log
    assert "Traceback" not in gateway.log


def test_a_port_that_is_taken_is_named(gateway: GatewayProcess) -> None:
    port = gateway.url.rsplit(":", 1)[1]
    second = GatewayProcess("--port", port)
    assert second.process.wait(timeout=60) == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in second.log


def test_a_text_of_ten_megabytes_is_a_413_and_the_next_request_works(
    gateway: GatewayProcess,
) -> None:
    refused = post(gateway.url, texts=["x" * 10_000_000])
    assert refused.status_code == 413
    assert "EMBED_MAX_BODY_BYTES" in refused.json()["detail"]
    assert embed(gateway.url, ["next"]).shape == (1, 1024)


def test_nothing_is_written_to_the_home_folder(tmp_path: Path) -> None:
    """ONNX Runtime would write a device id and queued telemetry events there."""
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    code = (
        "import asyncio, pathlib, qwen3_nano\n"
        "from qwen3_triton_gateway.backends.onnx import OnnxBackend\n"
        "asyncio.run(OnnxBackend(qwen3_nano.model_dir()).connect())\n"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | home)
    assert list(tmp_path.rglob("*")) == []


def test_a_key_never_reaches_the_log() -> None:
    with running_gateway("--api-keys", "a-very-secret-key") as gateway:
        headers = {"Authorization": "Bearer a-wrong-secret-key"}
        httpx2.post(
            f"{gateway.url}/embed", json={"texts": ["private text"]}, headers=headers, timeout=60
        )
        assert "secret-key" not in gateway.log
        assert "private text" not in gateway.log
