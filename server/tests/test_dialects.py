"""The dialects on the same model; the repository's tests use their real clients."""

import base64
import json
from typing import Any

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from fake_backend import FakeBackend
from qwen3_triton_gateway.cli import main

MODEL = "fake-embedding"
LONG = "x" * 5000


def native(client: TestClient, *texts: str, **body: Any) -> list[list[float]]:
    answer = client.post("/embed", json={"texts": list(texts), **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["embeddings"]


def openai(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/embeddings", json={"model": MODEL} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def tei(client: TestClient, path: str = "/embed", **body: Any) -> list[list[float]]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_openai_responses_have_openais_shape(client: TestClient) -> None:
    answer = openai(client, input=["a", "bc"], user="ignored", unknown="ignored")
    assert answer["object"] == "list"
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert {item["object"] for item in answer["data"]} == {"embedding"}
    assert [item["embedding"] for item in answer["data"]] == native(client, "a", "bc")
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert answer["model"] == MODEL


def test_a_string_is_a_list_of_one_on_openai_and_tei(client: TestClient) -> None:
    assert openai(client, input="a")["data"][0]["embedding"] == native(client, "a")[0]
    assert tei(client, inputs="a") == native(client, "a")


def test_openai_base64_has_the_same_bits_as_floats(client: TestClient) -> None:
    (item,) = openai(client, input="a", encoding_format="base64")["data"]
    decoded = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
    assert decoded.tobytes() == np.array(native(client, "a")[0], dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"input_type": "query"}, {"input_type": "query"}, id="query"),
        pytest.param({"input_type": "passage"}, {}, id="passage-is-nim-for-document"),
        pytest.param({"model": f"{MODEL}-query"}, {"input_type": "query"}, id="suffix-query"),
        pytest.param({"model": f"{MODEL}-passage"}, {}, id="suffix-passage"),
        pytest.param(
            {"input_type": "query", "instruction": "Find soup"},
            {"input_type": "query", "instruction": "Find soup"},
            id="instruction",
        ),
        pytest.param({"dimensions": 64}, {"dimensions": 64}, id="dimensions"),
    ],
)
def test_openai_extensions_mean_what_the_native_fields_mean(
    client: TestClient, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    (item,) = openai(client, input="soup", **body)["data"]
    assert item["embedding"] == native(client, "soup", **expected)[0]


@pytest.mark.parametrize("truncate", [True, "END"])
def test_openai_truncates_on_request_and_reports_it(client: TestClient, truncate: object) -> None:
    answer = openai(client, input=["short", LONG], truncate=truncate)
    assert answer["truncated"] == [1]
    assert answer["data"][1]["embedding"] == native(client, LONG)[0]


def test_nim_truncates_the_start_on_request(client: TestClient) -> None:
    text = "y" * 2000 + "x" * 1023
    (item,) = openai(client, input=text, truncate="START")["data"]
    assert item["embedding"] == native(client, "x" * 1023)[0]


@pytest.mark.parametrize(
    ("body", "code", "param", "words"),
    [
        pytest.param({"input": LONG}, "text_too_long", "input[0]", "1024", id="too-long"),
        pytest.param(
            {"input": LONG, "truncate": "NONE"}, "text_too_long", "input[0]", "5001", id="none"
        ),
        pytest.param({"input": ["a", " "]}, "blank_text", "input[1]", "blank", id="blank"),
        pytest.param({"input": ""}, "blank_text", "input[0]", "blank", id="empty-string"),
        pytest.param({"input": []}, "invalid_request", "input", "empty", id="empty-list"),
        pytest.param({}, "invalid_request", "input", "missing", id="no-input"),
        pytest.param(
            {"input": [1, 2]}, "token_ids", "input", "check_embedding_ctx_length", id="ids"
        ),
        pytest.param(
            {"input": [[1], [2]]},
            "token_ids",
            "input",
            "check_embedding_ctx_length",
            id="id-lists",
        ),
        pytest.param({"input": 7}, "invalid_request", "input", "list", id="a-number"),
        pytest.param({"input": ["a"] * 2049}, "too_many_texts", "input", "2048", id="2049-texts"),
        pytest.param(
            {"input": "a", "model": "gpt-4"}, "model_not_found", "model", "gpt-4", id="model"
        ),
        pytest.param(
            {"input": "a", "dimensions": 1}, "invalid_request", "dimensions", "32", id="1-dim"
        ),
        pytest.param(
            {"input": "a", "instruction": "x"},
            "invalid_request",
            "instruction",
            "queries",
            id="instruction-for-a-document",
        ),
        pytest.param(
            {"input": "a", "model": f"{MODEL}-query", "input_type": "passage"},
            "invalid_request",
            "input_type",
            "one of them",
            id="contradiction",
        ),
        pytest.param(
            {"input": "a", "input_type": "query", "truncate": "START"},
            "invalid_request",
            "truncate",
            "instruction",
            id="a-query-without-its-start",
        ),
    ],
)
def test_openai_errors_have_openais_envelope(
    client: TestClient, body: dict[str, Any], code: str, param: str, words: str
) -> None:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert words in error["message"]


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        pytest.param({"truncate_prompt_tokens": 4}, "abc", id="vllm"),
        pytest.param({"truncate_prompt_tokens": 4.0}, "abc", id="vllm-whole-float"),
        pytest.param(
            {"truncate_prompt_tokens": 4, "truncation_side": "left"}, "def", id="vllm-left"
        ),
        pytest.param({"truncate_prompt_tokens": 1024}, "abcdef", id="vllm-the-limit"),
        pytest.param({"truncate_prompt_tokens": -1}, "abcdef", id="vllm-no-limit"),
        pytest.param({"truncate_prompt_tokens": None}, "abcdef", id="vllm-null"),
        pytest.param({"truncation": True}, "abcdef", id="voyage"),
    ],
)
def test_truncation_of_other_servers_is_understood(
    start_gateway: Any, body: dict[str, Any], kept: str
) -> None:
    client = start_gateway(EMBED_CACHE_BYTES=100_000)
    for _ in range(2):  # computed, and from the cache
        answer = openai(client, input="abcdef", **body)
        assert answer["data"][0]["embedding"] == native(client, kept)[0]
        assert answer["truncated"] == ([0] if kept != "abcdef" else [])


def test_vllms_limit_truncates_a_text_that_would_be_refused(client: TestClient) -> None:
    for body in ({"truncate_prompt_tokens": 1024}, {"truncate_prompt_tokens": -1}):
        answer = openai(client, input=LONG, **body)
        assert answer["truncated"] == [0]
        assert answer["usage"]["prompt_tokens"] == 1024


def test_vllms_limit_refuses_instead_where_truncation_is_off(client: TestClient) -> None:
    body = {"input": "abcdef", "truncate_prompt_tokens": 4, "truncate": False}
    refused = client.post("/v1/embeddings", json=body)
    assert "7 tokens; the limit is 4" in refused.json()["error"]["message"]


def test_a_server_can_truncate_for_clients_that_cannot_ask(start_gateway: Any) -> None:
    strict, lenient = start_gateway(), start_gateway(EMBED_OPENAI_TRUNCATE="true")
    refused = strict.post("/v1/embeddings", json={"input": LONG})
    assert "EMBED_OPENAI_TRUNCATE=true" in refused.json()["error"]["message"]
    assert openai(lenient, input=LONG)["truncated"] == [0]
    for off in (False, "NONE"):
        body = {"input": LONG, "truncate": off}
        assert lenient.post("/v1/embeddings", json=body).status_code == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 1}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 1025}, "truncate_prompt_tokens"),
        ({"dimensions": 64, "output_dimension": 128}, "output_dimension"),
        ({"truncate": True, "truncation": False}, "truncation"),
        ({"output_dtype": "int8"}, "output_dtype"),
    ],
)
def test_fields_of_other_servers_are_checked(
    client: TestClient, body: dict[str, Any], param: str
) -> None:
    refused = client.post("/v1/embeddings", json={"input": "a"} | body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


def said(text: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(
    ("messages", "texts"),
    [
        pytest.param(said("soup"), ["soup"], id="one"),
        pytest.param(said([{"type": "text", "text": "soup"}]), ["soup"], id="parts"),
        pytest.param(
            [said("soup"), said([{"type": "text", "text": "a"}])], ["soup", "a"], id="two"
        ),
    ],
)
def test_vllms_chat_form_is_embedded_as_plain_texts(
    client: TestClient, messages: Any, texts: list[str]
) -> None:
    data = client.post("/v1/embeddings", json={"messages": messages}).json()["data"]
    assert [item["embedding"] for item in data] == native(client, *texts)


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        pytest.param([], "messages", "empty", id="empty"),
        pytest.param("soup", "messages", "empty", id="a-string"),
        pytest.param(said("soup", "system"), "messages[0]", "`instruction`", id="system"),
        pytest.param(
            [said("a"), [*said("b"), *said("c")]], "messages[1]", "one message", id="turns"
        ),
        pytest.param(
            said([{"type": "image_url", "image_url": {"url": "data:"}}]),
            "messages[0]",
            "nothing but text",
            id="image",
        ),
        pytest.param([said("a"), said(" ")], "input[1]", "blank", id="blank"),
        pytest.param([said("a"), said("\ud83d")], "input[1]", "surrogate", id="surrogate"),
    ],
)
def test_more_than_texts_in_vllms_chat_form_is_refused(
    client: TestClient, messages: Any, param: str, words: str
) -> None:
    body = json.dumps({"messages": messages}).encode()
    refused = client.post("/v1/embeddings", content=body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_models_are_listed_and_found_by_every_name(start_gateway: Any) -> None:
    client = start_gateway(EMBED_MODEL_ID="Qwen/Qwen3-Embedding-4B", EMBED_MODEL_ALIASES="embed")
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["Qwen/Qwen3-Embedding-4B", "embed"]
    assert client.get("/v1/models/Qwen/Qwen3-Embedding-4B").json()["object"] == "model"
    unknown = client.get("/v1/models/gpt-4")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"


ALIASES = orjson.dumps(
    {
        "plain": {},
        "search": {"input_type": "query"},
        "code": {"input_type": "query", "instruction": "Find code."},
        "passages": {"input_type": "document"},
        "tagged-query": {},
        "tagged": {},
        "soups:latest": {"input_type": "query"},
    }
).decode()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("plain", {}, id="only-a-name"),
        pytest.param("plain-query", {"input_type": "query"}, id="a-suffix-of-an-alias"),
        pytest.param("tagged-query", {"input_type": "query"}, id="an-alias-with-a-suffix"),
        pytest.param("soups:latest", {"input_type": "query"}, id="an-alias-with-ollamas-tag"),
        pytest.param("search", {"input_type": "query"}, id="query"),
        pytest.param("search-query", {"input_type": "query"}, id="the-same-twice"),
        pytest.param(
            "code", {"input_type": "query", "instruction": "Find code."}, id="instruction"
        ),
        pytest.param("passages", {}, id="document"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/api/embed"])
def test_an_alias_carries_an_input_type_and_an_instruction(
    start_gateway: Any, path: str, name: str, expected: dict[str, Any]
) -> None:
    if path == "/embed" and name.endswith("-query"):
        pytest.skip("The native API has `input_type`, and knows no suffixes.")
    client = start_gateway(EMBED_MODEL_ALIASES=ALIASES)
    field = "texts" if path == "/embed" else "input"
    answer = client.post(path, json={"model": name, field: ["soup"]}).json()
    found = answer["data"][0]["embedding"] if "data" in answer else answer["embeddings"][0]
    assert [found] == native(client, "soup", **expected)


def test_the_request_overrides_the_instruction_of_an_alias(start_gateway: Any) -> None:
    client = start_gateway(EMBED_MODEL_ALIASES=ALIASES)
    body = {"model": "code", "input": "soup", "instruction": "Find recipes."}
    found = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert [found] == native(client, "soup", input_type="query", instruction="Find recipes.")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", {"model": "code", "input": "a", "input_type": "passage"}, 400),
        ("/embed", {"model": "search", "texts": ["a"], "input_type": "document"}, 400),
        ("/embed", {"model": "passages", "texts": ["a"], "input_type": "query"}, 400),
        ("/v1/embeddings", {"model": "passages-query", "input": "a"}, 404),
        ("/v1/embeddings", {"model": "passages", "input": "a", "instruction": "Find"}, 400),
    ],
)
def test_an_alias_that_contradicts_the_request_is_refused(
    start_gateway: Any, path: str, body: dict[str, Any], status: int
) -> None:
    client = start_gateway(EMBED_MODEL_ALIASES=ALIASES)
    assert client.post(path, json=body).status_code == status


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param("{", "is not a JSON object", id="not-json"),
        pytest.param('{"a": {"input_type": "passage"}}', "EMBED_MODEL_ALIASES", id="type"),
        pytest.param('{"a": {"instruction": "Find"}}', "applies to queries only", id="no-query"),
        pytest.param('{"a": {"inputtype": "query"}}', "MODEL_ALIASES.a.inputtype", id="unknown"),
        pytest.param('{"a": "query"}', "'a' has no object", id="no-object"),
        pytest.param('["a", "b"]', "is not a JSON object", id="list"),
    ],
)
def test_an_alias_that_makes_no_sense_refuses_to_start(value: str, words: str) -> None:
    result = CliRunner().invoke(main, ["serve", "--model-aliases", value])
    assert result.exit_code == 2
    assert words in result.output


def test_models_tell_what_they_are_for(start_gateway: Any) -> None:
    client = start_gateway(EMBED_MODEL_ALIASES=ALIASES, EMBED_MAX_LENGTH=512)
    described = client.get("/v1/models/code").json()
    assert described["task"] == "embed"
    assert (described["dimensions"], described["max_dimensions"]) == (1024, 1280)
    assert described["max_model_len"] == described["context_length"] == 512
    assert described["input_type"] == "query"
    assert described["instruction"] == "Find code."
    assert "input_type" not in client.get("/v1/models/plain").json()


@pytest.mark.parametrize("priority", [-5, 0, 3, None])
def test_vllms_priority_is_understood(client: TestClient, priority: int | None) -> None:
    body = {"input": "soup", "priority": priority}
    found = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert [found] == native(client, "soup")
    assert client.post("/v1/embeddings", json=body | {"priority": "x"}).status_code == 400


@pytest.mark.parametrize("path", ["/", "/embed"])
def test_tei_answers_a_bare_array(client: TestClient, path: str) -> None:
    assert tei(client, path, inputs=["a", "b"], unknown="ignored") == native(client, "a", "b")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"prompt_name": "query"}, {"input_type": "query"}, id="query"),
        pytest.param({"prompt_name": "document"}, {}, id="document"),
        pytest.param({"prompt_name": None, "truncate": None}, {}, id="nulls"),
        pytest.param({"dimensions": 64}, {"dimensions": 64}, id="dimensions"),
        pytest.param({"encoding_format": "base64"}, {"encoding_format": "base64"}, id="base64"),
    ],
)
def test_tei_fields_mean_what_the_native_ones_mean(
    client: TestClient, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert tei(client, inputs=["soup"], **body) == native(client, "soup", **expected)


def test_tei_returns_unnormalized_vectors_on_request(client: TestClient) -> None:
    (raw,) = np.array(tei(client, inputs="soup", normalize=False), dtype=np.float64)
    norm = np.linalg.norm(raw)
    assert norm > 2
    assert np.allclose(raw / norm, native(client, "soup")[0], atol=1e-6)


def test_tei_reports_truncation_in_a_header(client: TestClient) -> None:
    answer = client.post("/embed", json={"inputs": ["short", LONG, LONG]})
    assert answer.headers["X-Embedding-Truncated"] == "1,2"
    many = client.post("/embed", json={"inputs": [LONG] * 150})
    assert many.headers["X-Embedding-Truncated"].endswith(",99,+50 more")
    assert "X-Embedding-Truncated" not in client.post("/", json={"inputs": "a"}).headers


def test_tei_truncates_the_left_on_request(client: TestClient) -> None:
    body = {"inputs": "y" * 2000 + "x" * 1023, "truncation_direction": "left"}
    assert tei(client, **body) == native(client, "x" * 1023)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        pytest.param("/embed", {"inputs": ["a", ""]}, "Text 1 is blank", id="blank"),
        pytest.param("/embed", {"inputs": LONG, "truncate": False}, "5001 tokens", id="too-long"),
        pytest.param("/", {"inputs": [[1, 2]]}, "token IDs", id="token-ids"),
        pytest.param("/", {"text": "a"}, "`inputs` is missing", id="no-inputs"),
        pytest.param("/", {"inputs": "a", "prompt_name": "sts"}, "prompt_name", id="prompt-name"),
        pytest.param("/tokenize", {"inputs": []}, "empty", id="tokenize"),
    ],
)
def test_tei_errors_have_teis_shape(
    client: TestClient, path: str, body: dict[str, Any], words: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error_type"] == "validation"
    assert words in answer.json()["error"]


def test_a_bad_vector_is_refused_in_the_format_of_each_dialect(
    client: TestClient, backend: FakeBackend
) -> None:
    backend.corrupt = lambda _, values: values * float("nan")
    by_native = client.post("/embed", json={"texts": ["a"]})
    by_openai = client.post("/v1/embeddings", json={"input": "a"})
    by_tei = client.post("/", json={"inputs": "a"})
    assert {by_native.status_code, by_openai.status_code, by_tei.status_code} == {502}
    assert by_native.json()["error"]["param"] == "texts[0]"
    assert by_openai.json()["error"]["param"] == "input[0]"
    assert by_tei.json()["error_type"] == "backend"


def test_tokens_end_with_the_end_token_unless_disabled(client: TestClient) -> None:
    with_end, without = (
        client.post("/tokenize", json={"inputs": "ab", "add_special_tokens": wanted}).json()[0]
        for wanted in (True, False)
    )
    assert [token["text"] for token in with_end] == ["a", "b", "<|endoftext|>"]
    assert with_end[:-1] == without
    assert without[1] == {
        "id": without[1]["id"],
        "text": "b",
        "special": False,
        "start": 1,
        "stop": 2,
    }


def test_cached_vectors_have_the_same_bits_and_are_computed_once(
    start_gateway: Any, backend: FakeBackend
) -> None:
    client = start_gateway(EMBED_CACHE_BYTES=100_000)
    first = native(client, "a", "b")
    batches = len(backend.calls)
    assert native(client, "b", "a") == first[::-1]
    assert len(backend.calls) == batches
    assert native(client, "a", "c")[0] == first[0]
    assert backend.calls[batches:] == [(1, backend.calls[-1][1])]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"dimensions": 64}, id="dimensions"),
        pytest.param({"input_type": "query"}, id="query"),
        pytest.param({"input_type": "query", "instruction": "Find soup"}, id="instruction"),
    ],
)
def test_everything_that_changes_a_vector_is_cached_separately(
    start_gateway: Any, other: dict[str, Any]
) -> None:
    cached = start_gateway(EMBED_CACHE_BYTES=100_000)
    plain = native(cached, "soup")
    assert native(cached, "soup", **other) != plain
    assert native(cached, "soup", **other) == native(start_gateway(), "soup", **other)


def test_a_cached_text_that_is_too_long_is_still_refused(start_gateway: Any) -> None:
    client = start_gateway(EMBED_CACHE_BYTES=100_000)
    native(client, LONG)
    refused = client.post("/embed", json={"texts": ["a", LONG], "truncate": False})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "texts[1]"
    assert client.post("/embed", json={"texts": [LONG]}).json()["truncated"] == [0]


def test_the_cache_stays_within_its_bytes(start_gateway: Any, backend: FakeBackend) -> None:
    client = start_gateway(EMBED_CACHE_BYTES=10_000)
    native(client, *(f"text {number}" for number in range(50)))
    used = next(
        float(line.split()[1])
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("qwen3_triton_cache_bytes ")
    )
    assert 4096 < used <= 10_000
    batches = len(backend.calls)
    native(client, "text 0")  # pushed out by later ones
    assert len(backend.calls) == batches + 1
