"""Real Tritons get other weights under an unchanged `config.pbtxt`; no wrong vector is accepted."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest

from embed_call import cosines, embed, post
from gateway_process import GatewayProcess, running_gateway, triton_flags
from polling import wait_for
from qwen3_triton_gateway.backends.triton import PROBE_SECONDS
from qwen3_triton_gateway.canary import INTERVAL_SECONDS
from qwen3_triton_gateway.served import WATCH_INTERVAL_SECONDS
from qwen3_triton_gateway.tensors import Float32Matrix
from qwen3_triton_tools.local_triton import LocalTriton
from swapped_weights import ServedModel, allow_reloads
from tolerances import FLOAT32_COSINE

pytestmark = pytest.mark.stack

TEXTS = [f"{'filler ' * (index % 9)}text {index}" for index in range(24)]
# Two seconds on an idle machine: the next reading of the statistics, which may take PROBE_SECONDS,
# and the canary. Ten times that on a busy one, but less than until the canary's next turn: only
# what Triton tells can explain a refusal by then.
NOTICE_SECONDS = 10 * (WATCH_INTERVAL_SECONDS + PROBE_SECONDS + 0.5)
assert NOTICE_SECONDS < INTERVAL_SECONDS - 5
CAMPAIGN_ROUNDS = 5


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> ServedModel:
    return ServedModel(tmp_path)


def url_of(triton: LocalTriton, scheme: str) -> str:
    return triton.http_url if scheme == "http" else triton.grpc_url


def health(gateway: GatewayProcess) -> dict[str, object]:
    return httpx2.get(f"{gateway.url}/health", timeout=60).json()


def restart(triton: LocalTriton) -> None:
    os.kill(triton.pid, signal.SIGKILL)
    wait_for(lambda: triton.poll() is not None, "Triton's end")
    triton.start()


def assert_no_wrong_vector(gateway: GatewayProcess, expected: Float32Matrix) -> None:
    assert cosines(embed(gateway.url, TEXTS), expected).min() >= FLOAT32_COSINE


@pytest.mark.parametrize("scheme", ["grpc", pytest.param("http", marks=pytest.mark.campaign)])
def test_a_replica_that_returns_with_other_weights_is_left_out(
    triton: LocalTriton, model: ServedModel, scheme: str
) -> None:
    with model.triton() as other:
        urls = f"{url_of(triton, scheme)},{url_of(other, scheme)}"
        with running_gateway(*triton_flags(urls)) as gateway:
            expected = embed(gateway.url, TEXTS)
            model.swap_weights()
            restart(other)
            name = url_of(other, scheme)
            while not health(gateway)["excluded"]:
                assert_no_wrong_vector(gateway, expected)
            assert "serves other weights" in gateway.log
            assert gateway.metric("qwen3_triton_backend_excluded", backend=name) == 1
            assert gateway.metric("qwen3_triton_backend_up", backend=name) == 0
            for _ in range(10):
                assert_no_wrong_vector(gateway, expected)
            wait_for(gateway.is_ready, "ready")

            model.restore_weights()
            restart(other)
            wait_for(lambda: "is included" in gateway.log, "it is included again")
            assert_no_wrong_vector(gateway, expected)


@pytest.mark.parametrize("scheme", ["http", pytest.param("grpc", marks=pytest.mark.campaign)])
def test_a_model_reloaded_with_other_weights_is_noticed(
    model: ServedModel, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_reloads(monkeypatch)
    with (
        model.triton() as triton,
        running_gateway(*triton_flags(url_of(triton, scheme))) as gateway,
    ):
        expected = embed(gateway.url, TEXTS)
        model.swap_weights()
        model.reload(triton)
        assert_refused_in_time(gateway, expected)
        reason = "the model behind the gateway has changed"
        wait_for(lambda: reason in str(health(gateway)["reason"]), "the reason in /health")


def test_a_model_reloaded_with_the_same_weights_stays_in_service(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_reloads(monkeypatch)
    with model.triton() as triton, running_gateway(*triton_flags(triton.http_url)) as gateway:
        expected = embed(gateway.url, TEXTS)
        model.reload(triton)
        wait_for(lambda: "was reloaded" in gateway.log, "the reload is noticed")
        wait_for(gateway.is_ready, "ready")
        assert_no_wrong_vector(gateway, expected)
        assert "has changed" not in gateway.log


def test_a_replica_reloaded_with_other_weights_is_left_out(
    triton: LocalTriton, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_reloads(monkeypatch)
    with model.triton() as other:
        urls = f"{triton.http_url},{other.http_url}"
        with running_gateway(*triton_flags(urls)) as gateway:
            expected = embed(gateway.url, TEXTS)
            model.swap_weights()
            model.reload(other)
            end = time.monotonic() + NOTICE_SECONDS
            while not health(gateway)["excluded"]:
                assert time.monotonic() < end
            for _ in range(10):
                assert_no_wrong_vector(gateway, expected)


def assert_refused_in_time(gateway: GatewayProcess, expected: Float32Matrix) -> None:
    """Send requests until one is refused, which is the last one that may be wrong."""
    end = time.monotonic() + NOTICE_SECONDS
    while post(gateway.url, texts=TEXTS).status_code == 200:
        assert time.monotonic() < end, "wrong vectors after the promised time"
    for _ in range(10):
        response = post(gateway.url, texts=TEXTS)
        if response.status_code == 200:
            vectors = np.array(response.json()["embeddings"], dtype=np.float32)
            assert cosines(vectors, expected).min() >= FLOAT32_COSINE


def test_another_version_with_other_weights_has_another_fingerprint(model: ServedModel) -> None:
    first = fingerprint_of(model)
    model.add_version()
    model.swap_weights()
    assert fingerprint_of(model) != first


def fingerprint_of(model: ServedModel) -> str:
    with model.triton() as triton, running_gateway(*triton_flags(triton.http_url)) as gateway:
        return post(gateway.url, texts=["a"]).headers["X-Embedding-Fingerprint"]


def test_weights_replaced_while_the_gateway_was_stopped_refuse_to_start(model: ServedModel) -> None:
    model.state_canary()
    fingerprint_of(model)
    model.swap_weights()
    with model.triton() as triton:
        gateway = GatewayProcess(*triton_flags(triton.http_url))
        wait_for(lambda: gateway.process.poll() is not None, "the gateway ends")
        log = gateway.log
        assert gateway.stop() == 1
    assert "the weights were replaced" in log


@pytest.mark.campaign
def test_a_replica_that_swaps_its_weights_over_and_over_returns_no_wrong_vector(
    triton: LocalTriton, model: ServedModel
) -> None:
    with model.triton() as other:
        urls = f"{triton.grpc_url},{other.grpc_url}"
        with running_gateway(*triton_flags(urls)) as gateway:
            expected = embed(gateway.url, TEXTS)
            for number in range(CAMPAIGN_ROUNDS):
                model.swap_weights() if number % 2 == 0 else model.restore_weights()
                included = gateway.log.count("is included")
                restart(other)

                def is_judged(is_wrong: bool = number % 2 == 0, included: int = included) -> bool:
                    assert_no_wrong_vector(gateway, expected)
                    if is_wrong:
                        return bool(health(gateway)["excluded"])
                    return gateway.log.count("is included") > included

                wait_for(is_judged, "the restarted replica is excluded or included")
