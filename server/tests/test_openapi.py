"""The OpenAPI document: what clients build on does not change by accident."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from starlette.testclient import TestClient

import qwen3_nano
from fake_backend import FakeBackend
from qwen3_triton_gateway.app import create_app
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings

SNAPSHOT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


@cache
def describe() -> bytes:
    """Build the OpenAPI document of an application that never runs, and requires a key."""
    values: dict[str, Any] = {
        "TOKENIZER_PATH": qwen3_nano.model_dir(),
        "EMBED_API_KEYS": "documented-key",
    }
    service = EmbeddingService(Settings(**values), FakeBackend())
    app = create_app(service, on_fatal=print)
    return orjson.dumps(app.openapi(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def test_the_openapi_document_matches_the_snapshot() -> None:
    assert describe() == SNAPSHOT.read_bytes(), "If the change is intended, run `make openapi`."


def test_every_embedding_call_describes_its_body_and_its_errors() -> None:
    paths = orjson.loads(SNAPSHOT.read_bytes())["paths"]
    for path in ("/embed", "/v1/embeddings", "/", "/tokenize"):
        call = paths[path]["post"]
        assert call["requestBody"]["content"]["application/json"]["schema"]
        assert set(call["responses"]) >= {"200", "400", "401", "413", "429", "502", "503", "504"}


def test_every_reference_leads_to_a_schema() -> None:
    text = SNAPSHOT.read_text()
    found = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', text))
    assert text.count('"$ref"') == text.count('"$ref": "#/components/schemas/')
    assert found == orjson.loads(text)["components"]["schemas"].keys()


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    paths = orjson.loads(describe())["paths"]
    return {(path, method): call for path, calls in paths.items() for method, call in calls.items()}


def test_exactly_the_open_routes_are_marked_as_open() -> None:
    marked = {path for (path, _), call in operations().items() if call.get("security") == []}
    health = {"/health", "/health/live", "/health/ready", "/v1/health/live", "/v1/health/ready"}
    assert marked == health | {"/", "/docs"}
    assert "security" not in operations()["/", "post"]


def test_a_status_that_cannot_come_is_not_listed() -> None:
    document = describe().decode()
    assert '"422"' not in document
    assert "ValidationError" not in document


def test_every_route_that_needs_a_key_lists_401() -> None:
    for call in operations().values():
        assert ("401" in call["responses"]) == ("security" not in call)


def test_embed_describes_the_answers_of_both_of_its_dialects() -> None:
    responses = operations()["/embed", "post"]["responses"]
    for status in ("400", "404", "429"):
        shapes = responses[status]["content"]["application/json"]["schema"]["anyOf"]
        names = {shape["$ref"].rpartition("/")[2] for shape in shapes}
        assert names == {"ErrorResponse", "TeiErrorResponse"}
    vectors = responses["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert {shape.get("type") for shape in vectors} == {None, "array"}


def test_a_call_for_a_model_that_is_not_served_is_described_wherever_it_can_be() -> None:
    # A gateway may serve an embedding model, a reranker, or both.
    described = operations()
    needs_model = {call for call, content in described.items() if "requestBody" in content}
    assert len(needs_model) > 10
    for call in (*needs_model, ("/tokenizer", "get"), ("/v1/models/{name}", "get")):
        assert "404" in described[call]["responses"]


def test_a_gateway_without_keys_describes_none(client: TestClient) -> None:
    document = client.get("/openapi.json").text
    assert '"401"' not in document
    assert "security" not in document


def test_a_running_gateway_states_the_dimensions_of_its_model(client: TestClient) -> None:
    body = client.get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]["properties"]["dimensions"]
    number, text, _ = schema["anyOf"]
    assert number == {"type": "integer", "minimum": 32, "maximum": 1280}
    pattern = re.compile(text["pattern"])
    accepted = [value for value in range(2000) if pattern.search(str(value))]
    assert accepted == list(range(32, 1281))


def test_dimensions_without_a_fraction_are_an_integer_as_in_json_schema(
    client: TestClient,
) -> None:
    body = {"texts": ["a"], "dimensions": 64.0}
    assert client.post("/embed", json=body).json()["dimensions"] == 64
    for wrong in (64.5, "64", True):
        assert client.post("/embed", json=body | {"dimensions": wrong}).status_code == 400


def test_every_example_of_a_body_works_as_it_is(start_gateway: Callable[..., TestClient]) -> None:
    client = start_gateway(reranker=True)
    tried: set[str] = set()
    for (path, method), call in operations().items():
        content = call.get("requestBody", {"content": {}})["content"]
        example = content.get("application/json", {}).get("example")
        if example:
            answer = client.request(method, path, json=example)
            assert answer.status_code == 200, (path, answer.text)
            tried.add(path)
    assert tried >= {"/", "/embed", "/tokenize", "/v1/embeddings", "/v2/embed", "/api/embed"}
    assert tried >= {"/rerank", "/v1/rerank", "/v2/rerank"}


if __name__ == "__main__":
    SNAPSHOT.write_bytes(describe())
