import base64
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tokenizers.pre_tokenizers import ByteLevel

from fake_backend import HIDDEN_SIZE, FakeBackend
from qwen3_triton_gateway.errors import BackendError
from qwen3_triton_gateway.tensors import TokenBatch
from tolerances import FLOAT32_COSINE, UNIT_NORM

POISON = sorted(ByteLevel.alphabet()).index("~")  # its token in the tokenizer of conftest.py
BLANKS = ["", " ", "\n\t", "\u2003"]


def embed(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/embed", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def vectors(client: TestClient, texts: list[str], **body: Any) -> np.ndarray[Any, Any]:
    return np.array(embed(client, texts=texts, **body)["embeddings"], dtype=np.float32)


def error(client: TestClient, status: int, **body: Any) -> dict[str, Any]:
    response = client.post("/embed", json=body)
    assert response.status_code == status, response.text
    answer = response.json()
    assert answer["detail"] == answer["error"]["message"]
    return answer["error"]


def test_each_text_gets_a_unit_vector_of_1024_dimensions(client: TestClient) -> None:
    answer = embed(client, texts=["one", "two", "three"])
    rows = np.array(answer["embeddings"])
    assert rows.shape == (3, 1024)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < UNIT_NORM
    assert answer["model"] == "fake-embedding"
    assert answer["dimensions"] == 1024
    assert answer["usage"] == {"prompt_tokens": 14, "total_tokens": 14}
    assert answer["truncated"] == []


def test_a_text_has_the_same_vector_alone_and_among_others(client: TestClient) -> None:
    texts = ["a", "many words " * 40, "middle sized text", "b" * 700, "ü 😀"]
    together = vectors(client, texts)
    alone = np.concatenate([vectors(client, [text]) for text in texts])
    assert (together * alone).sum(axis=1).min() >= FLOAT32_COSINE


@pytest.mark.slow
def test_answers_keep_the_order_of_2048_texts(client: TestClient, backend: FakeBackend) -> None:
    texts = [f"{i % 97} " * (1 + i * 7 % 60) + str(i) for i in range(2048)]
    rows = vectors(client, texts, dimensions=64)
    assert max(size for size, _ in backend.calls) == backend.spec.max_batch_size
    for index in (0, 1, 1000, 2047):
        alone = vectors(client, [texts[index]], dimensions=64)[0]
        assert float(rows[index] @ alone) >= FLOAT32_COSINE


def test_base64_holds_the_same_bits_as_floats(client: TestClient) -> None:
    floats = vectors(client, ["x", "y"])
    encoded = embed(client, texts=["x", "y"], encoding_format="base64")["embeddings"]
    decoded = np.stack([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in encoded])
    assert decoded.tobytes() == floats.tobytes()


def test_fewer_dimensions_are_a_renormalized_prefix(client: TestClient) -> None:
    full = vectors(client, ["text"], dimensions=HIDDEN_SIZE)[0, :256]
    cut = vectors(client, ["text"], dimensions=256)[0]
    assert np.allclose(cut, full / np.linalg.norm(full), atol=1e-6)


def test_a_query_is_a_document_with_the_instruction_in_front(client: TestClient) -> None:
    prompt = "Instruct: Find recipes\nQuery:soup"
    query = vectors(client, ["soup"], input_type="query", instruction="Find recipes")
    assert np.array_equal(query, vectors(client, [prompt]))
    assert not np.array_equal(query, vectors(client, ["soup"]))


def test_queries_overtake_documents_inside_triton_too(
    client: TestClient, backend: FakeBackend
) -> None:
    embed(client, texts=["a"], input_type="query")
    embed(client, texts=["a"])
    assert backend.priorities == [1, 2]


def test_a_long_text_is_truncated_and_reported(client: TestClient) -> None:
    answer = embed(client, texts=["short", "x" * 5000])
    assert answer["truncated"] == [1]
    assert answer["usage"]["prompt_tokens"] == 6 + 1024


def test_a_long_text_is_refused_without_truncation(client: TestClient) -> None:
    problem = error(client, 400, texts=["short", "x" * 5000], truncate=False)
    assert problem["param"] == "texts[1]"
    assert "Text 1 has 5001 tokens; the limit is 1024." in problem["message"]


@pytest.mark.parametrize("blank", BLANKS)
def test_a_blank_text_is_refused_by_index(client: TestClient, blank: str) -> None:
    problem = error(client, 400, texts=["a", blank, "c"])
    assert (problem["code"], problem["param"]) == ("blank_text", "texts[1]")


def test_an_unknown_model_is_not_found(client: TestClient) -> None:
    problem = error(client, 404, texts=["a"], model="gpt-4")
    assert problem["code"] == "model_not_found"
    assert "'fake-embedding'" in problem["message"]


def test_the_served_model_and_its_aliases_are_known(start_gateway: Any) -> None:
    client = start_gateway(EMBED_MODEL_ALIASES="embed, text-embedding-3-small")
    for model in ("fake-embedding", "embed", "text-embedding-3-small"):
        assert embed(client, texts=["a"], model=model)["model"] == "fake-embedding"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        pytest.param({}, "texts", "missing", id="no-texts"),
        pytest.param({"texts": []}, "texts", "empty", id="empty-list"),
        pytest.param({"texts": ["a"] * 2049}, "texts", "more than 2048", id="2049-texts"),
        pytest.param({"texts": "a"}, "texts", "list", id="a-string"),
        pytest.param({"texts": ["a", 3]}, "texts[1]", "string", id="a-number"),
        pytest.param({"texts": ["a", None]}, "texts[1]", "string", id="a-null"),
        pytest.param({"texts": ["a"], "input": ["b"]}, "input", "Unknown field", id="unknown"),
        pytest.param({"text": ["a"]}, "text", "Unknown field", id="misspelt"),
        pytest.param(
            {"texts": ["a"], "inputs": "b"},
            "inputs",
            "Both `texts` and `inputs`",
            id="two-dialects",
        ),
        pytest.param({"texts": ["a"], "dimensions": 31}, "dimensions", "32 to 1280", id="31"),
        pytest.param({"texts": ["a"], "dimensions": 99999}, "dimensions", "32 to 1280", id="99999"),
        pytest.param({"texts": ["a"], "dimensions": "64"}, "dimensions", "integer", id="text-dims"),
        pytest.param({"texts": ["a"], "input_type": "q"}, "input_type", "'query'", id="input-type"),
        pytest.param({"texts": ["a"], "instruction": "x"}, "instruction", "query", id="instruct"),
        pytest.param(
            {"texts": ["a"], "encoding_format": "hex"}, "encoding_format", "base64", id="hex"
        ),
        pytest.param({"texts": ["a"], "truncate": "no"}, "truncate", "boolean", id="truncate"),
    ],
)
def test_an_invalid_request_names_the_field(
    client: TestClient, body: dict[str, Any], param: str, words: str
) -> None:
    problem = error(client, 400, **body)
    assert problem["param"] == param
    assert words in problem["message"]


def test_an_invalid_choice_is_shown_but_a_text_is_not(client: TestClient) -> None:
    choice = error(client, 400, texts=["a"], input_type="passage")
    assert choice["message"] == "`input_type` should be 'document' or 'query' (got \"passage\")."
    text = error(client, 400, texts="private")
    assert text["message"] == "`texts` should be a valid list (got a string)."


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"texts"', b"\xff\xfe", b'{"texts": ["a"'])
def test_malformed_json_is_a_400(client: TestClient, body: bytes) -> None:
    response = client.post("/embed", content=body)
    assert response.status_code == 400
    assert response.json()["detail"]


def test_a_lone_surrogate_is_a_400(client: TestClient) -> None:
    response = client.post("/embed", content=b'{"texts": ["\\ud800"]}')
    assert response.status_code == 400


def test_a_body_over_the_limit_is_a_413(start_gateway: Any) -> None:
    client = start_gateway(EMBED_MAX_BODY_BYTES=2048)
    problem = error(client, 413, texts=["x" * 3000])
    assert "EMBED_MAX_BODY_BYTES" in problem["message"]
    chunked = client.post("/embed", content=iter([b"x" * 1500, b"x" * 1500]))
    assert chunked.status_code == 413


def test_a_vector_that_is_not_finite_is_refused_by_index(
    client: TestClient, backend: FakeBackend
) -> None:
    def poison(batch: TokenBatch, values: Any) -> Any:
        values[batch.input_ids[:, 0] == POISON] = np.nan
        return values

    backend.corrupt = poison
    problem = error(client, 502, texts=["fine", "~bad", "fine too"])
    assert (problem["code"], problem["param"]) == ("bad_vector", "texts[1]")
    assert len(embed(client, texts=["fine", "fine too"])["embeddings"]) == 2


def test_a_text_that_the_model_refuses_is_named(client: TestClient, backend: FakeBackend) -> None:
    def refuse(batch: TokenBatch, values: Any) -> Any:
        if POISON in batch.input_ids[:, 0]:
            raise BackendError("no")
        return values

    backend.corrupt = refuse
    problem = error(client, 502, texts=["fine", "~bad", "fine too"])
    assert problem["param"] == "texts[1]"
    assert problem["message"] == "Text 1 could not be embedded, even alone. no"


def test_an_answer_of_the_wrong_shape_is_a_502(client: TestClient, backend: FakeBackend) -> None:
    backend.corrupt = lambda _, values: values[:, :, :7]
    assert error(client, 502, texts=["a"])["code"] == "backend_error"


def test_every_answer_carries_a_request_id(client: TestClient) -> None:
    own = client.post("/embed", json={"texts": ["a"]}, headers={"X-Request-ID": "abc-123"})
    assert own.headers["X-Request-ID"] == "abc-123"
    assert len(client.get("/nowhere").headers["X-Request-ID"]) == 32


def test_responses_report_where_the_time_went(client: TestClient) -> None:
    response = client.post("/embed", json={"texts": ["a"]})
    stages = [part.split(";")[0] for part in response.headers["Server-Timing"].split(", ")]
    assert stages == ["tokenize", "queue", "infer", "encode"]


def test_the_fingerprint_depends_on_the_dimensions(client: TestClient) -> None:
    response = client.post("/embed", json={"texts": ["a"]})
    fingerprint = response.json()["fingerprint"]
    assert response.headers["X-Embedding-Fingerprint"] == fingerprint
    assert embed(client, texts=["b"])["fingerprint"] == fingerprint
    assert embed(client, texts=["a"], dimensions=64)["fingerprint"] != fingerprint


def test_a_key_is_required_if_keys_are_set(start_gateway: Any) -> None:
    client = start_gateway(EMBED_API_KEYS="first-key,second-key")
    assert error(client, 401, texts=["a"])["code"] == "invalid_api_key"
    for header in ("Bearer second-key", "first-key"):
        ok = client.post("/embed", json={"texts": ["a"]}, headers={"Authorization": header})
        assert ok.status_code == 200
    wrong = client.post("/embed", json={"texts": ["a"]}, headers={"Authorization": "Bearer x"})
    assert wrong.status_code == 401
    assert client.get("/health/ready").status_code == 200


def test_an_unknown_path_is_a_404_in_the_same_envelope(client: TestClient) -> None:
    response = client.get("/nowhere")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
