"""Reranking in every dialect: what is sent, what comes back, and errors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from polling import wait_for

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
    "/v1/ranking": {"object", "message", "type", "detail"},
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


def test_requests_of_programs_that_are_not_run_are_answered_by_their_form(
    client: TestClient,
) -> None:
    named = {"model": "fake-reranker", "query": QUERY}
    documents = named | {"documents": TEXTS}
    tei = {"query": QUERY, "texts": TEXTS}
    passages = [{"text": text} for text in TEXTS]
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "Open WebUI": ("/v1/rerank", documents | {"top_n": 4}),
        "Dify": ("/v1/rerank", documents | {"top_n": None, "return_documents": True}),
        "RAGFlow, Xinference": (
            "/v1/rerank",
            documents | {"return_documents": "true", "return_len": "true"},
        ),
        "mteb": ("/v1/rerank", named | {"documents": TEXTS[1:2]}),
        "Haystack, truncating": (
            "/rerank",
            tei | {"raw_scores": False, "truncate": True, "truncation_direction": "Right"},
        ),
        "aiperf, cohere_rankings": ("/v2/rerank", documents),
        "aiperf, hf_tei_rankings": ("/rerank", tei),
        "aiperf, nim_rankings": (
            "/v1/ranking",
            {"model": "fake-reranker", "query": {"text": QUERY}, "passages": passages},
        ),
    }
    expected = scores_of("/rerank", client.post("/rerank", json=tei).json())
    for program, (path, body) in forms.items():
        answer = client.post(path, json=body)
        assert (program, answer.status_code) == (program, 200), answer.text
        scores = {0: expected[1]} if program == "mteb" else expected
        assert scores_of(path, answer.json()) == pytest.approx(scores, abs=1e-6)
    xinference = client.post("/v1/rerank", json=documents).json()["meta"]["tokens"]
    assert xinference["input_tokens"] + xinference["output_tokens"] > 0


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


@pytest.mark.parametrize("text", [QUERY, TEXTS[1]], ids=["query", "document"])
@pytest.mark.parametrize("path", CALLS)
def test_a_text_that_is_not_unicode_is_named(client: TestClient, path: str, text: str) -> None:
    body = json.dumps(CALLS[path]).replace(text, "half an emoji \\ud83d")
    answer = client.post(path, content=body)
    assert answer.status_code == 400
    assert "half of a surrogate pair (U+D83D) at character 14" in answer.text


def test_control_characters_are_text(client: TestClient) -> None:
    texts = ["tea", "\0\0", "\ufefftea\0", "te\0a"]
    body = {"query": "\0\u200d?", "texts": texts, "raw_scores": True}
    answer = client.post("/rerank", json=body)
    assert len({rank["score"] for rank in answer.json()}) == len(texts)


def test_voyage_s_fields_get_voyage_s_answer(client: TestClient) -> None:
    body = CALLS["/v1/rerank"] | {"top_k": 2, "truncation": True, "return_documents": True}
    answer = client.post("/v1/rerank", json=body).json()
    assert answer["object"] == "list"
    assert [item["document"] for item in answer["data"]] == [
        result["document"]["text"] for result in answer["results"]
    ]
    assert len(answer["data"]) == 2
    assert "data" not in client.post("/v1/rerank", json=CALLS["/v1/rerank"]).json()
    long = {"query": "q", "documents": ["word " * 9000], "top_k": None}
    assert client.post("/v1/rerank", json=long | {"truncation": False}).status_code == 400
    assert client.post("/v1/rerank", json=long).status_code == 200


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


def test_texts_may_be_sent_to_the_path_of_documents(client: TestClient) -> None:
    """As TEI's clients do with a base URL for OpenAI's, and llama.cpp's server answers."""
    sent = CALLS["/rerank"] | {"return_text": True}
    assert client.post("/v1/rerank", json=sent).json() == client.post("/rerank", json=sent).json()
    invalid = client.post("/v1/rerank", json=sent | {"texts": []})
    assert set(invalid.json()) == ERROR_FIELDS["/rerank"]
    both = client.post("/v1/rerank", json=CALLS["/v1/rerank"] | sent)
    assert "Both `texts` and `documents`" in both.json()["message"]
    assert client.post("/v1/rerank", json={"query": "q"}).json()["message"] == (
        "`documents` is missing."
    )


def test_a_model_of_the_other_kind_is_named_as_such(client: TestClient) -> None:
    wrong = client.post("/rerank", json=CALLS["/rerank"] | {"model": "fake-embedding"}).json()
    assert "No reranker 'fake-embedding' is served here" in wrong["error"]
    wrong = client.post("/embed", json={"texts": ["a"], "model": "fake-reranker"}).json()
    assert "No embedding model 'fake-reranker' is served here" in wrong["detail"]


def test_the_path_of_nvidia_s_hosted_models_is_that_of_nim(client: TestClient) -> None:
    path = "/v1/retrieval/nvidia/fake-reranker/reranking"
    expected = client.post("/v1/ranking", json=CALLS["/v1/ranking"]).json()
    assert client.post(path, json=CALLS["/v1/ranking"]).json() == expected


def test_any_number_of_documents_may_be_asked_for(client: TestClient) -> None:
    """vLLM's 0 returns all, and so does a number that is larger than what there is."""
    counts: dict[Any, int] = {0: 4, "0": 4, 1: 1, "2": 2, 3.0: 3, 9: 4, None: 4}
    for path, names in {
        "/rerank": ("top_n",),
        "/v1/rerank": ("top_n", "top_k"),
        "/v2/rerank": ("top_n", "top_k"),
        "/v1/ranking": ("top_n", "top_k"),
    }.items():
        for name, (top_n, count) in itertools.product(names, counts.items()):
            answer = client.post(path, json=CALLS[path] | {name: top_n})
            assert len(scores_of(path, answer.json())) == count


def test_a_negative_number_of_documents_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/rerank", json=CALLS["/v1/rerank"] | {"top_n": -1})
    assert answer.status_code == 400
    assert "`top_n` should be greater than or equal to 0" in answer.json()["message"]


def test_cohere_s_rank_fields_are_read_in_their_order(client: TestClient) -> None:
    documents = [{"title": "Rivers", "body": text, "text": "unused"} for text in TEXTS]
    body = {"query": QUERY, "documents": documents, "rank_fields": ["body", "title"]}
    joined = {"query": QUERY, "documents": [f"{text}\nRivers" for text in TEXTS]}
    results, expected = (client.post("/v1/rerank", json=sent).json() for sent in (body, joined))
    assert results["results"] == expected["results"]
    for fields in (["summary"], [1], [["body"]]):
        refused = client.post("/v1/rerank", json={**body, "rank_fields": fields})
        assert refused.status_code == 400
    number = {"query": QUERY, "documents": [{"title": 1}], "rank_fields": ["title"]}
    assert "`documents[0]`" in client.post("/v2/rerank", json=number).json()["message"]


def test_a_document_comes_back_with_the_texts_that_it_was_sent_with(client: TestClient) -> None:
    sent = [{"text": text, "title": "T", "page": 1, "broken": "\\ud83d"} for text in TEXTS]
    body = {"query": QUERY, "documents": sent, "return_documents": True}
    answer = client.post("/v1/rerank", content=json.dumps(body).replace("\\\\", "\\"))
    results = answer.json()["results"]
    assert [result["document"] for result in results] == [
        {"text": TEXTS[result["index"]], "title": "T"} for result in results
    ]
    named = [{"body": text} for text in TEXTS]
    answer = client.post("/v1/rerank", json={**body, "documents": named, "rank_fields": ["body"]})
    [first, *_] = answer.json()["results"]
    assert first["document"] == dict.fromkeys(("text", "body"), TEXTS[first["index"]])


def test_a_document_without_text_is_named_with_what_it_needs(client: TestClient) -> None:
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": ["a", {"title": "b"}]})
    assert answer.status_code == 400
    assert "`documents[1]`: An object needs the field `text`" in answer.json()["message"]
    nim = {"query": {"image": "data:"}, "passages": [{}]}
    assert "text only" in client.post("/v1/ranking", json=nim).json()["message"]
    nim["query"] = {"text": "q"}
    assert client.post("/v1/ranking", json=nim).json()["message"] == "`passages[0]` has no `text`."
    text = client.post("/v1/ranking", json=nim | {"query": "q"}).json()["message"]
    assert text == "`query` should be an object (got a string)."


def test_texts_may_be_objects_and_their_parts(client: TestClient) -> None:
    """As in vLLM, whose models may read images, too."""
    parts = [{"type": "text", "text": "Rivers"}, {"type": "text", "text": "carry sand."}]
    forms: list[Any] = [{"content": parts}, "Rivers\ncarry sand.", {"text": "Rivers\ncarry sand."}]
    answers = [
        *(client.post("/rerank", json={"query": QUERY, "documents": [form]}) for form in forms),
        *(client.post("/rerank", json={"query": QUERY, "documents": form}) for form in forms),
        *(client.post("/score", json={"text_1": QUERY, "text_2": form}) for form in forms),
    ]
    scores = [[*scores_of(str(each.url.path), each.json()).values()] for each in answers[6:]]
    scores += [[each.json()["results"][0]["relevance_score"]] for each in answers[:6]]
    assert scores == [scores[0]] * 9
    plain = client.post("/v1/rerank", json={"query": "a", "documents": "b"}).json()
    objects = {"query": {"text": "a"}, "documents": {"content": [{"type": "text", "text": "b"}]}}
    assert client.post("/v1/rerank", json=objects).json()["results"] == plain["results"]
    for wrong in ({"content": [{"type": "text"}]}, {"content": "text"}, {"content": [1]}):
        assert (
            client.post("/rerank", json={"query": QUERY, "documents": [wrong]}).status_code == 400
        )


def test_an_image_is_refused_rather_than_left_out(client: TestClient) -> None:
    plain, nim = {"query": "q"}, {"query": {"text": "q"}}
    url = {"image_url": {"url": "data:"}}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/ranking", nim | {"passages": [{"text": "a", "image": "data:"}]}),
        ("/v1/rerank", plain | {"documents": [{"text": "a", "image": "data:"}]}),
        ("/v2/rerank", plain | {"documents": [{"a": "b", "image": "data:"}], "rank_fields": ["a"]}),
        ("/rerank", plain | {"documents": [{"content": [url]}]}),
    ]
    for path, body in calls:
        answer = client.post(path, json=body)
        assert answer.status_code == 400
        assert "The reranker reads text only." in answer.json()["message"]


def test_vllm_s_rerank_returns_logits_without_activation(client: TestClient) -> None:
    body = CALLS["/v1/rerank"]
    results = client.post("/rerank", json=body | {"use_activation": False}).json()["results"]
    ranks = client.post("/rerank", json=CALLS["/rerank"] | {"raw_scores": True}).json()
    assert [result["relevance_score"] for result in results] == [rank["score"] for rank in ranks]
    infinity = client.post("/rerank", json=body | {"raw_scores": True}).json()["results"]
    assert infinity == results


def test_null_is_the_default(client: TestClient) -> None:
    options: dict[str, list[str]] = {
        "/rerank": ["raw_scores", "return_text", "truncate", "model", "instruction"],
        "/v1/rerank": ["top_n", "return_documents", "truncate", "truncate_prompt_tokens"],
        "/v1/ranking": ["truncate"],
        "/score": ["truncate", "use_activation", "truncate_prompt_tokens"],
    }
    for path, names in options.items():
        plain = scores_of(path, client.post(path, json=CALLS[path]).json())
        unset = client.post(path, json=CALLS[path] | dict.fromkeys(names))
        assert scores_of(path, unset.json()) == plain


def test_a_limit_of_tokens_that_is_not_allowed_is_refused_as_for_embeddings(
    client: TestClient,
) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, limit in {"/v2/rerank": 8192, "/score": 8192, "/v1/embeddings": 1024}.items():
        body = CALLS.get(path, {"input": "a"})
        for wrong in (0, 1, -2, limit + 1, 10**30):
            answer = client.post(path, json=body | {"truncate_prompt_tokens": wrong})
            assert answer.status_code == 400
            assert f"this gateway allows 2 to {limit}, or -1 for all of them." in answer.text
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        described = content["schema"]["properties"]["truncate_prompt_tokens"]["anyOf"]
        assert {"type": "integer", "minimum": 2, "maximum": limit} in described


def test_a_limit_that_leaves_no_room_for_documents_is_named(client: TestClient) -> None:
    answer = client.post("/rerank", json=CALLS["/v1/rerank"] | {"truncate_prompt_tokens": 2})
    assert answer.status_code == 400
    assert "the limit of a pair is 2 (`truncate_prompt_tokens`)" in answer.json()["message"]


def test_vllm_s_rerank_truncates_pairs_to_a_number_of_tokens(client: TestClient) -> None:
    body = {"query": "sand", "documents": ["tea", "word " * 200]}
    whole = client.post("/rerank", json=body)
    assert "X-Rerank-Truncated" not in whole.headers
    cut = client.post("/rerank", json=body | {"truncate_prompt_tokens": 128})
    assert cut.headers["X-Rerank-Truncated"] == "1"
    assert int(cut.headers["X-Compute-Tokens"]) < int(whole.headers["X-Compute-Tokens"])
    left = client.post("/rerank", json=body | {"truncation_side": "left"})
    assert left.status_code == 400


@pytest.mark.parametrize(("path", "field"), [("/v1/rerank", "query"), ("/score", "text_1")])
def test_a_limit_of_a_document_s_tokens_cuts_documents_even_where_long_ones_are_refused(
    client: TestClient, path: str, field: str
) -> None:
    documents = "documents" if field == "query" else "text_2"
    body = {field: "sand", documents: ["tea", "word " * 200], "truncate": False}
    cut = client.post(path, json=body | {"max_tokens_per_doc": 9})
    assert cut.headers["X-Rerank-Truncated"] == "1"
    whole = client.post(path, json=body | {"max_tokens_per_doc": 0})
    assert "X-Rerank-Truncated" not in whole.headers
    far_too_long = body | {documents: ["word " * 9000], "max_tokens_per_doc": 8999}
    assert "has 9" in client.post(path, json=far_too_long).text


def test_every_answer_counts_its_tokens(client: TestClient) -> None:
    answers = {path: client.post(path, json=body) for path, body in CALLS.items()}
    [tokens] = {answer.headers["X-Compute-Tokens"] for answer in answers.values()}
    assert answers["/score"].json()["usage"]["prompt_tokens"] == int(tokens) > 0


def test_vllm_s_items_are_documents(client: TestClient) -> None:
    body = {"queries": QUERY, "items": TEXTS}
    expected = client.post("/score", json=CALLS["/score"]).json()["data"]
    assert client.post("/score", json=body).json()["data"] == expected
    refused = client.post("/score", json=body | {"items": ["a", " "]})
    assert refused.json()["error"]["param"] == "items[1]"


def test_vllm_returns_logits_without_activation(client: TestClient) -> None:
    body = CALLS["/score"]
    logits = client.post("/score", json=body | {"use_activation": False}).json()["data"]
    ranks = client.post("/rerank", json=CALLS["/rerank"] | {"raw_scores": True}).json()
    expected = {rank["index"]: rank["score"] for rank in ranks}
    assert {item["index"]: item["score"] for item in logits} == pytest.approx(expected)


@pytest.mark.parametrize("path", CALLS)
def test_every_dialect_takes_an_instruction(client: TestClient, path: str) -> None:
    plain = scores_of(path, client.post(path, json=CALLS[path]).json())
    instructed = client.post(path, json=CALLS[path] | {"instruction": "Find recipes."})
    assert scores_of(path, instructed.json()) != plain
    empty = client.post(path, json=CALLS[path] | {"instruction": ""})
    assert scores_of(path, empty.json()) == pytest.approx(plain)


def test_the_requests_of_qwen_s_hosted_reranker_are_answered(client: TestClient) -> None:
    body = CALLS["/v1/rerank"] | {"model": "fake-reranker"}
    asked = client.post("/v1/reranks", json=body | {"instruct": "Find recipes."})
    expected = client.post("/v1/rerank", json=body | {"instruction": "Find recipes."})
    assert scores_of("/v1/rerank", asked.json()) == scores_of("/v1/rerank", expected.json())


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
    assert "Document 0 has" in refused.text
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


def test_every_status_has_the_shape_of_the_dialect(
    start_gateway: Callable[..., TestClient],
) -> None:
    settings = {"EMBED_MAX_BODY_BYTES": 1024, "EMBED_API_KEYS": "long-enough-key"}
    client = start_gateway(reranker=True, **settings)
    answers = {path: [client.post(path, json=body)] for path, body in CALLS.items()}
    client.headers["Authorization"] = "Bearer long-enough-key"
    for path, body in CALLS.items():
        too_large, not_json = (client.post(path, content=sent) for sent in (b" " * 1025, b"{"))
        answers[path] += [too_large, not_json, client.put(path, json=body)]
    app: Any = client.app
    reranker = app.state.service.reranker
    reranker.backend.ready = False
    assert client.portal is not None
    client.portal.call(reranker.check)
    for path, body in CALLS.items():
        down = client.post(path, json=body)
        assert int(down.headers["Retry-After"]) >= 1
        found = [*answers[path], down]
        assert [answer.status_code for answer in found] == [401, 413, 400, 405, 503]
        assert [set(answer.json()) for answer in found] == [ERROR_FIELDS[path]] * 5


def test_a_blank_document_is_named(client: TestClient) -> None:
    tei = client.post("/rerank", json={"query": QUERY, "texts": ["a", " "]})
    assert tei.json()["param"] == "texts[1]"
    assert tei.json()["code"] == "blank_text"
    vllm = client.post("/score", json={"data_1": QUERY, "data_2": ["a", " "]})
    assert vllm.json()["error"]["param"] == "data_2[1]"
    nim = client.post("/v1/ranking", json={"query": {"text": "q"}, "passages": [{"text": " "}]})
    assert nim.json()["detail"] == {"code": "blank_text", "param": "passages[0]"}
    cohere = client.post("/v2/rerank", json={"query": QUERY, "documents": ["a", " "]})
    assert "Document 1 is blank" in cohere.json()["message"]


def test_vllm_s_errors_name_the_fields_that_were_sent(client: TestClient) -> None:
    calls: list[tuple[dict[str, Any], str, str]] = [
        ({"queries": ["a", " "], "items": ["b", "c"]}, "queries[1]", "Query 1 is blank"),
        ({"data_1": [" "], "data_2": ["b", "c"]}, "data_1", "The query is blank"),
        ({"queries": ["a", "w" * 99999], "items": ["b", "c"]}, "queries[1]", "Query 1 has"),
        ({"data_1": "a", "data_2": ["b", "w" * 99999]}, "data_2[1]", "Document 1 has a word of"),
        ({"queries": "a"}, "documents", "`documents` is missing"),
        ({"query": "a", "documents": ["b"]}, "queries", "`queries` is missing"),
        ({"data_1": [1], "data_2": ["b"]}, "data_1[0]", "`data_1[0]` should be"),
        ({}, "text_1", "`text_1` is missing"),
    ]
    for body, param, words in calls:
        error = client.post("/score", json=body).json()["error"]
        assert error["param"] == param
        assert words in error["message"]


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
    health = client.get("/health").json()
    assert health["model"] == "fake-reranker"
    unknown = client.get("/v1/models/another").json()["error"]["message"]
    assert unknown == "Model 'another' is not served here. GET /v1/models lists those that are."
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


def test_health_tells_which_of_two_models_is_not_ready(client: TestClient) -> None:
    service = client.app.state.service  # pyright: ignore[reportAttributeAccessIssue]
    service.reranker.backend.ready = False
    of_reranker = {"model": "fake-reranker"}
    wait_for(
        lambda: client.get("/health/ready", params=of_reranker).status_code == 503, "not ready"
    )
    assert "unavailable" in client.get("/health/ready", params=of_reranker).json()["reason"]
    assert client.get("/health/ready", params={"model": "fake-embedding"}).status_code == 200
    assert client.get("/health/ready", params={"model": "another"}).status_code == 404
    for path in ("/health", "/health/ready"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["reason"].startswith("fake-reranker: ")
    assert client.get("/health").json()["triton_status"] == 200
    assert client.post("/embed", json={"texts": ["a"]}).status_code == 200
    assert client.post("/rerank", json=CALLS["/rerank"]).status_code == 503
    metrics = client.get("/metrics").text
    assert 'qwen3_triton_model_ready{model="fake-embedding"} 1.0' in metrics
    assert 'qwen3_triton_model_ready{model="fake-reranker"} 0.0' in metrics
    assert "\nqwen3_triton_ready 0.0" in metrics
