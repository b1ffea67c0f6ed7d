"""What a gateway shows to the outside: metrics, logs, headers, traces, pages."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urljoin

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import qwen3_nano
from embed_call import post
from gateway_process import GatewayProcess, running_gateway, triton_flags
from polling import wait_for
from qwen3_triton_tools.local_triton import LocalTriton

pytestmark = pytest.mark.stack

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET_TEXT, SECRET_KEY = "whales sing at night", "key-that-nobody-sees"


@pytest.fixture(name="fresh", scope="module")
def _fresh() -> Generator[GatewayProcess]:
    """A separate gateway, so that its counters count only the tests of this file."""
    with running_gateway("--cache-bytes", "1000000", "--max-length", "64") as gateway:
        yield gateway


def test_metrics_count_what_was_sent(fresh: GatewayProcess) -> None:
    def value(name: str) -> float:
        return fresh.metric(f"qwen3_triton_{name}")

    names = ("texts_total", "tokens_total", "truncated_texts_total", "cache_lookups_total")
    before = {name: value(name) for name in names}
    answers = [
        post(fresh.url, texts=["one", "two", "word " * 100]).json(),
        post(fresh.url, texts=["one"], input_type="query").json(),
    ]
    assert value("texts_total") - before["texts_total"] == 4
    tokens = sum(answer["usage"]["prompt_tokens"] for answer in answers)
    assert value("tokens_total") - before["tokens_total"] == tokens
    assert value("truncated_texts_total") - before["truncated_texts_total"] == 1
    assert value("cache_lookups_total") - before["cache_lookups_total"] == 4
    assert value("batch_tokens_total") >= tokens
    assert value("cache_bytes") > 0
    assert value("ready") == value("backend_up") == 1
    text = httpx2.get(f"{fresh.url}/metrics", timeout=60).text
    for stage in ("tokenize", "queue", "infer", "encode"):
        assert f'qwen3_triton_stage_seconds_count{{stage="{stage}"}}' in text
    assert 'requests_total{dialect="native",route="/embed",status="200"}' in text


def test_unknown_paths_create_no_new_series(fresh: GatewayProcess) -> None:
    for number in range(3):
        assert httpx2.get(f"{fresh.url}/nothing/{number}", timeout=60).status_code == 404
    text = httpx2.get(f"{fresh.url}/metrics", timeout=60).text
    assert 'route="unknown",status="404"} 3.0' in text
    assert "nothing" not in text


def test_metrics_show_the_queue_and_the_backend_while_triton_hangs() -> None:
    with (
        LocalTriton(
            model_dir=qwen3_nano.model_dir(), model_name=qwen3_nano.MODEL_ID, max_batch_size=8
        ) as triton,
        running_gateway(*triton_flags(triton.grpc_url)) as gateway,
    ):
        texts = [f"text {n}" for n in range(40)]

        def is_queued() -> bool:
            # Triton has two batches of eight, or one if a slot is reserved for queries.
            return gateway.metric("qwen3_triton_queue_texts") in {24, 32}

        with ThreadPoolExecutor(1) as pool:
            while True:
                os.kill(triton.pid, signal.SIGSTOP)
                pending = pool.submit(post, gateway.url, texts=texts)
                wait_for(lambda pending=pending: is_queued() or pending.done(), "a queue")
                if is_queued():
                    break
                # A probe found the pause before the request came, so this was refused.
                os.kill(triton.pid, signal.SIGCONT)
                wait_for(gateway.is_ready, "ready again")
            assert gateway.metric("qwen3_triton_queue_tokens") > 24
            assert gateway.metric("qwen3_triton_batches_in_flight") in {1, 2}
            wait_for(lambda: gateway.metric("qwen3_triton_backend_up") == 0, "Triton is down")
            assert gateway.metric("qwen3_triton_ready") == 0
            assert gateway.metric("qwen3_triton_queue_oldest_seconds") > 0.5
            os.kill(triton.pid, signal.SIGCONT)
            assert len(pending.result().json()["embeddings"]) == 40
        wait_for(lambda: gateway.metric("qwen3_triton_ready") == 1, "ready again")
        assert gateway.metric("qwen3_triton_queue_oldest_seconds") == 0


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_log_has_one_line_per_request_and_never_a_text_or_a_key(log_format: str) -> None:
    with running_gateway("--log-format", log_format, "--api-keys", SECRET_KEY) as gateway:
        headers = {"Authorization": f"Bearer {SECRET_KEY}"}
        with httpx2.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
            body = {"texts": [SECRET_TEXT], "input_type": "query", "instruction": SECRET_TEXT}
            client.post("/embed", json=body, headers={"X-Request-ID": "mine-1"})
            client.post("/embed", json={"texts": [SECRET_TEXT, " "]})
            client.post("/embed", json={"unknown": SECRET_TEXT})
            client.post("/v1/embeddings", json={"input": SECRET_TEXT})
            client.get("/a%0Aforged%20line", headers={"X-Request-ID": "with space status=200"})
            client.post("/embed", json={"texts": ["a"]}, headers={"Authorization": "Bearer no"})

        def request_lines() -> list[str]:
            return [line for line in gateway.log.splitlines() if "request_id" in line]

        wait_for(lambda: len(request_lines()) >= 6, "the line of the last request")
        lines = request_lines()
        assert len(lines) == 6
        assert SECRET_TEXT not in gateway.log
        assert SECRET_KEY not in gateway.log
        assert "/a%0Aforged%20line" in lines[4]
        assert "with space" not in gateway.log
        if log_format == "json":
            records = [json.loads(line) for line in gateway.log.splitlines()]
            first = next(record for record in records if record.get("request_id") == "mine-1")
            assert (first["path"], first["status"], first["texts"]) == ("/embed", 200, 1)
            assert first["duration_ms"] > 0
            assert first["tokens"] > 1
        else:
            assert "request_id=mine-1" in lines[0]
            assert "status=401" in lines[5]


def test_headers_carry_the_stages_the_fingerprint_and_the_request_id(fresh: GatewayProcess) -> None:
    body = {"texts": ["a", "word " * 100]}
    answer = httpx2.post(
        f"{fresh.url}/embed", json=body, headers={"X-Request-ID": "mine"}, timeout=60
    )
    stages = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    assert list(stages) == ["tokenize", "queue", "infer", "encode"]
    assert answer.headers["X-Embedding-Fingerprint"] == answer.json()["fingerprint"]
    assert answer.headers["X-Embedding-Truncated"] == "1"
    assert answer.headers["X-Request-ID"] == "mine"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_other_hosts(fresh: GatewayProcess, path: str) -> None:
    page = httpx2.get(fresh.url + path, timeout=60)
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    for target in loaded:
        if target.startswith("data:"):
            continue
        address = urljoin(fresh.url + path, target)
        assert address.startswith(fresh.url), target
        assert httpx2.get(address, timeout=60).status_code == 200, target
    if path == "/":
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    else:
        assert any(target.endswith("swagger-ui-bundle.js") for target in loaded)


class Collector:
    """An OTLP collector over HTTP that stores every span."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        outer.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def of_trace(self, trace_id: str) -> dict[str, Span]:
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace_id}


@contextmanager
def serving(server: ThreadingHTTPServer) -> Generator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def recording_proxy(target: str, seen: list[tuple[str, str]]) -> ThreadingHTTPServer:
    """Forward to Triton and record each path with its `traceparent`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._forward()

        def do_POST(self) -> None:
            self._forward()

        def _forward(self) -> None:
            seen.append((self.path, self.headers.get("traceparent", "")))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            answer = httpx2.request(
                self.command, target + self.path, content=body, headers=headers, timeout=60
            )
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Inference-Header-Content-Length"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def test_a_callers_trace_continues_through_the_gateway_to_triton(triton: LocalTriton) -> None:
    collector, seen = Collector(), list[tuple[str, str]]()
    proxy = recording_proxy(triton.http_url, seen)
    flags = triton_flags(f"http://127.0.0.1:{proxy.server_port}")
    with serving(collector.server), serving(proxy):
        with running_gateway(*flags, "--otel-exporter-otlp-endpoint", collector.url) as gateway:
            headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
            body = {"texts": [SECRET_TEXT], "dimensions": 256}
            answer = httpx2.post(f"{gateway.url}/embed", json=body, headers=headers, timeout=60)
            assert answer.status_code == 200
            assert gateway.stop() == 0  # sends what is left
        spans = collector.of_trace(TRACE_ID)
    server = next(span for span in spans.values() if span.kind == Span.SPAN_KIND_SERVER)
    assert server.parent_span_id.hex() == PARENT_ID
    assert spans["tokenize"].parent_span_id == server.span_id
    assert spans["queue and infer"].parent_span_id == server.span_id
    assert spans["infer batch"].parent_span_id == spans["queue and infer"].span_id
    attributes = {item.key: item.value for item in server.attributes}
    assert attributes["gen_ai.operation.name"].string_value == "embeddings"
    assert attributes["gen_ai.request.model"].string_value == qwen3_nano.MODEL_ID
    assert attributes["gen_ai.response.model"].string_value == qwen3_nano.MODEL_ID
    assert attributes["gen_ai.embeddings.dimension.count"].int_value == 256
    tokens = answer.json()["usage"]["prompt_tokens"]
    assert attributes["gen_ai.usage.input_tokens"].int_value == tokens
    inferred = [parent for path, parent in seen if path.endswith("/infer")]
    assert f"00-{TRACE_ID}-{spans['infer batch'].span_id.hex()}-01" in inferred
    assert SECRET_TEXT not in str(collector.spans)


def test_without_a_collector_nothing_is_traced(triton: LocalTriton) -> None:
    seen: list[tuple[str, str]] = []
    proxy = recording_proxy(triton.http_url, seen)
    flags = triton_flags(f"http://127.0.0.1:{proxy.server_port}")
    with serving(proxy), running_gateway(*flags) as gateway:
        headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        httpx2.post(f"{gateway.url}/embed", json={"texts": ["a"]}, headers=headers, timeout=60)
    assert {parent for _, parent in seen} == {""}
