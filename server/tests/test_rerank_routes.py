"""Reranking in every dialect: what is sent, what comes back, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

QUERY = "How do rivers carry sand?"
TEXTS = ["tea", "Rivers carry sand.", "a cake", "mountains"]
# Every dialect with the same texts.
CALLS: dict[str, dict[str, Any]] = {
    "/rerank": {"query": QUERY, "texts": TEXTS},
    "/v1/rerank": {"query": QUERY, "documents": TEXTS},
    "/v2/rerank": {"query": QUERY, "documents": [{"text": text, "id": 1} for text in TEXTS]},
    "/v1/ranking": {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]},
    "/score": {"text_1": QUERY, "text_2": TEXTS},
    "/v1/score": {"queries": [QUERY] * 4, "documents": TEXTS},
}
ERROR_FIELDS = {
    "/rerank": {"error", "error_type", "code", "param"},
    "/v1/rerank": {"message", "detail"},
    "/v2/rerank": {"message", "detail"},
    "/v1/ranking": {"error"},
    "/score": {"error"},
    "/v1/score": {"error"},
}


@pytest.fixture(name="client")
def _client(start_gateway: Callable[..., TestClient]) -> TestClient:
    return start_gateway(reranker=True)


def scores_of(path: str, body: Any) -> dict[int, float]:
    """Return the scores of an answer by index, as probabilities."""
    match path:
        case "/rerank":
            return {item["index"]: item["score"] for item in body}
        case "/v1/ranking":
            logits = {item["index"]: item["logit"] for item in body["rankings"]}
            return {index: 1 / (1 + float(np.exp(-logit))) for index, logit in logits.items()}
        case "/score" | "/v1/score":
            return {item["index"]: item["score"] for item in body["data"]}
        case _:
            return {item["index"]: item["relevance_score"] for item in body["results"]}


def test_every_dialect_returns_the_same_scores(client: TestClient) -> None:
    answers = {path: client.post(path, json=body) for path, body in CALLS.items()}
    assert {answer.status_code for answer in answers.values()} == {200}
    expected = scores_of("/rerank", answers["/rerank"].json())
    assert sorted(expected) == [0, 1, 2, 3]
    for path, answer in answers.items():
        assert scores_of(path, answer.json()) == pytest.approx(expected, abs=1e-9)
        assert answer.headers["X-Rerank-Fingerprint"]
        assert "infer;dur=" in answer.headers["Server-Timing"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/v1/ranking"])
def test_the_most_relevant_comes_first(client: TestClient, path: str) -> None:
    scores = list(scores_of(path, client.post(path, json=CALLS[path]).json()).values())
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_pairs_are_scored_in_their_order(client: TestClient, path: str) -> None:
    assert list(scores_of(path, client.post(path, json=CALLS[path]).json())) == [0, 1, 2, 3]


def test_a_thousand_documents_come_back_each_once(client: TestClient) -> None:
    texts = [f"document number {number}" for number in range(1000)]
    ranks = client.post("/rerank", json={"query": QUERY, "texts": texts}).json()
    assert sorted(rank["index"] for rank in ranks) == list(range(1000))
    some = {rank["index"]: rank["score"] for rank in ranks[::100]}
    for index, score in some.items():
        alone = client.post("/rerank", json={"query": QUERY, "texts": [texts[index]]}).json()
        assert alone[0]["score"] == pytest.approx(score, abs=1e-6)


def test_tei_returns_raw_scores_and_texts_on_request(client: TestClient) -> None:
    body = CALLS["/rerank"]
    plain = client.post("/rerank", json=body).json()
    raw = client.post("/rerank", json=body | {"raw_scores": True, "return_text": True}).json()
    assert [item["index"] for item in raw] == [item["index"] for item in plain]
    assert all(item["text"] == TEXTS[item["index"]] for item in raw)
    for item, before in zip(raw, plain, strict=True):
        assert 1 / (1 + np.exp(-item["score"])) == pytest.approx(before["score"])
    assert "text" not in plain[0]


def test_cohere_returns_the_first_n_with_their_documents(client: TestClient) -> None:
    body = CALLS["/v2/rerank"] | {"top_n": 2, "return_documents": True}
    answer = client.post("/v2/rerank", json=body).json()
    assert len(answer["results"]) == 2
    assert answer["results"][0]["document"] == {"text": TEXTS[answer["results"][0]["index"]]}
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    assert answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"] > 0


def test_documents_may_be_sent_to_the_path_of_texts(client: TestClient) -> None:
    """As LiteLLM does for vLLM."""
    answer = client.post("/rerank", json=CALLS["/v1/rerank"]).json()
    expected = client.post("/v1/rerank", json=CALLS["/v1/rerank"]).json()
    assert answer["results"] == expected["results"]
    invalid = client.post("/rerank", json={"query": QUERY, "documents": []})
    assert set(invalid.json()) == ERROR_FIELDS["/v1/rerank"]
    both = client.post("/rerank", json=CALLS["/v1/rerank"] | CALLS["/rerank"])
    assert both.status_code == 400
    assert "Both `texts` and `documents`" in both.json()["error"]


def test_the_path_of_nvidia_s_hosted_models_is_that_of_nim(client: TestClient) -> None:
    path = "/v1/retrieval/nvidia/fake-reranker/reranking"
    expected = client.post("/v1/ranking", json=CALLS["/v1/ranking"]).json()
    assert client.post(path, json=CALLS["/v1/ranking"]).json() == expected


def test_vllm_returns_logits_without_activation(client: TestClient) -> None:
    body = CALLS["/score"]
    logits = client.post("/score", json=body | {"use_activation": False}).json()["data"]
    ranks = client.post("/rerank", json=CALLS["/rerank"] | {"raw_scores": True}).json()
    expected = {rank["index"]: rank["score"] for rank in ranks}
    assert {item["index"]: item["score"] for item in logits} == pytest.approx(expected)


@pytest.mark.parametrize("path", CALLS)
def test_every_dialect_takes_an_instruction(client: TestClient, path: str) -> None:
    plain = scores_of(path, client.post(path, json=CALLS[path]).json())
    told = client.post(path, json=CALLS[path] | {"instruction": "Find recipes."})
    assert scores_of(path, told.json()) != plain


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_a_document_that_is_too_long_is_cut_and_named(
    start_gateway: Callable[..., TestClient], path: str
) -> None:
    client = start_gateway(reranker=True, RERANK_MAX_LENGTH=128)
    field = "texts" if path == "/rerank" else "documents"
    body = {"query": "sand", field: ["tea", "word " * 200]}
    answer = client.post(path, json=body)
    assert answer.headers["X-Rerank-Truncated"] == "1"
    if path != "/rerank":
        assert answer.json()["meta"]["warnings"] == ["These documents were truncated: 1."]
    refused = client.post(path, json=body | {"truncate": False})
    assert refused.status_code == 400
    assert "Document 1 has" in refused.text


@pytest.mark.parametrize(
    ("path", "option"),
    [("/v1/ranking", {"truncate": "END"}), ("/score", {"truncate_prompt_tokens": -1})],
)
def test_nim_and_vllm_refuse_long_documents_unless_told(
    start_gateway: Callable[..., TestClient], path: str, option: dict[str, Any]
) -> None:
    client = start_gateway(reranker=True, RERANK_MAX_LENGTH=128)
    long = "word " * 200
    bodies = {
        "/v1/ranking": {"query": {"text": "sand"}, "passages": [{"text": long}]},
        "/score": {"text_1": "sand", "text_2": long},
    }
    refused = client.post(path, json=bodies[path])
    assert refused.status_code == 400
    assert "Document 0 has" in refused.json()["error"]["message"]
    answer = client.post(path, json=bodies[path] | option)
    assert answer.status_code == 200
    assert answer.headers["X-Rerank-Truncated"] == "0"


@pytest.mark.parametrize("path", CALLS)
def test_errors_have_the_shape_of_the_dialect(client: TestClient, path: str) -> None:
    unknown = client.post(path, json=CALLS[path] | {"model": "another"})
    assert unknown.status_code == 404
    assert set(unknown.json()) == ERROR_FIELDS[path]
    assert "'fake-reranker'" in unknown.text
    invalid = client.post(path, json={})
    assert invalid.status_code == 400
    assert set(invalid.json()) == ERROR_FIELDS[path]


def test_a_blank_document_is_named(client: TestClient) -> None:
    tei = client.post("/rerank", json={"query": QUERY, "texts": ["a", " "]})
    assert tei.json()["param"] == "texts[1]"
    assert tei.json()["code"] == "blank_text"
    vllm = client.post("/score", json={"data_1": QUERY, "data_2": ["a", " "]})
    assert vllm.json()["error"]["param"] == "data_2[1]"
    nim = client.post("/v1/ranking", json={"query": {"text": "q"}, "passages": [{"text": " "}]})
    assert nim.json()["error"]["param"] == "passages[0]"
    cohere = client.post("/v2/rerank", json={"query": QUERY, "documents": ["a", " "]})
    assert "Document 1 is blank" in cohere.json()["message"]


def test_vllm_needs_as_many_texts_on_both_sides(client: TestClient) -> None:
    answer = client.post("/score", json={"text_1": ["a", "b"], "text_2": ["c", "d", "e"]})
    assert answer.status_code == 400
    assert "`text_1` has 2 texts and `text_2` has 3" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", CALLS)
def test_without_a_reranker_the_answer_says_how_to_serve_one(
    start_gateway: Callable[..., TestClient], path: str
) -> None:
    answer = start_gateway().post(path, json=CALLS[path])
    assert answer.status_code == 404
    assert set(answer.json()) == ERROR_FIELDS[path]
    assert "RERANK_TRITON_MODEL" in answer.text


def test_a_reranker_alone_answers_and_says_that_nothing_embeds(
    start_gateway: Callable[..., TestClient],
) -> None:
    client = start_gateway(reranker=True, embed=False)
    assert client.post("/rerank", json=CALLS["/rerank"]).status_code == 200
    for path, body in {"/embed": {"texts": ["a"]}, "/v1/embeddings": {"input": "a"}}.items():
        answer = client.post(path, json=body)
        assert answer.status_code == 404
        assert "EMBED_MODEL_DIR" in answer.text
    assert client.get("/health").json()["model"] == "fake-reranker"
    assert client.get("/info").json()["model_type"]["reranker"]
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["fake-reranker"]
    assert client.get("/api/tags").json() == {"models": []}
    assert client.get("/openapi.json").status_code == 200
    assert "qwen3_triton_rerank_pairs_total" in client.get("/metrics").text


def test_both_models_are_described(client: TestClient) -> None:
    health = client.get("/health").json()
    assert health["model"] == "fake-embedding"
    assert health["reranker"]["model"] == "fake-reranker"
    assert health["reranker"]["ready"]
    ready = client.get("/health/ready").json()["models"]
    assert {name: state["ready"] for name, state in ready.items()} == {
        "fake-embedding": True,
        "fake-reranker": True,
    }
    info = client.get("/info").json()
    answer = client.post("/rerank", json=CALLS["/rerank"])
    assert info["reranker"]["fingerprint"] == answer.headers["X-Rerank-Fingerprint"]
    assert info["fingerprint"] != info["reranker"]["fingerprint"]
    models = {model["id"]: model["task"] for model in client.get("/v1/models").json()["data"]}
    assert models == {"fake-embedding": "embed", "fake-reranker": "rerank"}
    assert client.get("/v1/models/fake-reranker").json()["task"] == "rerank"


def test_a_key_is_required_and_counted(
    start_gateway: Callable[..., TestClient], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:secret-of-alice-1234\n")
    client = start_gateway(reranker=True, EMBED_API_KEYS_FILE=keys)
    assert client.post("/rerank", json=CALLS["/rerank"]).status_code == 401
    headers = {"Authorization": "Bearer secret-of-alice-1234"}
    assert client.post("/rerank", json=CALLS["/rerank"], headers=headers).status_code == 200
    metrics = client.get("/metrics", headers=headers).text
    assert 'qwen3_triton_rerank_key_pairs_total{key="alice"} 4.0' in metrics
