"""What an exposed gateway must withstand: strangers, floods of bytes, malformed requests."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from embed_call import embed, post
from gateway_process import GatewayProcess, running_gateway
from polling import wait_for

pytestmark = pytest.mark.stack

KEYS = ("first-key", "second-key")
FILE_KEY = "key-of-the-file"
ORIGIN = "https://search.example"
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/embed", {"texts": ["a"]}),
    ("/v1/embeddings", {"input": "a"}),
    ("/", {"inputs": "a"}),
    ("/tokenize", {"inputs": "a"}),
]


@pytest.fixture(name="guarded", scope="module")
def _guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[GatewayProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"# for the search team\n{FILE_KEY}\n\n")
    flags = ("--api-keys", ",".join(KEYS), "--api-keys-file", str(keys))
    with running_gateway(*flags, "--cors-origins", ORIGIN, "--max-body-bytes", "20000") as gateway:
        yield gateway


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", [*KEYS, FILE_KEY])
@pytest.mark.parametrize(("path", "body"), BODIES)
def test_every_dialect_accepts_any_of_the_keys(
    guarded: GatewayProcess, path: str, body: dict[str, Any], key: str
) -> None:
    assert (
        httpx2.post(guarded.url + path, json=body, headers=bearer(key), timeout=60).status_code
        == 200
    )
    bare = httpx2.post(guarded.url + path, json=body, headers={"Authorization": key}, timeout=60)
    assert bare.status_code == 200


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(KEYS[0][:-1])])
@pytest.mark.parametrize(("path", "body"), BODIES)
def test_without_a_key_every_dialect_answers_401_in_its_own_shape(
    guarded: GatewayProcess, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    answer = httpx2.post(guarded.url + path, json=body, headers=headers, timeout=60)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    fields = {
        "/embed": {"error", "detail"},
        "/v1/embeddings": {"error"},
        "/": {"error", "error_type"},
        "/tokenize": {"error", "error_type"},
    }
    assert set(answer.json()) == fields[path]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/health/live", 200),
        ("/health/ready", 200),
        ("/v1/health/live", 200),
        ("/v1/health/ready", 200),
        ("/", 200),
        ("/docs", 200),
        ("/openapi.json", 200),
        ("/metrics", 401),
        ("/info", 401),
        ("/tokenizer", 401),
        ("/v1/models", 401),
        ("/nothing", 401),
    ],
)
def test_only_health_and_pages_are_open_without_a_key(
    guarded: GatewayProcess, path: str, status: int
) -> None:
    assert httpx2.get(guarded.url + path, timeout=60).status_code == status


def test_only_pages_of_an_allowed_origin_may_call(guarded: GatewayProcess) -> None:
    def preflight(origin: str) -> httpx2.Response:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        return httpx2.options(f"{guarded.url}/embed", headers=headers)

    assert preflight(ORIGIN).headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in preflight("https://evil.example").headers
    headers = bearer(KEYS[0]) | {"Origin": ORIGIN}
    answer = httpx2.post(f"{guarded.url}/embed", json={"texts": ["a"]}, headers=headers, timeout=60)
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


def test_no_page_of_another_origin_may_call_by_default(gateway_url: str) -> None:
    answer = httpx2.get(f"{gateway_url}/health", headers={"Origin": ORIGIN}, timeout=60)
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_body_above_the_limit_is_a_413_in_each_shape(
    guarded: GatewayProcess, path: str, body: dict[str, Any]
) -> None:
    (field,) = body
    large = json.dumps({field: ["x" * 30_000]}).encode()
    stated = httpx2.post(guarded.url + path, content=large, headers=bearer(KEYS[0]), timeout=60)
    chunks = (large[start : start + 1000] for start in range(0, len(large), 1000))
    chunked = httpx2.post(guarded.url + path, content=chunks, headers=bearer(KEYS[0]), timeout=60)
    for answer in (stated, chunked):
        assert answer.status_code == 413
        assert "EMBED_MAX_BODY_BYTES" in answer.text


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"POST /embed HTTP/1.1\r\nContent-Length: many\r\n\r\n", id="length"),
        pytest.param(b"POST /embed HTTP/1.1\r\nContent-Length: -1\r\n\r\n", id="negative"),
        pytest.param(
            b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"
            b"\r\n\r\n0\r\n\r\nGET /info HTTP/1.1\r\nHost: a\r\n\r\n",
            id="smuggling",
        ),
        pytest.param(b"NONSENSE\r\n\r\n", id="nonsense"),
        pytest.param(
            b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
            id="deeply-nested",
        ),
    ],
)
def test_a_malformed_request_is_refused_and_the_next_one_works(
    gateway_url: str, request_bytes: bytes
) -> None:
    host, port = re.findall(r"//([\d.]+):(\d+)", gateway_url)[0]
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request_bytes)
        first_line = connection.recv(4096).split(b"\r\n")[0]
    assert re.fullmatch(rb"HTTP/1.1 4\d\d .*", first_line)
    assert embed(gateway_url, ["next"]).shape == (1, 1024)


def test_a_file_without_keys_does_not_leave_the_gateway_open(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    gateway = GatewayProcess("--api-keys-file", str(tmp_path / "keys"))
    assert gateway.process.wait(timeout=60) == 1
    assert "contains no key" in gateway.log
    assert "Traceback" not in gateway.log


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(("--api-keys-file", "/nowhere"), "'/nowhere' cannot be read", id="keys-file"),
        pytest.param(("--tls-key", __file__), "belong together", id="half-of-tls"),
    ],
)
def test_settings_that_cannot_work_are_bad_usage(flags: tuple[str, ...], words: str) -> None:
    gateway = GatewayProcess(*flags)
    assert gateway.process.wait(timeout=60) == 2
    assert words in gateway.log


def test_with_a_certificate_the_gateway_speaks_https(certificate: tuple[Path, Path]) -> None:
    file, key = certificate
    gateway = GatewayProcess("--tls-certificate", str(file), "--tls-key", str(key))
    try:
        wait_for(lambda: "running on https://" in gateway.log, "the gateway listens")
        found = re.search(r"running on (https://[\d.]+:\d+)", gateway.log)
        assert found is not None
        trust = ssl.create_default_context(cafile=str(file))
        with httpx2.Client(base_url=found[1], verify=trust, timeout=60) as client:
            wait_for(lambda: client.get("/health/ready").status_code == 200, "ready")
            answer = client.post("/embed", json={"texts": ["a"]})
            assert len(answer.json()["embeddings"][0]) == 1024
    finally:
        assert gateway.stop() == 0


def test_an_invalid_certificate_ends_the_start_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "wrong.pem").write_text("no certificate")
    wrong = str(tmp_path / "wrong.pem")
    gateway = GatewayProcess("--tls-certificate", wrong, "--tls-key", wrong)
    assert gateway.process.wait(timeout=60) == 1
    assert "are not a PEM certificate" in gateway.log
    assert "Traceback" not in gateway.log


def test_too_many_texts_are_refused_before_they_are_tokenized(gateway_url: str) -> None:
    answer = post(gateway_url, texts=["a"] * 2049)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "too_many_texts"
