"""Paths as clients send them: close misses, prefixes of proxies, and what a 404 says."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from qwen3_triton_gateway.paths import canonical_path

StartGateway = Callable[..., TestClient]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/embeddings", "/v1/embeddings"),
        ("/embeddings/", "/v1/embeddings"),
        ("/v1/embeddings/", "/v1/embeddings"),
        ("//v1/embeddings", "/v1/embeddings"),
        ("/v1//embeddings", "/v1/embeddings"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/v1/v1/v1/models/", "/v1/models"),
        ("/v1/embeddings/embeddings", "/v1/embeddings"),
        ("/v1/embeddings/v1/models", "/v1/models"),
        ("/embed/", "/embed"),
        ("/embed//", "/embed"),
        ("/embed/embed", "/embed"),
        ("/rerank/", "/rerank"),
        ("/rerank/rerank", "/rerank"),
        ("/v1/rerank/rerank", "/v1/rerank"),
        ("/v1/rerank/v1/rerank", "/v1/rerank"),
        ("/v1/rerank/v2/rerank", "/v2/rerank"),
        ("/rerank/v1/rerank", "/v1/rerank"),
        ("/v2/v2/rerank", "/v2/rerank"),
        ("/api/v1/rerank", "/v1/rerank"),
        ("/v1/reranking", "/v1/rerank"),
        ("/v1/ranking/ranking", "/v1/ranking"),
        ("/ranking/ranking", "/v1/ranking"),
        ("/score/score", "/score"),
        ("/v1/rerank/score", "/v1/rerank/score"),
        ("/models", "/v1/models"),
        ("/health/", "/health"),
        ("/docs/", "/docs"),
        ("/docs/swagger/swagger-ui.css", "/swagger/swagger-ui.css"),
        ("//", "/"),
        ("/", "/"),
        ("", "/"),
        ("/v1/models/v1/v1", "/v1/models/v1/v1"),
        ("/embeddings/x", "/embeddings/x"),
    ],
)
def test_a_close_miss_means_the_path_next_to_it(path: str, meant: str) -> None:
    assert canonical_path(path) == meant


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/api-root/embed", "/embed"),
        ("/api-root", "/"),
        ("/api-root/", "/"),
        ("/embed", "/embed"),
        ("/api-rooted/embed", "/api-rooted/embed"),
        ("//api-root//embed/", "/embed"),
    ],
)
def test_the_prefix_of_a_proxy_may_be_there_or_not(path: str, meant: str) -> None:
    assert canonical_path(path, "/api-root") == meant


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings", {"input": "a"}),
        ("/v1/embeddings/", {"input": "a"}),
        ("/v1/v1/embeddings", {"input": "a"}),
        ("/embed/", {"texts": ["a"]}),
        ("/api/embed/", {"input": "a"}),
        ("/v2/embed/", {"texts": ["a"]}),
    ],
)
def test_a_close_miss_is_answered_without_a_redirect(
    client: TestClient, path: str, body: dict[str, object]
) -> None:
    assert client.post(path, json=body, follow_redirects=False).status_code == 200


def test_a_close_miss_needs_a_key_and_is_counted_like_the_path_itself(
    start_gateway: StartGateway,
) -> None:
    client = start_gateway(EMBED_API_KEYS="long-enough-key")
    headers = {"Authorization": "Bearer long-enough-key"}
    assert client.post("/embeddings", json={"input": "a"}).status_code == 401
    assert client.post("/embeddings", json={"input": "a"}, headers=headers).status_code == 200
    assert client.get("/health/").status_code == 200
    metrics = client.get("/metrics", headers=headers).text
    assert 'route="/v1/embeddings",status="200"' in metrics
    assert 'route="/v1/embeddings",status="401"' in metrics


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/embedings", "Did you mean POST /v1/embeddings?"),
        ("/v1/embed", "POST /v"),
        ("/api/emebd", "Did you mean POST /api/embed?"),
        ("/openai/deployments/x/embeddings", "plain OpenAI client"),
        ("/v1/chat/completions", "no text"),
        ("/api/generate", "no text"),
        ("/v2/models/x/infer", "TRITON_URL"),
        ("/api/pull", "GET /api/tags"),
        ("/v3/rerank", "Did you mean POST /v2/rerank?"),
        ("/nowhere/at/all", "POST /embed, /v1/embeddings"),
        ("/nowhere/at/all", "POST /rerank, /v1/rerank"),
    ],
)
def test_a_404_says_what_to_call_instead(client: TestClient, path: str, words: str) -> None:
    refused = client.post(path, json={})
    assert refused.status_code == 404
    assert words in refused.text
    assert "GET /docs" in refused.text or "GET /api/tags" in refused.text or "/v1" in refused.text


@pytest.mark.parametrize("prefix", ["", "/tools/embedder"])
def test_the_pages_work_behind_a_prefix(start_gateway: StartGateway, prefix: str) -> None:
    client = start_gateway(EMBED_ROOT_PATH="tools/embedder/")
    page = client.get(f"{prefix}/docs")
    assert page.status_code == 200
    assert client.get(f"{prefix}/swagger/swagger-ui.css").status_code == 200
    document = client.get(f"{prefix}/openapi.json").json()
    assert document["servers"] == [{"url": "/tools/embedder"}]
    assert client.post(f"{prefix}/embed", json={"texts": ["a"]}).status_code == 200
