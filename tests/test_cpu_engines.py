"""OpenVINO in the gateway and in Triton, and the choice of an engine, on whatever processor."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest

import qwen3_nano
import qwen3_nano_reranker
from embed_call import cosines, embed
from gateway_process import GatewayProcess, running_gateway, running_stack
from qwen3_triton_gateway.backends.engines import Machine
from qwen3_triton_gateway.cli import flag_name
from tolerances import BFLOAT16_COSINE, FLOAT32_COSINE

pytestmark = pytest.mark.stack

GOLDEN = np.load(qwen3_nano.golden_path(), allow_pickle=False)
TEXTS: list[str] = GOLDEN["texts"][::4].tolist()
VECTORS = GOLDEN["vectors"][::4]
GOLDEN_PAIRS = np.load(qwen3_nano_reranker.golden_path(), allow_pickle=False)
PAIRS = {side: GOLDEN_PAIRS[side][:-2:4].tolist() for side in ("queries", "documents")}
NO, YES = GOLDEN_PAIRS["logits"][:-2:4].T
SCORES = 1 / (1 + np.exp(NO - YES))
BOTH_MODELS = (
    *("--model-dir", str(qwen3_nano.model_dir())),
    *("--rerank-model-dir", str(qwen3_nano_reranker.model_dir())),
)


def check_scores(gateway: GatewayProcess) -> None:
    """Check that the nano reranker's scores are those of transformers."""
    body = {"text_1": PAIRS["queries"], "text_2": PAIRS["documents"]}
    data = httpx2.post(f"{gateway.url}/score", json=body, timeout=60).json()["data"]
    assert [entry["score"] for entry in data] == pytest.approx(SCORES.tolist(), abs=1e-4)


def test_float32_answers_and_their_fingerprints_are_those_of_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    flags = (*BOTH_MODELS, "--output-dim", "1152")
    cache = ("--engine-cache-dir", str(tmp_path))
    with running_gateway("--engine", "openvino", *flags, *cache) as gateway:
        for model in ("the embedding model", "the reranker"):
            assert f"OpenVINO runs {model} in float32: not in bfloat16, because" in gateway.log
        assert cosines(embed(gateway.url, TEXTS), VECTORS).min() >= FLOAT32_COSINE
        check_scores(gateway)
        facts = [gateway.info(), gateway.info()["reranker"]]
    # A folder for the weights of each model.
    assert [len(list(folder.iterdir())) for folder in tmp_path.iterdir()] == [1, 1]
    assert {(part["engine"], part["precision"]) for part in facts} == {("openvino", "float32")}
    with running_gateway(*flags) as other:
        others = [other.info(), other.info()["reranker"]]
    assert [part["fingerprint"] for part in others] == [part["fingerprint"] for part in facts]
    assert {part["engine"] for part in others} == {"onnxruntime"}


def test_bfloat16_is_a_space_of_its_own(in_process_gateway: GatewayProcess) -> None:
    if obstacle := Machine.this().why_not("bfloat16"):
        pytest.skip(obstacle)
    with running_gateway("--engine", "auto") as gateway:
        assert "OpenVINO runs the embedding model in bfloat16: this processor has" in gateway.log
        vectors = embed(gateway.url, TEXTS)
        facts = gateway.info()
    assert cosines(vectors, VECTORS[:, :1024]).min() >= BFLOAT16_COSINE
    assert facts["precision"] == "bfloat16"
    assert facts["fingerprint"] != in_process_gateway.info()["fingerprint"]


def test_openvino_in_triton_has_the_vectors_and_scores_of_onnx_runtime(
    in_process_gateway: GatewayProcess,
) -> None:
    with running_stack("--engine", "openvino", "--precision", "float32", "--rerank") as stack:
        assert "OpenVINO runs both models in float32: EMBED_PRECISION is float32." in stack.log
        vectors = embed(stack.url, TEXTS)
        check_scores(stack)
        facts = stack.info()
    assert cosines(vectors, VECTORS[:, :1024]).min() >= FLOAT32_COSINE
    for part in (facts, facts["reranker"]):
        assert (part["engine"], part["precision"]) == ("triton", "float32")
    assert facts["fingerprint"] == in_process_gateway.info()["fingerprint"]


def test_openvino_in_triton_has_the_space_of_openvino_in_the_gateway(tmp_path: Path) -> None:
    if obstacle := Machine.this().why_not("bfloat16"):
        pytest.skip(obstacle)
    flags = ("--engine", "openvino", "--precision", "bfloat16")
    flags += ("--engine-cache-dir", str(tmp_path))
    with running_stack(*flags) as stack:
        vectors = embed(stack.url, TEXTS)
        facts = stack.info()
    assert cosines(vectors, VECTORS[:, :1024]).min() >= BFLOAT16_COSINE
    assert facts["precision"] == "bfloat16"
    with running_gateway(*flags) as gateway:
        assert gateway.info()["fingerprint"] == facts["fingerprint"]
    # One folder for these weights, which both take.
    [folder] = tmp_path.iterdir()
    assert list(folder.iterdir())


def test_a_precision_that_an_engine_lacks_ends_the_start() -> None:
    gateway = GatewayProcess("--precision", "int8")
    assert gateway.process.wait(timeout=60) == 1
    assert "Set EMBED_ENGINE to openvino, or EMBED_PRECISION to auto." in gateway.log


TUNE = [sys.executable, "-m", "qwen3_triton_gateway", "tune"]


def test_the_gateway_takes_the_settings_that_tune_writes(tmp_path: Path) -> None:
    target = tmp_path / "gateway.env"
    # The least time: one round of each engine.
    arguments = ["--precision", "float32", "--minutes", "0.001", "--json", "--write", str(target)]
    done = subprocess.run([*TUNE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    measured = [row for row in report["candidates"] if not row["problem"]]
    assert [row["engine"] for row in measured] == ["onnxruntime", "openvino"]
    assert measured[1]["loss"]["lowest_cosine"] >= FLOAT32_COSINE
    assert all(row["memory_bytes"] > 50 << 20 for row in measured)
    pairs = [line.split("=", 1) for line in target.read_text().splitlines()[1:]]
    assert dict(pairs) == report["settings"]
    flags = [part for name, value in pairs for part in (flag_name(name), value)]
    with running_gateway(*flags) as gateway:
        assert gateway.info()["engine"] == report["settings"]["EMBED_ENGINE"]


# The worst moment for a signal: the gateway runs, and nothing knows its process yet.
INTERRUPTED_TUNE = """
import os, subprocess, sys
from qwen3_triton_gateway.cli import main
class Popen(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        print(self.pid, flush=True)
        os.kill(os.getpid(), int(sys.argv[1]))
subprocess.Popen = Popen
main(["tune", "--minutes", "60", "--write", sys.argv[2]])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_tune_ends_its_gateway_and_writes_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    arguments = [str(int(number)), str(tmp_path / "gateway.env")]
    command = [sys.executable, "-c", INTERRUPTED_TUNE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Aborted!" in done.stderr
    [pid] = done.stdout.split()
    assert not psutil.pid_exists(int(pid))
    assert list(tmp_path.iterdir()) == []
