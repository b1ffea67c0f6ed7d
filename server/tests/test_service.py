import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fake_backend import FakeBackend, connected, make_service
from polling import wait_for
from qwen3_triton_gateway.backends.base import ModelSpec
from qwen3_triton_gateway.errors import (
    BackendUnavailableError,
    ModelNotFoundError,
    StartupError,
)

RUNBOOK_FIELDS = {
    "status",
    "triton_status",
    "triton_model",
    "tokenizer_path",
    "embed_output_dim",
    "model_hidden_dim",
    "requires_past_kv",
}


def wait_for_status(client: TestClient, path: str, status: int) -> dict[str, Any]:
    """Ask until the service has checked its backend again."""
    wait_for(lambda: client.get(path).status_code == status, f"{path} answers {status}")
    return client.get(path).json()


async def test_a_gateway_that_is_shutting_down_is_not_ready_but_still_answers(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = await connected(tokenizer_dir, backend)
    service.stopping = True
    assert "shutting down" in service.readiness.reason
    assert not service.readiness.ready
    assert service.embedder.require_ready()


async def test_connecting_waits_for_an_unavailable_model(tokenizer_dir: Path) -> None:
    class LateBackend(FakeBackend):
        attempts = 0

        async def connect(self) -> ModelSpec:
            self.attempts += 1
            if self.attempts < 3:
                raise BackendUnavailableError("nobody there")
            return await super().connect()

    service = make_service(tokenizer_dir, LateBackend())
    connecting = asyncio.create_task(service.embedder.connect())
    while not service.readiness.reason.startswith("waiting for"):
        await asyncio.sleep(0)
    with pytest.raises(BackendUnavailableError, match="waiting for a fake"):
        service.embedder.require_ready()
    await connecting
    assert service.readiness.ready


async def test_more_dimensions_than_the_model_has_refuse_to_start(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = make_service(tokenizer_dir, backend, EMBED_OUTPUT_DIM=2560)
    with pytest.raises(StartupError, match=r"EMBED_OUTPUT_DIM is 2560, but .* hidden size 1280"):
        await service.embedder.connect()


async def test_a_model_that_cannot_embed_a_sentence_refuses_to_start(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    backend.corrupt = lambda _, values: values * float("nan")
    with pytest.raises(StartupError, match="cannot embed a plain sentence"):
        await connected(tokenizer_dir, backend)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param("EMBED_MODEL_ID", "another", id="model-id"),
        pytest.param("EMBED_OUTPUT_DIM", 512, id="dimensions"),
    ],
)
async def test_the_fingerprint_changes_with_the_embedding_space(
    tokenizer_dir: Path, setting: str, value: object
) -> None:
    async def fingerprint(**settings: object) -> str:
        service = make_service(tokenizer_dir, FakeBackend(), **settings)
        await service.embedder.connect()
        return service.embedder.fingerprint(service.embedder.default_dimensions)

    assert await fingerprint() == await fingerprint()
    assert await fingerprint() != await fingerprint(**{setting: value})


async def test_the_model_id_is_inferred_from_the_hidden_size_by_default(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = await connected(tokenizer_dir, backend)
    assert service.embedder.model_id == "fake"  # 1280 is not a size of the family
    with pytest.raises(ModelNotFoundError, match="Set `model` to 'fake'"):
        service.embedder.alias_of("Qwen/Qwen3-Embedding-4B")


def test_health_has_the_fields_of_the_runbook(client: TestClient, backend: FakeBackend) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    assert set(answer.json()) >= RUNBOOK_FIELDS
    assert answer.json()["status"] == "ok"
    assert answer.json()["model_hidden_dim"] == 1280
    backend.ready = False
    body = wait_for_status(client, "/health", 503)
    assert (body["status"], body["triton_status"]) == ("degraded", 503)
    assert "unavailable" in body["reason"]


def test_readiness_follows_the_backend_and_liveness_does_not(
    client: TestClient, backend: FakeBackend
) -> None:
    assert client.get("/health/ready").status_code == 200
    backend.ready = False
    wait_for_status(client, "/health/ready", 503)
    assert client.get("/v1/health/ready").json()["ready"] is False
    assert client.get("/health/live").status_code == 200
    refused = client.post("/embed", json={"texts": ["a"]})
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "1"


def test_the_tokenizer_is_served_as_it_was_read(
    start_gateway: Callable[..., TestClient], tokenizer_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tokenizer.json"
    content = (tokenizer_dir / "tokenizer.json").read_bytes()
    file.write_bytes(content)
    client = start_gateway(TOKENIZER_PATH=tmp_path)
    file.write_text("another one")
    answer = client.get("/tokenizer")
    assert answer.content == content
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'


def test_a_tokenizer_that_the_caller_has_is_not_sent_again(client: TestClient) -> None:
    etag = client.get("/tokenizer").headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = client.get("/tokenizer", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert client.get("/tokenizer", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_tokenizer_is_served_while_the_model_is_unavailable(
    client: TestClient, backend: FakeBackend
) -> None:
    backend.ready = False
    wait_for_status(client, "/health/ready", 503)
    assert client.get("/tokenizer").status_code == 200


def test_info_says_what_the_probe_found(client: TestClient) -> None:
    info = client.get("/info").json()
    assert info["pooling"] == info["model_type"]["embedding"]["pooling"] == "last_token"
    assert (info["probe"]["pooling"], info["probe"]["shares_batches"]) == ("last_token", True)


def test_another_pooling_is_another_embedding_space(
    start_gateway: Callable[..., TestClient],
) -> None:
    last, mean = (start_gateway(EMBED_POOLING=pooling) for pooling in ("last_token", "mean"))
    assert mean.get("/info").json()["pooling"] == "mean"
    answers = [client.post("/embed", json={"texts": ["hello"]}).json() for client in (last, mean)]
    assert answers[0]["fingerprint"] != answers[1]["fingerprint"]
    assert answers[0]["embeddings"] != answers[1]["embeddings"]


def test_info_states_the_limits(client: TestClient) -> None:
    info = client.get("/info").json()
    assert info["hidden_size"] == 1280
    assert info["max_texts"] == 2048
    assert info["query_template"] == "Instruct: {instruction}\nQuery:{text}"
    assert len(info["fingerprint"]) == 16
