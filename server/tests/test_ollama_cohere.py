"""Ollama's dialect, and Cohere's; `tests/clients` uses their real clients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

StartGateway = Callable[..., TestClient]

MODEL = "fake-embedding"
LONG = "x" * 5000


def native(client: TestClient, *texts: str, **body: Any) -> list[list[float]]:
    return client.post("/embed", json={"texts": list(texts), **body}).json()["embeddings"]


def embed(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/embed", json={"model": MODEL} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cohere(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v2/embed", json={"model": MODEL} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# Ollama


def test_ollama_gets_the_native_vectors_with_its_own_fields(client: TestClient) -> None:
    answer = embed(client, input=["a", "bc"], options={"num_ctx": 8192}, keep_alive="5m")
    assert answer["embeddings"] == native(client, "a", "bc")
    assert answer["model"] == MODEL
    assert answer["prompt_eval_count"] == 5
    assert answer["total_duration"] > 0
    assert answer["load_duration"] == 0


def test_ollama_takes_one_text_dimensions_and_a_tag(client: TestClient) -> None:
    answer = embed(client, input="a", dimensions=64, model=f"{MODEL}:latest")
    assert answer["embeddings"] == native(client, "a", dimensions=64)
    assert answer["model"] == f"{MODEL}:latest"


def test_a_suffix_marks_queries_for_ollamas_clients(client: TestClient) -> None:
    answer = embed(client, input="a", model=f"{MODEL}-query:latest")
    assert answer["embeddings"] == native(client, "a", input_type="query")


def test_ollama_truncates_unless_told_not_to(client: TestClient) -> None:
    assert embed(client, input=LONG)["embeddings"] == native(client, LONG)
    refused = client.post("/api/embed", json={"input": LONG, "truncate": False})
    assert refused.status_code == 400
    assert "5001 tokens" in refused.json()["error"]


@pytest.mark.parametrize("body", [{}, {"input": None}, {"input": ""}, {"input": []}])
def test_no_input_only_loads_the_model(client: TestClient, body: dict[str, Any]) -> None:
    assert embed(client, **body)["embeddings"] == []


def test_ollamas_older_call_takes_one_prompt(client: TestClient) -> None:
    answer = client.post("/api/embeddings", json={"model": MODEL, "prompt": "a"})
    assert answer.json() == {"embedding": native(client, "a")[0]}
    assert client.post("/api/embeddings", json={"model": MODEL}).json() == {"embedding": []}


def test_ollama_lists_and_shows_the_model(start_gateway: StartGateway) -> None:
    client = start_gateway(EMBED_MODEL_ALIASES="nomic-embed-text")
    listed = client.get("/api/tags").json()["models"]
    assert [model["name"] for model in listed] == [MODEL, "nomic-embed-text"]
    for body in ({"model": MODEL}, {"name": "nomic-embed-text:latest"}):
        shown = client.post("/api/show", json=body).json()
        assert shown["capabilities"] == ["embedding"]
        assert shown["model_info"]["qwen3.embedding_length"] == 1280
    assert client.get("/api/version").json()["version"].count(".") == 2


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/embed", {"input": ["a", " "]}, 400),
        ("/api/embed", {"input": 7}, 400),
        ("/api/embed", {"input": [], "dimensions": 0}, 400),
        ("/api/embed", {"input": "a", "model": "llama3"}, 404),
        ("/api/embeddings", {"prompt": " "}, 400),
        ("/api/show", {"model": "llama3"}, 404),
    ],
)
def test_ollamas_errors_are_a_string(
    client: TestClient, path: str, body: dict[str, Any], status: int
) -> None:
    refused = client.post(path, json=body)
    assert refused.status_code == status
    assert set(refused.json()) == {"error"}
    assert isinstance(refused.json()["error"], str)


# Cohere


def test_cohere_gets_the_native_vectors_in_each_type(client: TestClient) -> None:
    answer = cohere(client, texts=["a", "bc"], embedding_types=["float", "base64"])
    assert answer["embeddings"]["float"] == native(client, "a", "bc")
    assert answer["embeddings"]["base64"] == native(client, "a", "bc", encoding_format="base64")
    assert answer["meta"]["billed_units"] == {"input_tokens": 5}
    assert answer["response_type"] == "embeddings_by_type"


def test_coheres_whole_numbers_keep_the_direction_of_each_vector(client: TestClient) -> None:
    types = ["int8", "uint8", "float"]
    answer = cohere(client, texts=["soup", "a", "soup"], embedding_types=types)["embeddings"]
    exact, small = np.array(answer["float"]), np.array(answer["int8"])
    assert np.abs(small).max(axis=1).tolist() == [127] * 3
    cosines = (exact * small).sum(axis=1) / np.linalg.norm(small, axis=1)
    assert cosines.min() > 0.999
    assert (np.array(answer["uint8"]) == small + 128).all()
    alone = cohere(client, texts=["a"], embedding_types=["int8"])["embeddings"]["int8"]
    assert alone[0] == answer["int8"][1]


def test_coheres_binary_types_pack_the_signs_of_eight_dimensions(client: TestClient) -> None:
    types = ["ubinary", "binary", "float"]
    body = {"texts": ["soup", "a"], "output_dimension": 64, "embedding_types": types}
    answer = cohere(client, **body)["embeddings"]
    packed = np.array(answer["ubinary"], dtype=np.uint8)
    assert packed.shape == (2, 8)
    assert (np.unpackbits(packed, axis=1) == (np.array(answer["float"]) > 0)).all()
    assert (np.array(answer["binary"]) == packed.astype(int) - 128).all()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {}),
        ({"input_type": "search_query"}, {"input_type": "query"}),
        ({"input_type": "search_document"}, {}),
        ({"input_type": "clustering"}, {}),
        ({"model": f"{MODEL}-query"}, {"input_type": "query"}),
        ({"output_dimension": 64}, {"dimensions": 64}),
        ({"max_tokens": 99_999}, {}),
        ({"max_tokens": 99_999.0}, {}),
    ],
)
def test_coheres_fields_mean_what_the_native_ones_mean(
    client: TestClient, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    answer = cohere(client, texts=["soup"], **body)
    assert answer["embeddings"]["float"] == native(client, "soup", **expected)


def test_cohere_truncates_and_says_so(client: TestClient) -> None:
    text = "y" * 2000 + "x" * 1023
    answer = cohere(client, texts=["a", text], truncate="START")
    assert answer["embeddings"]["float"][1] == native(client, "x" * 1023)[0]
    assert answer["meta"]["warnings"] == ["These texts were truncated: 1."]
    short = cohere(client, texts=["abcdef"], max_tokens=4)
    assert short["embeddings"]["float"] == native(client, "abc")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"texts": [LONG], "truncate": "NONE"}, 400, "send `truncate: END`"),
        ({"texts": ["a", ""]}, 400, "Text 1 is blank"),
        ({"texts": ["a"], "embedding_types": ["int4"]}, 400, "'binary' or 'ubinary'"),
        (
            {"texts": ["a"], "embedding_types": ["ubinary"], "output_dimension": 100},
            400,
            "a multiple of 8",
        ),
        ({"texts": ["a"], "model": "embed-v4.0"}, 404, "'fake-embedding'"),
        ({"images": ["data:..."]}, 400, "`texts` is missing"),
    ],
)
def test_coheres_errors_have_a_message(
    client: TestClient, body: dict[str, Any], status: int, words: str
) -> None:
    refused = client.post("/v2/embed", json=body)
    assert refused.status_code == status
    assert set(refused.json()) == {"message"}
    assert words in refused.json()["message"]
