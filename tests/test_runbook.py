"""The calls of the runbook, made as its readers make them, without the faults of its gateway."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Generator
from typing import Any

import pytest

import qwen3_nano
from gateway_process import GatewayProcess, running_gateway, triton_flags
from qwen3_triton_tools.local_triton import LocalTriton
from tolerances import FLOAT32_COSINE, UNIT_NORM

pytestmark = pytest.mark.stack

MODEL = "qwen3_embed_4b_onnx"
MODEL_ID = "Qwen/Qwen3-Embedding-4B"


@pytest.fixture(name="runbook_triton", scope="module")
def _runbook_triton() -> Generator[LocalTriton]:
    with LocalTriton(
        model_dir=qwen3_nano.model_dir(), model_name=MODEL, max_batch_size=8
    ) as triton:
        yield triton


@pytest.fixture(name="runbook_gateway", scope="module")
def _runbook_gateway(runbook_triton: LocalTriton) -> Generator[GatewayProcess]:
    flags = triton_flags(runbook_triton.http_url, MODEL)
    with running_gateway(*flags, "--model-id", MODEL_ID) as gateway:
        yield gateway


def call(url: str, body: dict[str, Any] | None = None, *, method: str = "GET") -> tuple[int, Any]:
    """Send what the runbook sends with curl, using only the standard library."""
    data = json.dumps(body).encode() if body is not None else None
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            content, status = response.read(), response.status
    except urllib.error.HTTPError as error:
        content, status = error.read(), error.code
    return status, json.loads(content) if content else None


def embed(gateway: GatewayProcess, *texts: str, **fields: Any) -> tuple[int, Any]:
    return call(f"{gateway.url}/embed", {"texts": list(texts), **fields}, method="POST")


def test_section_10_triton_is_live_ready_and_lists_the_model(runbook_triton: LocalTriton) -> None:
    url = runbook_triton.http_url
    assert call(f"{url}/v2/health/live")[0] == 200
    assert call(f"{url}/v2/health/ready")[0] == 200
    _, index = call(f"{url}/v2/repository/index", method="POST")
    assert [(entry["name"], entry["state"]) for entry in index] == [(MODEL, "READY")]
    _, metadata = call(f"{url}/v2/models/{MODEL}")
    assert {tensor["name"] for tensor in metadata["inputs"]} == {
        "input_ids",
        "attention_mask",
        "position_ids",
    }
    assert metadata["outputs"][0]["name"] == "last_hidden_state"


def test_section_13_health_describes_the_model(runbook_gateway: GatewayProcess) -> None:
    status, health = call(f"{runbook_gateway.url}/health")
    assert status == 200
    assert health["status"] == "ok"
    assert health["triton_status"] == 200
    assert health["triton_model"] == MODEL
    assert health["embed_output_dim"] == 1024
    assert health["model_hidden_dim"] > 1024
    assert health["requires_past_kv"] is False


def test_sections_13_and_19_a_request_returns_unit_vectors(runbook_gateway: GatewayProcess) -> None:
    status, answer = embed(runbook_gateway, "hello world", "postgres paradedb retrieval")
    assert status == 200
    assert answer["model"] == MODEL_ID
    assert [len(vector) for vector in answer["embeddings"]] == [1024, 1024]
    for vector in answer["embeddings"]:
        assert abs(math.hypot(*vector) - 1) <= UNIT_NORM


def test_a_short_text_in_a_mixed_batch_keeps_its_vector(runbook_gateway: GatewayProcess) -> None:
    # The runbook's gateway pads left and pools as if padded right: a cosine of 0.15 here.
    _, alone = embed(runbook_gateway, "tea")
    _, mixed = embed(runbook_gateway, "tea", "a far longer text " * 60)
    cosine = sum(a * b for a, b in zip(alone["embeddings"][0], mixed["embeddings"][0], strict=True))
    assert cosine >= FLOAT32_COSINE


def test_more_texts_than_the_models_batch_limit_work(runbook_gateway: GatewayProcess) -> None:
    # The runbook's gateway sends nine texts in one batch to a model that takes eight.
    status, answer = embed(runbook_gateway, *(f"text {index}" for index in range(9)))
    assert (status, len(answer["embeddings"])) == (200, 9)


def test_a_blank_text_is_refused_by_index(runbook_gateway: GatewayProcess) -> None:
    # The runbook's gateway drops it, which shifts every later vector to the wrong text.
    status, answer = embed(runbook_gateway, "one", " ", "three")
    assert status == 400
    assert "Text 1 is blank" in answer["detail"]


def test_an_unknown_model_is_a_404(runbook_gateway: GatewayProcess) -> None:
    # The runbook's gateway accepts any name.
    status, answer = embed(runbook_gateway, "one", model="gpt-5")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
