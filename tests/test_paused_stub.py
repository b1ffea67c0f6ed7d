"""The process in which Triton's Python backend runs a model gets no CPU for a while.

The backend gives up on it after a second, and mistakes its late answers for those to later batches.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx2
import numpy as np
import psutil
import pytest

import qwen3_nano
from gateway_process import running_gateway, running_stack
from polling import wait_for
from qwen3_triton_gateway.tensors import Float32Matrix
from traffic import UNAVAILABLE, Embedding, Reranking, flags_of_both, triton_of_both

pytestmark = pytest.mark.stack

# Of equal length, so that an answer fits another text's batch.
WORDS = ("apple", "river", "stone", "cloud", "horse", "table", "music", "paper")
PAIRS = [(first, second) for first in WORDS for second in WORDS if first != second]
# A Triton that has lost count may answer nothing.
FLAGS = ("--cache-bytes", "0", "--timeout-s", "5")
CALLERS = 6
# The backend has given up on two batches by then.
PAUSE_SECONDS = 2.5
# Far above rounding in batches of other shapes, far below the distance of two texts.
TOLERANCE = 2e-3

Ask = Callable[[str, tuple[str, str]], httpx2.Response]


def embed(url: str, pair: tuple[str, str]) -> httpx2.Response:
    body = {"texts": [" ".join(pair)], "dimensions": 32}
    return httpx2.post(f"{url}/embed", json=body, timeout=60, verify=False)


def rerank(url: str, pair: tuple[str, str]) -> httpx2.Response:
    body = {"query": pair[0], "texts": [pair[1]], "raw_scores": True}
    return httpx2.post(f"{url}/rerank", json=body, timeout=60, verify=False)


def values_of(response: httpx2.Response) -> Float32Matrix:
    answer = response.json()
    values = answer["embeddings"][0] if "embeddings" in answer else [answer[0]["score"]]
    return np.array(values, dtype=np.float32)


def stub_of(root: int, model: str) -> psutil.Process:
    """Return the process that runs a model, below the process that started Triton."""
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(f"/{model}/" in argument for argument in process.cmdline()):
                return process
    raise AssertionError(f"No process runs {model}.")


class Callers:
    """Callers with a text each at a time, who check what they get.

    Attributes:
        answered: The number of right answers.
        responses: The number of those and of refusals.
        refused: The statuses of the refusals.
    """

    def __init__(self, ask: Ask, url: str) -> None:
        self._ask = ask
        self._url = url
        self._expected = [values_of(ask(url, pair)) for pair in PAIRS]
        self._done = threading.Event()
        self.answered = 0
        self.responses = 0
        self.refused: set[int] = set()

    @contextmanager
    def running(self) -> Generator[None]:
        """Keep the callers at work for the length of a `with` block."""
        with ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(self._call, number) for number in range(CALLERS)]
            try:
                self._wait_for_answers()
                yield
                self._wait_for_answers()
            finally:
                self._done.set()
        for caller in callers:
            caller.result()

    def wait_for_responses(self) -> None:
        """Wait until each caller had one, right or refused."""
        enough = self.responses + 3 * CALLERS
        wait_for(lambda: self.responses >= enough or self._done.is_set(), "responses")

    def _wait_for_answers(self) -> None:
        enough = self.answered + 3 * CALLERS
        wait_for(lambda: self.answered >= enough or self._done.is_set(), "right answers")

    def _call(self, number: int) -> None:
        try:
            while not self._done.is_set():
                number = (number + CALLERS) % len(PAIRS)
                response = self._ask(self._url, PAIRS[number])
                self.responses += 1
                if response.status_code == 200:
                    apart = np.abs(values_of(response) - self._expected[number]).max()
                    assert apart < TOLERANCE, f"{PAIRS[number]} got another text's answer."
                    self.answered += 1
                else:
                    self.refused.add(response.status_code)
                    self._done.wait(0.05)
        finally:
            self._done.set()


def pause(process: psutil.Process) -> None:
    process.suspend()
    with suppress(psutil.TimeoutExpired):
        process.wait(PAUSE_SECONDS)
    with suppress(psutil.NoSuchProcess):
        process.resume()


@pytest.mark.slow
def test_up_replaces_a_triton_one_of_whose_models_was_paused() -> None:
    # No other process of the stack has this name in its arguments.
    reranker = "reranker"
    names = ("--model-name", qwen3_nano.MODEL_ID, "--rerank-model-name", reranker)
    with running_stack(*FLAGS, "--rerank", *names) as stack:
        texts, pairs = Callers(embed, stack.url), Callers(rerank, stack.url)
        with texts.running(), pairs.running():
            pause(stub_of(stack.process.pid, reranker))
        assert texts.refused | pairs.refused <= UNAVAILABLE
        assert "got no CPU for a second" in stack.log
        assert "Restarting it." in stack.log


@pytest.mark.campaign
@pytest.mark.parametrize("attempt", range(2))
@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize(
    ("ask", "model"), [(embed, Embedding.model_name), (rerank, Reranking.model_name)]
)
def test_late_answers_reach_no_caller(ask: Ask, model: str, scheme: str, attempt: int) -> None:
    """They come if the supervisor gets no CPU either, and cannot kill Triton in time."""
    del attempt
    with triton_of_both(intra_op_threads=1) as triton:
        url = triton.http_url if scheme == "http" else triton.grpc_url
        with running_gateway(*flags_of_both(url), *FLAGS) as gateway:
            callers = Callers(ask, gateway.url)
            with callers.running():
                supervisor = psutil.Process(triton.pid).parent()
                assert supervisor is not None
                supervisor.suspend()
                pause(stub_of(triton.pid, model))
                callers.wait_for_responses()
                os.kill(triton.pid, signal.SIGKILL)
                supervisor.resume()
                wait_for(lambda: triton.poll() is not None, "Triton's end")
                triton.start()
                triton.wait_ready()
    assert callers.refused <= UNAVAILABLE
