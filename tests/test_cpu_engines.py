"""The gateway on OpenVINO, on whatever processor this is."""

from __future__ import annotations

from typing import Any

import httpx2
import numpy as np
import pytest

import qwen3_nano
from embed_call import cosines, embed
from gateway_process import GatewayProcess, running_gateway
from qwen3_triton_gateway.backends.engines import Machine
from tolerances import BFLOAT16_COSINE, FLOAT32_COSINE

pytestmark = pytest.mark.stack

GOLDEN = np.load(qwen3_nano.golden_path(), allow_pickle=False)
TEXTS: list[str] = GOLDEN["texts"][::4].tolist()
VECTORS = GOLDEN["vectors"][::4]


def info(gateway: GatewayProcess) -> dict[str, Any]:
    return httpx2.get(f"{gateway.url}/info").json()


def test_float32_vectors_and_their_fingerprint_are_those_of_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with running_gateway("--engine", "openvino", "--output-dim", "1152") as gateway:
        assert "OpenVINO runs the model in float32: not in bfloat16, because" in gateway.log
        assert cosines(embed(gateway.url, TEXTS), VECTORS).min() >= FLOAT32_COSINE
        facts = info(gateway)
    assert (facts["engine"], facts["precision"]) == ("openvino", "float32")
    with running_gateway("--output-dim", "1152") as other:
        assert info(other)["fingerprint"] == facts["fingerprint"]
        assert info(other)["engine"] == "onnxruntime"


def test_bfloat16_is_a_space_of_its_own(in_process_gateway: GatewayProcess) -> None:
    if obstacle := Machine.this().why_not("bfloat16"):
        pytest.skip(obstacle)
    with running_gateway("--engine", "auto") as gateway:
        assert "OpenVINO runs the model in bfloat16: this processor has" in gateway.log
        vectors = embed(gateway.url, TEXTS)
        facts = info(gateway)
    assert cosines(vectors, VECTORS[:, :1024]).min() >= BFLOAT16_COSINE
    assert facts["precision"] == "bfloat16"
    assert facts["fingerprint"] != info(in_process_gateway)["fingerprint"]


def test_a_precision_that_an_engine_lacks_ends_the_start() -> None:
    gateway = GatewayProcess("--precision", "int8")
    assert gateway.process.wait(timeout=60) == 1
    assert "Set EMBED_ENGINE to openvino, or EMBED_PRECISION to auto." in gateway.log
