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
import numpy as np
import pytest

import qwen3_nano
from embed_call import cosines, embed, post
from gateway_process import TOKENIZER, GatewayProcess, running_gateway, triton_flags
from polling import wait_for
from qwen3_triton_tools.local_triton import LocalTriton
from tolerances import FLOAT32_COSINE

pytestmark = pytest.mark.stack

TEXTS = [f"{'filler ' * (index % 9)}text {index}" for index in range(24)]
ALLOWED_WHILE_TRITON_IS_AWAY = {200, 503, 504}
SCHEMES = ("http", "grpc")


@pytest.fixture(name="own_triton")
def _own_triton() -> Generator[LocalTriton]:
    with LocalTriton(
        model_dir=qwen3_nano.model_dir(), model_name=qwen3_nano.MODEL_ID, max_batch_size=8
    ) as triton:
        yield triton


@pytest.fixture(name="own_gateway", params=SCHEMES)
def _own_gateway(
    request: pytest.FixtureRequest, own_triton: LocalTriton
) -> Generator[GatewayProcess]:
    url = own_triton.http_url if request.param == "http" else own_triton.grpc_url
    with running_gateway(*triton_flags(url), "--timeout-s", "10") as gateway:
        yield gateway


def test_a_triton_killed_under_load_costs_no_wrong_vector_and_service_resumes(
    own_triton: LocalTriton, own_gateway: GatewayProcess
) -> None:
    expected = embed(own_gateway.url, TEXTS)

    def request(_: int) -> int:
        response = post(own_gateway.url, texts=TEXTS)
        if response.status_code == 200:
            vectors = np.array(response.json()["embeddings"], dtype=np.float32)
            assert cosines(vectors, expected).min() >= FLOAT32_COSINE
        elif response.status_code == 503:
            assert int(response.headers["Retry-After"]) >= 1
        return response.status_code

    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(request, number) for number in range(24)]
        wait_for(lambda: any(future.done() for future in pending), "a first answer")
        os.kill(own_triton.pid, signal.SIGKILL)
        statuses = {future.result() for future in pending}
    assert statuses <= ALLOWED_WHILE_TRITON_IS_AWAY
    wait_for(lambda: not own_gateway.is_ready(), "not ready without Triton")
    assert httpx2.get(f"{own_gateway.url}/health/live", timeout=60).status_code == 200
    assert post(own_gateway.url, texts=["a"]).status_code == 503

    wait_for(lambda: own_triton.poll() is not None, "Triton's end")
    own_triton.start()
    own_triton.wait_ready()
    wait_for(own_gateway.is_ready, "ready again")
    assert cosines(embed(own_gateway.url, TEXTS), expected).min() >= FLOAT32_COSINE


def test_a_paused_triton_is_a_503_or_504_and_service_resumes(
    own_triton: LocalTriton, own_gateway: GatewayProcess
) -> None:
    expected = embed(own_gateway.url, TEXTS)
    os.kill(own_triton.pid, signal.SIGSTOP)
    try:
        response = post(own_gateway.url, texts=TEXTS)
        assert response.status_code in {503, 504}
        wait_for(lambda: not own_gateway.is_ready(), "not ready while Triton is paused")
    finally:
        os.kill(own_triton.pid, signal.SIGCONT)
    wait_for(own_gateway.is_ready, "ready again")
    assert cosines(embed(own_gateway.url, TEXTS), expected).min() >= FLOAT32_COSINE


def test_a_dead_triton_of_two_is_excluded_and_comes_back(
    triton: LocalTriton, own_triton: LocalTriton
) -> None:
    urls = f"{own_triton.grpc_url},{triton.http_url}"
    with running_gateway(*triton_flags(urls)) as gateway:
        expected = embed(gateway.url, TEXTS)
        os.kill(own_triton.pid, signal.SIGKILL)
        for _ in range(10):
            assert cosines(embed(gateway.url, TEXTS), expected).min() >= FLOAT32_COSINE
        wait_for(lambda: "is excluded" in gateway.log, "the dead one is excluded")
        wait_for(lambda: own_triton.poll() is not None, "Triton's end")
        own_triton.start()
        own_triton.wait_ready()
        before = _inferences(own_triton)

        def both_work() -> bool:
            embed(gateway.url, TEXTS)
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
            reply = httpx2.request(
                self.command, url + self.path, headers=headers, content=body, timeout=60
            )
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

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", start
        finally:
            server.shutdown()


def test_a_proxy_that_answers_for_one_triton_reaches_no_caller(triton: LocalTriton) -> None:
    statuses = (502, 504, 429, 403)
    with flaky_proxy(triton.http_url, statuses) as (proxy, start):
        urls = f"{proxy},{triton.grpc_url}"
        with running_gateway(*triton_flags(urls)) as gateway, ThreadPoolExecutor(4) as pool:
            start()
            answers = list(pool.map(lambda _: post(gateway.url, texts=TEXTS), range(40)))
            assert [answer.status_code for answer in answers] == [200] * 40
            wait_for(lambda: "A proxy in front of Triton" in gateway.log, "the proxy is named")


def test_a_proxy_that_answers_for_the_only_triton_is_a_503(triton: LocalTriton) -> None:
    with (
        flaky_proxy(triton.http_url, (502,)) as (proxy, start),
        running_gateway(*triton_flags(proxy)) as gateway,
    ):
        start()
        refused = [post(gateway.url, texts=["a"]) for _ in range(6)]
    assert {answer.status_code for answer in refused} == {200, 503}
    assert all("Retry-After" in answer.headers for answer in refused if answer.status_code == 503)


def test_batches_on_a_paused_triton_of_two_are_run_on_the_other(
    triton: LocalTriton, own_triton: LocalTriton
) -> None:
    urls = f"{own_triton.grpc_url},{triton.grpc_url}"
    with running_gateway(*triton_flags(urls), "--timeout-s", "60") as gateway:
        expected = embed(gateway.url, TEXTS)
        os.kill(own_triton.pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda _: embed(gateway.url, TEXTS), range(24)))
        finally:
            os.kill(own_triton.pid, signal.SIGCONT)
        assert all(cosines(vectors, expected).min() >= FLOAT32_COSINE for vectors in answers)
        assert "is excluded" in gateway.log
        assert gateway.metric("qwen3_triton_backend_up") in {1, 2}


def test_the_texts_of_a_caller_that_disconnects_leave_the_queue(own_triton: LocalTriton) -> None:
    # Triton has two batches of eight, or one if a slot is reserved for queries.
    left = {len(TEXTS) - 16, len(TEXTS) - 8}
    body = json.dumps({"texts": TEXTS}).encode()
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with running_gateway(*triton_flags(own_triton.grpc_url)) as gateway:
        address = urlsplit(gateway.url)

        def is_queued() -> bool:
            return gateway.metric("qwen3_triton_queue_texts") in left

        def disconnect_while_queued() -> bool:
            os.kill(own_triton.pid, signal.SIGSTOP)
            with socket.create_connection((address.hostname or "", address.port or 0)) as caller:
                caller.sendall(head + body)
                wait_for(lambda: is_queued() or not gateway.is_ready(), "a queue")
                if is_queued():
                    return True
            # A probe found the pause before the request came, so this was refused.
            os.kill(own_triton.pid, signal.SIGCONT)
            wait_for(gateway.is_ready, "ready again")
            return False

        try:
            wait_for(disconnect_while_queued, "a caller disconnects")
            wait_for(lambda: gateway.metric("qwen3_triton_queue_texts") == 0, "an empty queue")
            wait_for(lambda: gateway.metric("qwen3_triton_requests_under_way") == 0, "its end")
            assert gateway.metric("qwen3_triton_abandoned_texts_total") in left
            wait_for(lambda: "status=499" in gateway.log, "a line in the log")
        finally:
            os.kill(own_triton.pid, signal.SIGCONT)
        wait_for(gateway.is_ready, "ready again")
        assert embed(gateway.url, TEXTS).shape == (len(TEXTS), 1024)


def test_an_overloaded_gateway_refuses_whole_requests_and_answers_the_others(
    triton: LocalTriton,
) -> None:
    # Of 24 callers, more than three ask at once even if this process gets little CPU.
    flags = ("--max-queue-tokens", "2000", "--max-queue-requests", "3")
    with running_gateway(*triton_flags(triton.grpc_url), *flags) as gateway:
        expected = embed(gateway.url, TEXTS)
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: post(gateway.url, texts=TEXTS), range(96)))
        refused = [answer for answer in answers if answer.status_code == 429]
        served = [answer for answer in answers if answer.status_code == 200]
        assert len(refused) + len(served) == 96
        assert refused
        assert served
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        for answer in served:
            vectors = np.array(answer.json()["embeddings"], dtype=np.float32)
            assert cosines(vectors, expected).min() >= FLOAT32_COSINE
        assert gateway.metric("qwen3_triton_rejected_requests_total") == len(refused)


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


def test_sigterm_finishes_what_is_in_flight_and_ends_with_0(triton: LocalTriton) -> None:
    with running_gateway(*triton_flags(triton.http_url)) as gateway:
        with ThreadPoolExecutor(1) as pool:
            # Distinct texts: identical ones are computed once, which would take no time.
            texts = [f"{text} of {round_}" for round_ in range(40) for text in TEXTS]
            pending = pool.submit(post, gateway.url, texts=texts)
            wait_for(lambda: pending.done() or _is_busy(gateway), "a request in flight")
            gateway.process.send_signal(signal.SIGTERM)
            assert pending.result().status_code == 200
        assert gateway.stop() == 0


def test_no_request_is_dropped_by_a_gateway_that_stops(triton: LocalTriton) -> None:
    """Callers that respect readiness, as load balancers do, get every response."""
    flags = (*triton_flags(triton.grpc_url), "--shutdown-delay-s", "100")
    with running_gateway(*flags) as gateway, ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(_call_while_ready, gateway.url) for _ in range(4)]
        wait_for(lambda: gateway.metric("qwen3_triton_texts_total") > 100, "load")
        gateway.process.send_signal(signal.SIGTERM)
        statuses = [status for caller in callers for status in caller.result()]
        assert set(statuses) == {200}
        gateway.process.send_signal(signal.SIGTERM)  # the rest of the delay is not needed
        assert gateway.process.wait(timeout=60) == 0


def _call_while_ready(url: str) -> list[int]:
    """Send requests on kept-alive connections until the gateway is no longer ready."""
    statuses: list[int] = []
    with httpx2.Client(base_url=url, timeout=60) as client:
        while client.get("/health/ready").status_code == 200:
            statuses.append(client.post("/embed", json={"texts": TEXTS}).status_code)
    return statuses


def _is_busy(gateway: GatewayProcess) -> bool:
    return httpx2.get(f"{gateway.url}/health", timeout=60).json()["batches_in_flight"] > 0


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
        pytest.param(("--model-dir", "/nowhere"), "No tokenizer at /nowhere", id="no-model"),
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
