"""The OpenAPI document: what clients build on does not change by accident."""

from pathlib import Path

import orjson

import qwen3_nano
from fake_backend import FakeBackend
from qwen3_triton_gateway.app import create_app
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings

SNAPSHOT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


def describe() -> bytes:
    """Build the OpenAPI document of an application that never runs."""
    service = EmbeddingService(Settings(tokenizer_path=qwen3_nano.model_dir()), FakeBackend())
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


if __name__ == "__main__":
    SNAPSHOT.write_bytes(describe())
