"""`qwen3-triton up`: a local Triton and the gateway in one command."""

from __future__ import annotations

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

pytestmark = pytest.mark.stack


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


def test_triton_pools_and_the_fingerprint_is_that_of_the_model_in_process(
    stack: GatewayProcess, in_process_gateway: GatewayProcess
) -> None:
    through_triton, in_process = (
        httpx2.get(f"{gateway.url}/info").json() for gateway in (stack, in_process_gateway)
    )
    assert (through_triton["pooled_in_graph"], in_process["pooled_in_graph"]) == (True, False)
    assert through_triton["fingerprint"] == in_process["fingerprint"]
