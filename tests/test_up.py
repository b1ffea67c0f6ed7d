"""`qwen3-triton up`: a local Triton and the gateway in one command."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from embed_call import embed, post
from gateway_process import GatewayProcess, running_stack
from polling import wait_for
from qwen3_triton_gateway.backends import choose_backend
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings
from reranker_graph import reference_logits, write_reranker

pytestmark = pytest.mark.stack

QUERY = "How do rivers carry sand?"
DOCUMENTS = ["tea", "Rivers carry sand towards the sea, grain after grain.", "word " * 120]


@pytest.fixture(name="stack")
def _stack() -> Generator[GatewayProcess]:
    with running_stack() as stack:
        yield stack


def triton_pids(stack: GatewayProcess) -> set[int]:
    """Return the process ids of tritonserver among the descendants of the stack."""
    found: set[int] = set()
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name() == "tritonserver" and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def test_one_signal_stops_both_with_exit_code_0(stack: GatewayProcess) -> None:
    (triton,) = triton_pids(stack)
    assert embed(stack.url, ["a"]).shape == (1, 1024)
    assert stack.stop() == 0
    wait_for(lambda: not Path(f"/proc/{triton}").exists(), "Triton's end")


def test_a_triton_that_dies_is_restarted(stack: GatewayProcess) -> None:
    (triton,) = triton_pids(stack)
    os.kill(triton, signal.SIGKILL)
    wait_for(lambda: not triton_pids(stack) <= {triton}, "another Triton")
    # What is answered now, the other Triton has computed.
    wait_for(lambda: post(stack.url, texts=["a"]).status_code == 200, "an answer")
    assert triton not in triton_pids(stack)


async def fingerprint_in_process(folder: Path) -> str:
    settings = Settings.model_validate({"RERANK_MODEL_DIR": folder, "EMBED_ENGINE": "onnxruntime"})
    service = EmbeddingService(settings, None, choose_backend(settings, "rerank"))
    await service.reranker.connect()
    await service.close()
    return service.reranker.fingerprint


def test_triton_pools_both_models_and_their_fingerprints_are_those_of_the_models_in_process(
    in_process_gateway: GatewayProcess, tmp_path: Path
) -> None:
    folder = write_reranker(tmp_path / "ranks", "causal")
    with running_stack("--rerank-model-dir", str(folder)) as stack:
        through_triton, in_process = stack.info(), in_process_gateway.info()
        body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}
        ranks = httpx2.post(f"{stack.url}/rerank", json=body, timeout=60).json()
    assert (through_triton["pooled_in_graph"], in_process["pooled_in_graph"]) == (True, False)
    assert through_triton["fingerprint"] == in_process["fingerprint"]
    info = through_triton["reranker"]
    assert (info["model"], info["logits"], info["selected_in_graph"]) == ("ranks", 2, True)
    assert info["fingerprint"] == asyncio.run(fingerprint_in_process(folder))
    no, yes = reference_logits(folder, QUERY, DOCUMENTS).T
    assert {rank["index"]: rank["score"] for rank in ranks} == pytest.approx(
        dict(enumerate(yes - no)), abs=1e-4
    )
