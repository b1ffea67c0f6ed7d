"""Which of several backends get work: those whose own canary is correct."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from fake_backend import FakeBackend, connected
from qwen3_triton_gateway.backends import probe
from qwen3_triton_gateway.backends.base import Probe
from qwen3_triton_gateway.backends.replicas import ReplicatedBackend
from qwen3_triton_gateway.errors import BackendUnavailableError, StartupError
from qwen3_triton_gateway.tensors import HiddenStates, PooledStates, TokenBatch

CANARY = TokenBatch(np.array([[5, 6, 7]]), np.array([[1, 1, 1]]))


class NamedFake(FakeBackend):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.timeouts: list[float] = []

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        self.timeouts.append(timeout_seconds)
        return await super().infer(batch, timeout_seconds=timeout_seconds, priority=priority)

    @property
    def description(self) -> str:
        return self.name

    @property
    def states(self) -> dict[str, bool]:
        return {self.name: self.ready}


def restore_weights(backend: FakeBackend) -> None:
    backend.corrupt = lambda _, values: values


async def start(*fakes: NamedFake) -> ReplicatedBackend:
    backend = ReplicatedBackend(fakes)
    await backend.connect()
    assert await backend.adopt_canary(Probe(CANARY))
    return backend


async def watch(backend: ReplicatedBackend) -> bool:
    """Check as the service does, and let the canaries that this starts finish."""
    await backend.is_ready()
    for _ in range(20):
        await asyncio.sleep(0)
    return await backend.is_ready()


async def infer(backend: ReplicatedBackend) -> None:
    await backend.infer(CANARY, timeout_seconds=5, priority=2)


async def users(backend: ReplicatedBackend, *fakes: NamedFake) -> set[str]:
    """Run batches at the same time, and return the names of the backends that got some."""
    for fake in fakes:
        fake.calls.clear()
    await asyncio.gather(*(infer(backend) for _ in range(6)))
    return {fake.name for fake in fakes if fake.calls}


@pytest.fixture(name="left")
def _left() -> NamedFake:
    return NamedFake("left")


@pytest.fixture(name="right")
def _right() -> NamedFake:
    return NamedFake("right")


async def restart(backend: ReplicatedBackend, fake: NamedFake) -> None:
    fake.ready = False
    await backend.is_ready()
    fake.ready = True


async def test_replicas_with_the_same_weights_share_the_work(
    left: NamedFake, right: NamedFake
) -> None:
    backend = await start(left, right)
    assert await users(backend, left, right) == {"left", "right"}
    assert backend.problems == {}


async def test_a_replica_that_returns_with_other_weights_gets_no_work(
    left: NamedFake, right: NamedFake
) -> None:
    backend = await start(left, right)
    await restart(backend, right)
    right.swap_weights()
    assert await watch(backend)
    assert await users(backend, left, right) == {"left"}
    assert "other weights" in backend.problems["right"]
    assert backend.states == {"left": True, "right": False}


async def test_an_excluded_replica_gets_work_again_once_its_canary_is_correct(
    left: NamedFake, right: NamedFake, caplog: pytest.LogCaptureFixture
) -> None:
    backend = await start(left, right)
    await restart(backend, right)
    right.swap_weights()
    await watch(backend)
    assert "right stays excluded: its answer to the canary agrees only to" in caplog.text
    await restart(backend, right)
    restore_weights(right)
    await watch(backend)
    assert await users(backend, left, right) == {"left", "right"}
    assert "right is included" in caplog.text


async def test_a_reloaded_replica_gets_no_work_before_its_canary(
    left: NamedFake, right: NamedFake
) -> None:
    backend = await start(left, right)
    right.swap_weights()
    right.generation += 1
    await backend.is_ready()
    right.calls.clear()
    assert await users(backend, left) == {"left"}
    await watch(backend)
    assert "other weights" in backend.problems["right"]


async def test_a_replica_in_doubt_is_excluded_once_its_canary_is_wrong(
    left: NamedFake, right: NamedFake, caplog: pytest.LogCaptureFixture
) -> None:
    backend = await start(left, right)
    right.swap_weights()
    right.doubts += 1
    await watch(backend)
    assert "other weights" in backend.problems["right"]
    assert "was reloaded" not in caplog.text


async def test_a_doubt_during_a_check_is_followed_by_another_check(left: NamedFake) -> None:
    backend = await start(left)
    left.gate = asyncio.Event()
    left.doubts += 1
    await watch(backend)
    left.doubts += 1
    await watch(backend)
    left.gate.set()
    left.calls.clear()
    while not left.calls:
        await watch(backend)


async def test_a_batch_waits_for_the_only_replica_while_that_is_checked(left: NamedFake) -> None:
    backend = await start(left)
    left.generation += 1
    await backend.is_ready()
    await infer(backend)
    assert backend.problems == {}


async def test_a_batch_on_a_replica_that_is_reloaded_is_run_again(
    left: NamedFake, right: NamedFake
) -> None:
    backend = await start(left, right)
    left.gate = asyncio.Event()
    running = asyncio.gather(infer(backend), infer(backend))
    await asyncio.sleep(0)
    right.calls.clear()
    left.generation += 1
    await backend.is_ready()
    await running
    assert right.calls


async def test_each_replica_is_checked_in_turn(
    left: NamedFake, right: NamedFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(probe, "MAX_SHARE", float("inf"))
    backend = await start(left, right)
    left.swap_weights()
    await watch(backend)
    assert set(backend.problems) == {"left"}


async def test_later_checks_are_paced_by_the_first(
    left: NamedFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr(probe, "SLOWDOWN", 1e9)
    backend = await start(left)
    left.doubts += 1
    await watch(backend)
    first, *_, last = left.timeouts
    assert (first, last > first) == (60, True)


async def test_a_replica_at_work_on_a_long_batch_is_not_excluded(
    left: NamedFake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_SECONDS", 0.001)
    monkeypatch.setattr(probe, "INTERVAL_SECONDS", 0.0)
    backend = await start(left)
    await infer(backend)  # now its speed is known
    left.gate = asyncio.Event()
    ids = np.ones((1, 4_000), dtype=np.int64)
    long = asyncio.create_task(
        backend.infer(TokenBatch(ids, ids), timeout_seconds=3600, priority=2)
    )
    left.doubts += 1
    while "The canary was not answered" not in caplog.text:
        assert await backend.is_ready()
        await asyncio.sleep(0.001)
    left.gate.set()
    await long
    left.gate = asyncio.Event()  # from now on it hangs, on a short batch
    left.doubts += 1
    short = asyncio.create_task(backend.infer(CANARY, timeout_seconds=3600, priority=2))
    while not backend.problems:
        await backend.is_ready()
        await asyncio.sleep(0.001)
    with pytest.raises(BackendUnavailableError):
        await short


async def test_the_majority_decides_which_weights_are_served(
    left: NamedFake, right: NamedFake
) -> None:
    third = NamedFake("third")
    left.swap_weights()
    backend = await start(left, right, third)
    assert await users(backend, left, right, third) == {"right", "third"}
    assert set(backend.problems) == {"left"}


async def test_replicas_that_disagree_without_a_majority_refuse_to_start(
    left: NamedFake, right: NamedFake
) -> None:
    left.swap_weights()
    with pytest.raises(StartupError, match="left, right return different answers"):
        await start(left, right)


async def test_without_a_trusted_replica_a_batch_is_refused(left: NamedFake) -> None:
    backend = await start(left)
    await restart(backend, left)
    left.swap_weights()
    assert not await watch(backend)
    with pytest.raises(BackendUnavailableError, match="other weights"):
        await infer(backend)


async def test_the_service_stays_ready_on_the_others(
    tokenizer_dir: Path, left: NamedFake, right: NamedFake
) -> None:
    backend = ReplicatedBackend([left, right])
    service = await connected(tokenizer_dir, backend)
    await restart(backend, right)
    right.swap_weights()
    await watch(backend)
    assert (await service.embedder.check()).ready
    assert set(service.state().problems) == {"right"}
