"""What every request passes before its route: HEAD, methods, logging, counting, page headers."""

import logging
import re
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

StartGateway = Callable[..., TestClient]

GET_PATHS = [
    "/",
    "/docs",
    "/openapi.json",
    "/health",
    "/health/live",
    "/health/ready",
    "/v1/health/live",
    "/v1/health/ready",
    "/info",
    "/metrics",
    "/tokenizer",
    "/v1/models",
    "/swagger/swagger-ui.css",
]


def count(client: TestClient, route: str, status: int) -> float:
    pattern = (
        rf'qwen3_triton_requests_total{{[^}}]*route="{re.escape(route)}",status="{status}"}} (\S+)'
    )
    headers = {"Authorization": "Bearer long-enough-key"}
    return sum(map(float, re.findall(pattern, client.get("/metrics", headers=headers).text)))


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_is_answered_like_get_without_the_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == str(len(get.content))


def test_head_needs_a_key_where_get_does_and_is_counted_under_its_route(
    start_gateway: StartGateway,
) -> None:
    client = start_gateway(EMBED_API_KEYS="long-enough-key")
    assert client.head("/").status_code == 200
    assert client.head("/health").status_code == 200
    assert client.head("/info").status_code == 401
    assert count(client, "/info", 401) == 1
    assert count(client, "/health", 200) == 1


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/embed", "POST"),
        ("HEAD", "/embed", "POST"),
        ("DELETE", "/", "GET, HEAD, POST"),
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/v1/models/a/b", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("POST", "/swagger/swagger-ui.css", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_does_not_have_is_a_405_with_allow(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    refused = client.request(method, path)
    assert refused.status_code == 405
    assert refused.headers["Allow"] == allowed
    if method != "HEAD" and path != "/":  # "/" speaks text-embeddings-inference, without codes
        assert refused.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/embed", "/embed"),
        ("POST", "/v1/embeddings", "/v1/embeddings"),
        ("POST", "/", "/"),
        ("GET", "/v1/models/some/name", "/v1/models/{name:path}"),
        ("GET", "/nowhere", "unknown"),
    ],
)
def test_a_401_is_counted_under_its_route(
    start_gateway: StartGateway, method: str, path: str, route: str
) -> None:
    client = start_gateway(EMBED_API_KEYS="long-enough-key")
    assert client.request(method, path).status_code == 401
    assert count(client, route, 401) == 1


def test_a_413_is_counted_under_its_route(start_gateway: StartGateway) -> None:
    client = start_gateway(EMBED_MAX_BODY_BYTES=1024)
    large = b" " * 2000
    chunks = (large[start : start + 100] for start in range(0, len(large), 100))
    for content in (large, chunks):
        assert client.post("/embed", content=content).status_code == 413
    assert count(client, "/embed", 413) == 2
    assert count(client, "unknown", 413) == 0


@pytest.mark.parametrize(
    "path", ["/" + "a" * 60_000, "/%00%ff" * 9000, "/v1/models/" + "b" * 60_000]
)
def test_a_long_url_is_neither_logged_nor_repeated_whole(
    client: TestClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.INFO, "qwen3_triton_gateway.middleware")
    answer = client.get(path)
    assert answer.status_code == 404
    assert len(answer.content) < 2000
    (record,) = caplog.records
    assert len(record.getMessage()) < 1000
    assert "...(+" in record.getMessage()


PREFLIGHT = {"Origin": "http://app.example", "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize(
    "requested",
    [
        "authorization,content-type,x-stainless-arch,x-stainless-retry-count",  # openai-node
        "api-key,content-type",  # Azure's clients
        "content-type,user-agent",  # ollama-js
        "x-client-name,x-fern-language",  # cohere-ai
        "traceparent,x-request-id",
    ],
)
@pytest.mark.parametrize("origins", ["http://app.example", "*"])
def test_a_page_of_an_allowed_origin_may_send_any_header(
    start_gateway: StartGateway, origins: str, requested: str
) -> None:
    client = start_gateway(EMBED_CORS_ORIGINS=origins, EMBED_API_KEYS="long-enough-key")
    headers = PREFLIGHT | {"Access-Control-Request-Headers": requested}
    for path in ("/v1/embeddings", "/embed", "/api/embed", "/embeddings"):
        answer = client.options(path, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] in {"http://app.example", "*"}
        allowed = answer.headers["Access-Control-Allow-Headers"].lower().replace(" ", "")
        assert set(requested.split(",")) <= set(allowed.split(","))


def test_a_page_of_an_allowed_origin_reaches_a_private_network(
    start_gateway: StartGateway,
) -> None:
    client = start_gateway(EMBED_CORS_ORIGINS="http://app.example")
    headers = PREFLIGHT | {"Access-Control-Request-Private-Network": "true"}
    answer = client.options("/embed", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"


def test_a_page_of_another_origin_may_send_nothing(start_gateway: StartGateway) -> None:
    client = start_gateway(EMBED_CORS_ORIGINS="http://app.example")
    headers = PREFLIGHT | {
        "Origin": "http://evil.example",
        "Access-Control-Request-Headers": "api-key",
    }
    answer = client.options("/v1/embeddings", headers=headers)
    assert answer.status_code == 400
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_runs_only_its_own_scripts(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert "sha256-" in policy["script-src"]
    assert policy["frame-ancestors"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
