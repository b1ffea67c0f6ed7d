"""How a gateway notices that its model is away, hangs or has other weights."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from fake_backend import FakeBackend, connected, make_service
from qwen3_triton_gateway import canary
from qwen3_triton_gateway.backends import probe
from qwen3_triton_gateway.backends.base import Probe
from qwen3_triton_gateway.embedder import EmbedCall
from qwen3_triton_gateway.errors import (
    BackendUnavailableError,
    DeadlineExceededError,
    StartupError,
)
from qwen3_triton_gateway.served import Readiness
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.tensors import HiddenStates, PooledStates, TokenBatch


async def check_until_embedded(service: EmbeddingService) -> Readiness:
    """Check until the canary sentence has been embedded again after the model returned."""
    while "since the model came back" in (await service.embedder.check()).reason:
        await asyncio.sleep(0)
    return service.readiness


async def test_the_canary_notices_other_weights_after_a_restart(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = await connected(tokenizer_dir, backend)
    assert (await service.embedder.check()).ready
    backend.ready = False
    assert "unavailable" in (await service.embedder.check()).reason
    backend.ready = True
    backend.swap_weights()
    readiness = await check_until_embedded(service)
    assert not readiness.ready
    assert "has changed" in readiness.reason


async def test_the_same_model_is_ready_again_after_an_absence(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = await connected(tokenizer_dir, backend)
    backend.ready = False
    await service.embedder.check()
    with pytest.raises(BackendUnavailableError, match="is unavailable") as caught:
        service.embedder.require_ready()
    assert caught.value.retry_after_seconds == 1
    backend.ready = True
    assert not (await service.embedder.check()).ready  # not before the canary
    assert (await check_until_embedded(service)).ready


class SlowBackend(FakeBackend):
    """A backend that is asked whether it is ready, and answers when its `probe` opens."""

    checks = 0

    def __init__(self) -> None:
        super().__init__()
        self.probe = asyncio.Event()

    async def is_ready(self) -> bool:
        self.checks += 1
        answer = self.ready
        await self.probe.wait()
        return answer


async def start_check(service: EmbeddingService) -> asyncio.Task[Readiness]:
    check = asyncio.create_task(service.embedder.check())
    for _ in range(3):
        await asyncio.sleep(0)
    return check


async def test_metrics_show_the_backend_as_readiness_does(tokenizer_dir: Path) -> None:
    slow = SlowBackend()
    service = await connected(tokenizer_dir, slow)
    slow.ready = False
    check = await start_check(service)
    assert (service.state().ready, service.state().backends) == (True, {"fake": True})
    slow.probe.set()
    await check
    assert (service.state().ready, service.state().backends) == (False, {"fake": False})


async def test_checks_at_the_same_time_are_one(tokenizer_dir: Path) -> None:
    slow = SlowBackend()
    service = await connected(tokenizer_dir, slow)
    slow.ready = False
    checks = [await start_check(service) for _ in range(3)]
    soon = asyncio.create_task(service.embedder.check_soon())
    slow.ready = True  # too late for them
    slow.probe.set()
    await soon
    assert slow.checks == 1
    for check in checks:
        assert not (await check).ready


async def test_a_check_from_before_a_failure_is_followed_by_another(tokenizer_dir: Path) -> None:
    slow = SlowBackend()
    service = await connected(tokenizer_dir, slow)
    await start_check(service)
    slow.ready = False
    failed = [asyncio.create_task(service.embedder.check_soon()) for _ in range(3)]
    await asyncio.sleep(0)
    slow.probe.set()
    await asyncio.gather(*failed)
    assert slow.checks == 2
    assert not service.readiness.ready


async def test_answers_after_a_reload_wait_for_the_canary(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = await connected(tokenizer_dir, backend)
    backend.calls.clear()
    backend.generation += 1
    assert (await service.embedder.check()).ready  # requests are accepted
    await service.embedder.confirm(math.inf)
    assert len(backend.calls) == 1
    await service.embedder.confirm(math.inf)
    assert len(backend.calls) == 1


async def test_answers_of_a_model_reloaded_with_other_weights_are_withheld(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = await connected(tokenizer_dir, backend)
    backend.generation += 1
    backend.swap_weights()
    await service.embedder.check()
    with pytest.raises(BackendUnavailableError, match="has changed"):
        await service.embedder.confirm(math.inf)
    assert not (await service.embedder.check()).ready


async def test_a_model_that_changed_empties_the_cache(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = await connected(tokenizer_dir, backend, EMBED_CACHE_BYTES=1_000_000)
    loop = asyncio.get_running_loop()
    await service.embedder.embed(EmbedCall(["a"]), deadline=loop.time() + 60)
    assert service.state().cache_bytes
    backend.generation += 1
    backend.swap_weights()
    await service.embedder.check()
    with pytest.raises(BackendUnavailableError):
        await service.embedder.confirm(math.inf)
    await service.embedder.check()
    assert not service.state().cache_bytes


async def connect_with_impatient_canary(
    tokenizer_dir: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> EmbeddingService:
    """Connect a service whose canary runs at every check, and is given up early."""
    monkeypatch.setattr(probe, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(probe, "INTERVAL_SECONDS", 0.0)
    service = await connected(tokenizer_dir, backend)
    return service


async def test_a_model_that_reports_ready_but_hangs_is_noticed(
    tokenizer_dir: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await connect_with_impatient_canary(tokenizer_dir, backend, monkeypatch)
    backend.gate = asyncio.Event()
    while (await service.embedder.check()).ready:
        await asyncio.sleep(0.01)
    assert "has not answered" in service.readiness.reason
    backend.gate.set()
    while not (await service.embedder.check()).ready:
        await asyncio.sleep(0.01)


async def test_a_model_at_work_on_a_long_text_is_not_hanging(
    tokenizer_dir: Path,
    backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = await connect_with_impatient_canary(tokenizer_dir, backend, monkeypatch)
    backend.gate = asyncio.Event()
    call = service.embedder.embed(
        EmbedCall(["long " * 100]), deadline=asyncio.get_running_loop().time() + 60
    )
    answer = asyncio.create_task(call)
    while "The canary was not answered" not in caplog.text:
        assert (await service.embedder.check()).ready
        await asyncio.sleep(0.001)
    backend.gate.set()
    await answer
    backend.gate = asyncio.Event()
    while (await service.embedder.check()).ready:  # nothing is in flight any more
        await asyncio.sleep(0.001)


async def test_a_model_that_hangs_on_a_short_text_is_noticed_before_its_deadline(
    tokenizer_dir: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await connect_with_impatient_canary(tokenizer_dir, backend, monkeypatch)
    deadline = asyncio.get_running_loop().time() + 3600
    await service.embedder.embed(EmbedCall(["measured"]), deadline=deadline)
    backend.gate = asyncio.Event()
    answer = asyncio.create_task(service.embedder.embed(EmbedCall(["short"]), deadline=deadline))
    while (await service.embedder.check()).ready:
        await asyncio.sleep(0.001)
    backend.gate.set()
    await answer


def test_the_canary_of_a_slow_model_has_more_time_and_fewer_turns() -> None:
    fast, slow = probe.Pace(0.2), probe.Pace(12)
    assert (fast.timeout, fast.interval) == (10, 30)
    assert (slow.timeout, slow.interval) == (48, 240)


async def test_a_slow_model_has_a_minute_for_each_batch_of_the_start(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    await connected(tokenizer_dir, backend)
    assert set(backend.timeouts) == {60.0}


class BusyBackend(FakeBackend):
    """A backend that answers documents, but when it is busy no query in time."""

    is_busy = False
    answered = 0

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        answered = self.answered
        while self.is_busy and priority == probe.QUERY_PRIORITY:
            if self.answered > answered:
                raise DeadlineExceededError("too busy")
            await asyncio.sleep(0)
        self.answered += 1
        return await super().infer(batch, timeout_seconds=timeout_seconds, priority=priority)


async def embed_until_the_canary_is_late(
    service: EmbeddingService, caplog: pytest.LogCaptureFixture
) -> None:
    deadline = asyncio.get_running_loop().time() + 120
    while "was not answered: too busy" not in caplog.text:
        await service.embedder.check()
        await service.embedder.embed(EmbedCall(["a document"]), deadline=deadline)


async def test_a_canary_that_is_late_under_load_is_not_a_problem(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probe, "INTERVAL_SECONDS", 0.0)
    busy = BusyBackend()
    service = await connected(tokenizer_dir, busy)
    busy.is_busy = True
    await embed_until_the_canary_is_late(service, caplog)
    assert (await service.embedder.check()).ready


async def test_a_canary_that_is_late_under_load_does_not_clear_a_reloaded_model(
    tokenizer_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    busy = BusyBackend()
    service = await connected(tokenizer_dir, busy)
    busy.generation += 1
    busy.is_busy = True
    await embed_until_the_canary_is_late(service, caplog)
    busy.swap_weights()
    busy.is_busy = False
    with pytest.raises(BackendUnavailableError, match="has changed"):
        await service.embedder.confirm(math.inf)


async def test_the_canary_does_not_wait_in_the_queue(
    tokenizer_dir: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(probe, "MAX_SHARE", float("inf"))
    service = await connected(tokenizer_dir, backend, EMBED_MAX_QUEUE_TOKENS=64)
    backend.gate = asyncio.Event()
    call = EmbedCall([f"query {number}" for number in range(40)], input_type="query")
    deadline = asyncio.get_running_loop().time() + 60
    embedding = asyncio.create_task(service.embedder.embed(call, deadline=deadline))
    await asyncio.sleep(0)  # it is queued, and fills the queue
    await service.embedder.check()
    await asyncio.sleep(0)
    assert any(lane.texts for lane in service.state().lanes)
    assert backend.calls[-1] == canary.canary_batch(service.embedder.tokenizer).input_ids.shape
    backend.gate.set()
    await embedding


async def test_a_doubt_brings_the_canary_forward_and_delays_no_answer(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = await connected(tokenizer_dir, backend)
    backend.gate = asyncio.Event()
    backend.doubts += 1
    backend.swap_weights()
    await service.embedder.check()
    await service.embedder.confirm(math.inf)
    backend.gate.set()
    while "has changed" not in (await service.embedder.check()).reason:
        await asyncio.sleep(0)


async def test_a_doubt_during_a_canary_is_followed_by_another(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    service = await connected(tokenizer_dir, backend)
    backend.gate = asyncio.Event()
    backend.doubts += 1
    await service.embedder.check()
    await asyncio.sleep(0)
    backend.doubts += 1
    await service.embedder.check()
    backend.gate.set()
    backend.calls.clear()
    while not backend.calls:
        await service.embedder.check()
        await asyncio.sleep(0)


async def stated_by(backend: FakeBackend, tokenizer_dir: Path) -> str:
    """State the canary's vector as `model repository` does."""
    batch = canary.canary_batch(make_service(tokenizer_dir, backend).embedder.tokenizer)
    return canary.state_canary(batch, await probe.run_probe(backend, Probe(batch)))


async def test_weights_other_than_those_that_the_configuration_states_refuse_to_start(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    stating = FakeBackend(stated_canary=await stated_by(backend, tokenizer_dir))
    await connected(tokenizer_dir, stating)
    stating.swap_weights()
    with pytest.raises(StartupError, match=r"config.pbtxt: the weights were replaced.*--force"):
        await connected(tokenizer_dir, stating)


async def test_less_precise_weights_have_the_vector_that_the_configuration_states(
    tokenizer_dir: Path, backend: FakeBackend
) -> None:
    stating = FakeBackend(stated_canary=await stated_by(backend, tokenizer_dir))
    stating.corrupt = lambda _, values: np.round(values * 8 / abs(values).max()).astype(np.float32)
    await connected(tokenizer_dir, stating)


@pytest.mark.parametrize("length", [4, 64])
async def test_a_vector_of_other_tokens_says_nothing_about_the_weights(
    tokenizer_dir: Path, backend: FakeBackend, length: int
) -> None:
    stating = FakeBackend(stated_canary=await stated_by(backend, tokenizer_dir))
    stating.swap_weights()
    await connected(tokenizer_dir, stating, EMBED_MAX_LENGTH=length)
