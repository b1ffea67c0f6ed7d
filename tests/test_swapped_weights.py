"""Real Tritons get other weights under an unchanged `config.pbtxt`; no wrong answer is accepted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from gateway_process import GatewayProcess, running_gateway
from polling import wait_for
from qwen3_triton_gateway.backends.probe import INTERVAL_SECONDS
from qwen3_triton_gateway.backends.triton import PROBE_SECONDS
from qwen3_triton_gateway.served import WATCH_INTERVAL_SECONDS
from qwen3_triton_tools.local_triton import LocalTriton
from swapped_weights import ServedModel, allow_reloads
from traffic import TEXTS, Embedding, Reranking, Traffic

pytestmark = pytest.mark.stack

# Two seconds on an idle machine: the next reading of the statistics, which may take PROBE_SECONDS,
# and the canary. Ten times that on a busy one, but less than until the canary's next turn: only
# what Triton tells can explain a refusal by then.
NOTICE_SECONDS = 10 * (WATCH_INTERVAL_SECONDS + PROBE_SECONDS + 0.5)
assert NOTICE_SECONDS < INTERVAL_SECONDS - 5
CAMPAIGN_ROUNDS = 5


@pytest.fixture(
    name="kind", params=[Embedding, pytest.param(Reranking, marks=pytest.mark.campaign)]
)
def _kind(request: pytest.FixtureRequest) -> type[Traffic]:
    return request.param


@pytest.fixture(name="model")
def _model(tmp_path: Path, kind: type[Traffic]) -> ServedModel:
    return ServedModel(tmp_path, kind)


@pytest.fixture(name="healthy_triton")
def _healthy_triton(
    request: pytest.FixtureRequest, kind: type[Traffic], model: ServedModel
) -> Generator[LocalTriton]:
    """A Triton whose weights no test replaces."""
    if kind is Embedding:
        yield request.getfixturevalue("triton")
    else:
        with model.triton() as triton:
            yield triton


def url_of(triton: LocalTriton, scheme: str) -> str:
    return triton.http_url if scheme == "http" else triton.grpc_url


def serving(model: ServedModel, *urls: str) -> AbstractContextManager[GatewayProcess]:
    return running_gateway("--triton-url", ",".join(urls), *model.flags)


def restart(triton: LocalTriton) -> None:
    os.kill(triton.pid, signal.SIGKILL)
    wait_for(lambda: triton.poll() is not None, "Triton's end")
    triton.start()


@pytest.mark.parametrize("scheme", ["grpc", pytest.param("http", marks=pytest.mark.campaign)])
def test_a_replica_that_returns_with_other_weights_is_left_out(
    kind: type[Traffic], healthy_triton: LocalTriton, model: ServedModel, scheme: str
) -> None:
    with (
        model.triton() as other,
        serving(model, url_of(healthy_triton, scheme), url_of(other, scheme)) as gateway,
    ):
        traffic = kind(gateway.url)
        model.swap_weights()
        restart(other)
        # On a busy machine, its first canary may be late, and the other Triton silent for a moment.
        while "serves other weights" not in gateway.log:
            traffic.ask()
        wait_for(lambda: bool(gateway.health()["excluded"]), "it is excluded")
        name = {"backend": url_of(other, scheme)}
        assert gateway.metric(f"{kind.metrics}_backend_excluded", **name) == 1
        assert gateway.metric(f"{kind.metrics}_backend_up", **name) == 0
        wait_for_answers(traffic)
        wait_for(gateway.is_ready, "ready")

        model.restore_weights()
        restart(other)
        wait_for(lambda: "is included" in gateway.log, "it is included again")
        wait_for_answers(traffic)


@pytest.mark.parametrize("scheme", ["http", pytest.param("grpc", marks=pytest.mark.campaign)])
def test_a_model_reloaded_with_other_weights_is_noticed(
    kind: type[Traffic], model: ServedModel, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_reloads(monkeypatch)
    with model.triton() as triton, serving(model, url_of(triton, scheme)) as gateway:
        traffic = kind(gateway.url)
        model.swap_weights()
        model.reload(triton)
        end = time.monotonic() + NOTICE_SECONDS
        while "the model behind the gateway has changed" not in str(gateway.health()["reason"]):
            traffic.send(TEXTS)  # the last ones that may be wrong
            assert time.monotonic() < end, "wrong answers after the promised time"
        assert {traffic.ask() for _ in range(10)} == {503}


def test_a_model_reloaded_with_the_same_weights_stays_in_service(
    kind: type[Traffic], model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_reloads(monkeypatch)
    with model.triton() as triton, serving(model, triton.http_url) as gateway:
        traffic = kind(gateway.url)
        model.reload(triton)
        wait_for(lambda: "was reloaded" in gateway.log, "the reload is noticed")
        wait_for_answers(traffic)
        assert "has changed" not in gateway.log


def test_a_replica_reloaded_with_other_weights_is_left_out(
    kind: type[Traffic],
    healthy_triton: LocalTriton,
    model: ServedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allow_reloads(monkeypatch)
    with (
        model.triton() as other,
        serving(model, healthy_triton.http_url, other.http_url) as gateway,
    ):
        traffic = kind(gateway.url)
        model.swap_weights()
        model.reload(other)
        end = time.monotonic() + NOTICE_SECONDS
        while not gateway.health()["excluded"]:
            assert time.monotonic() < end, "not excluded after the promised time"
        wait_for_answers(traffic)


def wait_for_answers(traffic: Traffic) -> None:
    """Wait until ten requests in a row are answered, each of which has to be right."""
    wait_for(lambda: all(traffic.ask() == 200 for _ in range(10)), "ten answers in a row")


def test_another_version_with_other_weights_has_another_fingerprint(model: ServedModel) -> None:
    first = fingerprint_of(model)
    model.add_version()
    model.swap_weights()
    assert fingerprint_of(model) != first


def fingerprint_of(model: ServedModel) -> str:
    with model.triton() as triton, serving(model, triton.http_url) as gateway:
        return gateway.info()["fingerprint"]


@pytest.mark.parametrize("kind", [Embedding])
def test_weights_replaced_while_the_gateway_was_stopped_refuse_to_start(model: ServedModel) -> None:
    model.state_canary()
    fingerprint_of(model)
    model.swap_weights()
    with model.triton() as triton:
        gateway = GatewayProcess("--triton-url", triton.http_url, *model.flags)
        wait_for(lambda: gateway.process.poll() is not None, "the gateway ends")
        log = gateway.log
        assert gateway.stop() == 1
    assert "the weights were replaced" in log


@pytest.mark.campaign
def test_a_replica_that_swaps_its_weights_over_and_over_returns_no_wrong_answer(
    kind: type[Traffic], healthy_triton: LocalTriton, model: ServedModel
) -> None:
    with (
        model.triton() as other,
        serving(model, healthy_triton.grpc_url, other.grpc_url) as gateway,
    ):
        traffic = kind(gateway.url)
        for number in range(CAMPAIGN_ROUNDS):
            model.swap_weights() if number % 2 == 0 else model.restore_weights()
            included = gateway.log.count("is included")
            restart(other)

            def is_judged(is_wrong: bool = number % 2 == 0, included: int = included) -> bool:
                traffic.ask()
                if is_wrong:
                    return bool(gateway.health()["excluded"])
                return gateway.log.count("is included") > included

            wait_for(is_judged, "the restarted replica is excluded or included")
