"""The client and both adapters, with a proxy that injects faults in front of the real gateway.

Every text gets its own vector or score, or the call ends with one error that lists the texts
without one.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from callers import CALLERS, RERANK_CALLERS, Caller, EmbeddingCaller
from embed_call import cosines, embed
from fault_proxy import (
    BEARABLE,
    PASSING,
    Fault,
    FaultProxy,
    RandomPlan,
    busy,
    fault_proxy,
    first_tries,
    poison,
)
from gateway_process import MortalGateway, running_gateway, triton_flags
from polling import wait_for
from qwen3_triton_client import (
    AsyncEmbeddingClient,
    BadAnswerError,
    EmbeddingClient,
    EmbeddingConnectionError,
    EmbeddingError,
    EmbeddingTimeoutError,
    GatewayError,
    InvalidRequestError,
    OverloadedError,
)
from qwen3_triton_tools.local_triton import LocalTriton
from reranker_exports import random_weights
from reranker_graph import write_reranker
from tolerances import FLOAT32_COSINE
from traffic import Embedding, Reranking, Traffic

# Distinct and of many lengths, so that batches do not follow the order of the texts.
TEXTS = [f"{'filler ' * (7 * index % 19)}text number {index}" for index in range(240)]
FEW = TEXTS[:40]
BATCH_SIZE = 8
SOME_TEXT = FEW[20]
SEEDS = {str(seed): seed for seed in (1, 2, 3)}
BOUND = 3
CACHE_BYTES = 100_000_000

MakeCaller = Callable[..., Caller]
Right = Callable[[Sequence[str], Iterable[Any]], bool]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWEN3_TRITON_URL", raising=False)
    monkeypatch.delenv("QWEN3_TRITON_API_KEY", raising=False)


@pytest.fixture(name="gateway_url", scope="module")
def _gateway_url(triton: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A gateway with a cache: the tests embed the same texts many hundreds of times."""
    reranker = write_reranker(tmp_path_factory.mktemp("reranker"), trunk=random_weights())
    flags = (*triton_flags(triton.http_url), "--rerank-model-dir", str(reranker))
    with running_gateway(*flags, "--cache-bytes", str(CACHE_BYTES)) as gateway:
        yield gateway.url


@pytest.fixture(name="proxy")
def _proxy(gateway_url: str) -> Generator[FaultProxy]:
    with fault_proxy(gateway_url) as proxy:
        yield proxy


@pytest.fixture(name="right", scope="module")
def _right(gateway_url: str) -> Right:
    """Compare with what the gateway returns without the proxy."""

    @cache
    def known(kind: type[Traffic]) -> dict[str, Any]:
        return dict(zip(TEXTS, kind.rows(kind(gateway_url).send(TEXTS)), strict=True))

    def right(texts: Sequence[str], rows: Iterable[Any]) -> bool:
        found = np.array(list(rows), dtype=np.float32)
        if not texts:
            return not found.size
        kind = Reranking if found.shape[1] == 1 else Embedding
        expected = np.stack([known(kind)[text] for text in texts])
        return found.shape == expected.shape and kind.agree(found, expected)

    return right


@pytest.fixture(
    name="caller",
    params=[*CALLERS, *(pytest.param(name, marks=pytest.mark.campaign) for name in RERANK_CALLERS)],
)
def _caller(request: pytest.FixtureRequest) -> str:
    """The name of the client or of one of the adapters."""
    return request.param


def for_each_caller(name: str, values: dict[str, Any]) -> pytest.MarkDecorator:
    """Parametrize by `name`: every value with the client, and the first one with the adapters.

    The adapters leave all exchanges to the client, so one shows what they do with the outcome.
    """
    return pytest.mark.parametrize(
        ("caller", name),
        [
            pytest.param(
                caller,
                value,
                id=f"{caller}-{key}",
                marks=pytest.mark.campaign if caller in RERANK_CALLERS else (),
            )
            for caller in (*CALLERS, *RERANK_CALLERS)
            for number, (key, value) in enumerate(values.items())
            if number == 0 or caller.startswith("client")
        ],
    )


@pytest.fixture(name="make")
def _make(caller: str, proxy: FaultProxy) -> MakeCaller:
    """Create one, with the options that they share."""

    def make(**options: Any) -> Caller:
        defaults = {"batch_size": BATCH_SIZE, "max_concurrency": BOUND, "max_retries": 3}
        return (CALLERS | RERANK_CALLERS)[caller](proxy.url, **{**defaults, **options})

    return make


@pytest.fixture(name="asynchronous", params=[False, True], ids=["sync", "async"])
def _asynchronous(request: pytest.FixtureRequest) -> bool:
    return request.param


def quiet(proxy: FaultProxy) -> bool:
    return proxy.in_flight == 0


def client_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("qwen3-triton-client")]


# Transient faults


@for_each_caller("fault", PASSING)
def test_a_transient_fault_costs_one_try_of_one_batch(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy, right: Right, fault: Fault
) -> None:
    proxy.rule = first_tries(SOME_TEXT, fault)
    assert right(FEW, make().run(FEW, asynchronous=asynchronous))
    assert proxy.tries == {
        batch: 2 if SOME_TEXT in batch else 1 for batch in {r.texts for r in proxy.requests}
    }
    assert sorted(text for batch in proxy.tries for text in batch) == sorted(FEW)


@for_each_caller("fault", BEARABLE)
def test_a_slow_answer_is_waited_for(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy, right: Right, fault: Fault
) -> None:
    proxy.rule = first_tries(SOME_TEXT, fault)
    assert right(FEW, make().run(FEW, asynchronous=asynchronous))
    assert set(proxy.tries.values()) == {1}


@pytest.mark.parametrize("caller", CALLERS)
def test_a_query_is_retried_too(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy, gateway_url: str
) -> None:
    proxy.rule = first_tries(SOME_TEXT, busy(), busy(429))
    model = make()
    assert isinstance(model, EmbeddingCaller)
    vector = asyncio.run(model.aquery(SOME_TEXT)) if asynchronous else model.query(SOME_TEXT)
    expected = embed(gateway_url, [SOME_TEXT], input_type="query")
    assert cosines(np.array([vector]), expected).min() >= FLOAT32_COSINE
    assert proxy.tries == {(SOME_TEXT,): 3}


def test_responses_in_reverse_order_reach_their_texts(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy, right: Right
) -> None:
    proxy.answer_in_reverse(BOUND)
    assert right(TEXTS, make().run(TEXTS, asynchronous=asynchronous))
    first = proxy.requests[:BOUND]
    assert sorted(first, key=lambda request: request.ended) == first[::-1]


@for_each_caller("seed", SEEDS)
def test_all_faults_at_once_cost_tries_but_no_vector(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy, right: Right, seed: int
) -> None:
    proxy.rule = plan = RandomPlan(seed, [*PASSING.values(), *BEARABLE.values()])
    proxy.answer_in_reverse(6)
    caller = make(max_concurrency=6, max_retries=plan.most_tries - 1)
    assert right(TEXTS, caller.run(TEXTS, asynchronous=asynchronous))
    assert proxy.tries == {batch: plan.tries(batch) for batch in proxy.tries}
    assert sum(proxy.tries.values()) > 30
    assert proxy.most_in_flight == 6


# Permanent faults


@dataclass(frozen=True)
class Lasting:
    fault: Fault
    kind: type[EmbeddingError]
    status: int
    tries: int


LASTING = {
    "503": Lasting(busy(503), OverloadedError, 503, 3),
    "429": Lasting(busy(429), OverloadedError, 429, 3),
    "500": Lasting(busy(500), GatewayError, 500, 3),
    "504": Lasting(busy(504), EmbeddingTimeoutError, 504, 3),
    "400": Lasting(busy(400), InvalidRequestError, 400, 1),
    "one-result-short": Lasting(Fault("drop_result"), BadAnswerError, 200, 1),
}
BROKEN = {kind: kind for kind in ("reset", "reset_in_body", "cut_body", "cut_json")}


@for_each_caller("lasting", LASTING)
def test_a_permanent_fault_is_one_typed_error_with_every_detail(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy, right: Right, lasting: Lasting
) -> None:
    proxy.rule = poison([SOME_TEXT], lasting.fault)
    with pytest.raises(lasting.kind, match=r"(texts|documents): ") as caught:
        make(max_concurrency=1, max_retries=2).run(FEW, asynchronous=asynchronous)
    error, last = caught.value, proxy.requests[-1]
    assert type(error) is lasting.kind
    assert (error.status, error.request_id) == (lasting.status, last.request_id)
    assert proxy.tries[last.texts] == error.tries == lasting.tries
    assert {FEW[index] for index in error.failed_indices} == set(last.texts)
    # Scores are for a ranking, which some of them do not make.
    kept = proxy.answered() if error.argument == "texts" else set[str]()
    assert {FEW[index] for index in error.completed} == kept
    assert right([FEW[index] for index in error.completed], error.completed.values())


@for_each_caller("kind", BROKEN)
def test_a_response_that_never_arrives_completely_is_a_connection_error(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy, right: Right, kind: Any
) -> None:
    proxy.rule = poison([SOME_TEXT], Fault(kind))
    with pytest.raises(EmbeddingConnectionError, match="tries: 2") as caught:
        make(max_concurrency=1, max_retries=1).run(FEW, asynchronous=asynchronous)
    error, last = caught.value, proxy.requests[-1]
    assert proxy.tries[last.texts] == error.tries == 2
    assert {FEW[index] for index in error.failed_indices} == set(last.texts)
    assert right([FEW[index] for index in error.completed], error.completed.values())


def test_a_result_of_nan_fails_its_own_text_and_no_other(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy
) -> None:
    proxy.rule = poison([SOME_TEXT], Fault("nan"))
    with pytest.raises(BadAnswerError, match="NaN") as caught:
        make(max_concurrency=1).run(FEW, asynchronous=asynchronous)
    error, last = caught.value, proxy.requests[-1]
    assert [FEW[index] for index in error.failed_indices] == [last.texts[-1]]
    assert error.request_id == last.request_id
    assert proxy.tries[last.texts] == 1


def test_a_gateway_that_never_responds_is_a_timeout_after_all_tries(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy
) -> None:
    proxy.rule = poison([SOME_TEXT], Fault("hang"))
    caller = make(timeout=0.5, max_retries=1)
    with pytest.raises(EmbeddingTimeoutError, match="tries: 2"):
        caller.run([SOME_TEXT], asynchronous=asynchronous)
    wait_for(lambda: proxy.tries == {(SOME_TEXT,): 2}, "both tries arrive")
    wait_for(lambda: quiet(proxy), "the client disconnects")


def test_a_response_that_trickles_forever_is_a_timeout(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy
) -> None:
    proxy.rule = poison([SOME_TEXT], Fault("trickle"))
    caller = make(timeout=0.3, max_retries=0)
    with pytest.raises(EmbeddingTimeoutError, match="in time"):
        caller.run([SOME_TEXT], asynchronous=asynchronous)
    wait_for(lambda: quiet(proxy), "the client disconnects")


# Nothing keeps running


async def test_the_first_error_cancels_what_is_in_flight(
    make: MakeCaller, proxy: FaultProxy
) -> None:
    # The longest text is in the first batch.
    texts = [SOME_TEXT + " and more" * 50, *FEW]
    proxy.rule = poison(texts[:1], Fault(status=400))
    proxy.hold(lambda request: texts[0] not in request.texts or proxy.in_flight < BOUND)
    before = asyncio.all_tasks()
    with pytest.raises(InvalidRequestError, match="answered 400"):
        await make().arows(texts)
    assert asyncio.all_tasks() == before
    await asyncio.to_thread(wait_for, lambda: quiet(proxy), "no request in flight")
    assert len(proxy.requests) == BOUND
    assert sum(request.hung_up for request in proxy.requests) == BOUND - 1


def test_after_the_first_error_no_thread_and_no_request_is_left(
    make: MakeCaller, proxy: FaultProxy
) -> None:
    longest = SOME_TEXT + " and more" * 50
    # Slow, so that the error comes long before the last batch.
    proxy.rule = lambda request: Fault(status=400) if longest in request.texts else Fault("slow")
    with pytest.raises(InvalidRequestError, match="answered 400"):
        make().rows([longest, *TEXTS])
    sent = len(proxy.requests)
    assert client_threads() == []
    wait_for(lambda: quiet(proxy), "no request in flight")
    assert len(proxy.requests) == sent < len(TEXTS) // BATCH_SIZE


async def test_a_cancelled_call_disconnects_and_the_next_one_works(
    make: MakeCaller, proxy: FaultProxy, right: Right
) -> None:
    proxy.hold(lambda _: True)
    caller = make()
    before = asyncio.all_tasks()
    call = asyncio.create_task(caller.arows(TEXTS))
    await asyncio.to_thread(wait_for, lambda: proxy.in_flight == BOUND, "requests in flight")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert asyncio.all_tasks() == before
    await asyncio.to_thread(wait_for, lambda: quiet(proxy), "no request in flight")
    assert [request.hung_up for request in proxy.requests] == [True] * BOUND
    proxy.release()
    assert right(FEW, await caller.arows(FEW))


async def test_a_call_cancelled_during_its_backoff_sends_nothing_more(
    make: MakeCaller, proxy: FaultProxy
) -> None:
    proxy.rule = lambda _: Fault(headers={"Retry-After": "60"})
    before = asyncio.all_tasks()
    call = asyncio.create_task(make().arows(FEW))
    await asyncio.to_thread(
        wait_for, lambda: len(proxy.requests) == BOUND and quiet(proxy), "refusals"
    )
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert asyncio.all_tasks() == before
    assert len(proxy.requests) == BOUND


async def test_cancelling_some_of_several_calls_leaves_the_others_correct(
    make: MakeCaller, proxy: FaultProxy, right: Right
) -> None:
    parts = [TEXTS[start::4] for start in range(4)]
    proxy.hold(lambda _: True)
    caller = make()
    calls = [asyncio.create_task(caller.arows(part)) for part in parts]
    await asyncio.to_thread(wait_for, lambda: proxy.in_flight == BOUND, "requests in flight")
    calls[0].cancel()
    calls[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    proxy.release()
    assert right(parts[1], await calls[1])
    assert right(parts[3], await calls[3])


def test_an_interrupt_ends_a_call_after_what_is_in_flight(
    make: MakeCaller, proxy: FaultProxy
) -> None:
    proxy.hold(lambda _: True)
    interrupted = threading.Event()

    def raise_interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def interrupt() -> None:
        wait_for(lambda: proxy.in_flight == BOUND, "requests in flight")
        os.kill(os.getpid(), signal.SIGINT)
        interrupted.wait()
        proxy.release()

    former = signal.signal(signal.SIGINT, raise_interrupt)
    try:
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                make().rows(TEXTS)
            pending.result()
    finally:
        signal.signal(signal.SIGINT, former)
    assert client_threads() == []
    # Each thread may have taken one more batch before the interrupt arrived.
    assert len(proxy.requests) <= 2 * BOUND


# Shared by threads, tasks and event loops


@for_each_caller("bound", {"5": 5, "1": 1, "2": 2})
def test_requests_in_flight_reach_the_limit_and_never_exceed_it(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy, right: Right, bound: int
) -> None:
    proxy.rule = RandomPlan(bound, [busy(), Fault("slow")])
    proxy.answer_in_reverse(bound)
    assert right(FEW, make(max_concurrency=bound).run(FEW, asynchronous=asynchronous))
    assert proxy.most_in_flight == bound


def test_threads_share_one_limit_and_each_gets_its_vectors(
    make: MakeCaller, proxy: FaultProxy, right: Right
) -> None:
    parts = [TEXTS[start::6] for start in range(6)]
    proxy.rule = plan = RandomPlan(0, [busy(), busy(429), Fault("slow")])
    proxy.answer_in_reverse(BOUND)
    caller = make(max_retries=plan.most_tries - 1)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(caller.rows, parts))
    assert all(right(part, vectors) for part, vectors in zip(parts, results, strict=True))
    assert proxy.tries == {batch: plan.tries(batch) for batch in proxy.tries}
    assert proxy.most_in_flight == BOUND


async def test_gathered_calls_share_one_limit_and_each_gets_its_vectors(
    make: MakeCaller, proxy: FaultProxy, right: Right
) -> None:
    parts = [TEXTS[start::12] for start in range(12)]
    proxy.rule = plan = RandomPlan(0, [busy(), busy(429), Fault("slow")])
    proxy.answer_in_reverse(BOUND)
    caller = make(max_retries=plan.most_tries - 1)
    results = await asyncio.gather(*(caller.arows(part) for part in parts))
    assert all(right(part, vectors) for part, vectors in zip(parts, results, strict=True))
    assert proxy.tries == {batch: plan.tries(batch) for batch in proxy.tries}
    assert proxy.most_in_flight == BOUND


async def test_a_gathered_call_that_fails_leaves_the_others_correct(
    make: MakeCaller, proxy: FaultProxy, right: Right
) -> None:
    parts = [TEXTS[start::6] for start in range(6)]
    proxy.rule = poison([parts[3][0]], busy(500))
    calls = [make().arows(part) for part in parts]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(3), GatewayError)
    del parts[3]
    assert all(right(part, vectors) for part, vectors in zip(parts, results, strict=True))  # pyright: ignore[reportArgumentType]


def test_a_second_event_loop_is_served_after_faults_in_the_first(
    make: MakeCaller, proxy: FaultProxy, right: Right
) -> None:
    caller = make()
    for part in (FEW[:20], FEW[20:]):
        proxy.rule = first_tries(part[3], Fault("reset_in_body"), busy())
        assert right(part, asyncio.run(caller.arows(part)))


def test_event_loops_in_several_threads_share_one_adapter(
    make: MakeCaller, proxy: FaultProxy, right: Right
) -> None:
    parts = [TEXTS[start::4] for start in range(4)]
    proxy.rule = RandomPlan(0, [busy(), busy(429), Fault("slow")])
    caller = make()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda part: asyncio.run(caller.arows(part)), parts))
    assert all(right(part, vectors) for part, vectors in zip(parts, results, strict=True))


def test_a_copy_pickled_in_the_middle_of_a_call_works_and_so_does_the_call(
    make: MakeCaller, asynchronous: bool, proxy: FaultProxy, right: Right
) -> None:
    first, second = FEW[:20], FEW[20:]
    proxy.hold(lambda request: request.texts[0] in first)
    caller = make()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(caller.run, first, asynchronous=asynchronous)
        wait_for(lambda: proxy.in_flight == BOUND, "requests in flight")
        copied = pickle.loads(pickle.dumps(caller))
        assert right(second, copied.run(second, asynchronous=asynchronous))
        proxy.release()
        assert right(first, pending.result())


# One bad text among many


@pytest.mark.parametrize("status", [400, 500])
def test_two_poison_texts_among_200_are_isolated_and_198_get_their_vectors(
    proxy: FaultProxy, right: Right, asynchronous: bool, status: int
) -> None:
    texts, bad = TEXTS[:200], {37: TEXTS[37], 141: TEXTS[141]}
    proxy.rule = poison(bad.values(), busy(status))
    if asynchronous:
        client = AsyncEmbeddingClient(proxy.url, batch_size=32, max_retries=1)
        result = asyncio.run(client.embed(texts, on_error="isolate"))
    else:
        with EmbeddingClient(proxy.url, batch_size=32, max_retries=1) as client:
            result = client.embed(texts, on_error="isolate")
    assert list(result.failed) == list(bad)
    assert all(error.status == status for error in result.failed.values())
    assert right([texts[index] for index in result.completed], result.completed.values())
    assert len(result.completed) == 198
    tries = 1 if status == 400 else 2
    assert proxy.tries == {
        batch: 1 if bad.keys().isdisjoint(map(texts.index, batch)) else tries
        for batch in proxy.tries
    }


def test_nothing_is_isolated_while_the_gateway_is_unavailable(proxy: FaultProxy) -> None:
    proxy.rule = lambda _: busy(503)
    with (
        EmbeddingClient(proxy.url, max_concurrency=1, max_retries=1) as client,
        pytest.raises(OverloadedError, match="answered 503"),
    ):
        client.embed(FEW, on_error="isolate")
    assert set(proxy.tries.values()) == {2}
    assert len(proxy.tries) == 1


# Triton and the gateway end in the middle of calls


@pytest.mark.campaign
def test_calls_to_rerank_are_right_or_end_with_a_typed_error_while_servers_are_killed() -> None:
    with Reranking.triton() as triton:
        gateway = MortalGateway("--triton-url", triton.grpc_url, *Reranking.flags)
        try:
            gateway.wait_ready()
            rerank_through_kills(triton, gateway)
        finally:
            gateway.stop()


def rerank_through_kills(triton: LocalTriton, gateway: MortalGateway) -> None:
    traffic = Reranking(gateway.url)
    expected = Reranking.rows(traffic.send(FEW))
    outcomes: list[list[type[EmbeddingError] | None]] = []
    over = threading.Event()

    def call(
        caller: Caller, asynchronous: bool, outcomes: list[type[EmbeddingError] | None]
    ) -> None:
        while not over.is_set():
            try:
                found = caller.run(FEW, asynchronous=asynchronous)
            except EmbeddingError as error:
                outcomes.append(type(error))
            else:
                assert Reranking.agree(np.array(found, dtype=np.float32), expected)
                outcomes.append(None)

    with ThreadPoolExecutor() as pool:
        options = {"batch_size": BATCH_SIZE, "max_concurrency": 2, "max_retries": 1}
        calls: list[Future[None]] = []
        for make in RERANK_CALLERS.values():
            for asynchronous in (False, True):
                outcomes.append([])
                caller = make(gateway.url, **options)
                calls.append(pool.submit(call, caller, asynchronous, outcomes[-1]))

        def wait_for_right_answers() -> None:
            counts = [len(each) for each in outcomes]
            wait_for(
                lambda: (
                    any(each.done() for each in calls)
                    or all(
                        None in each[count:] for each, count in zip(outcomes, counts, strict=True)
                    )
                ),
                "a right answer to everyone",
            )

        try:
            wait_for_right_answers()
            os.kill(triton.pid, signal.SIGKILL)
            wait_for(lambda: not gateway.process.is_ready(), "not ready without Triton")
            wait_for(lambda: triton.poll() is not None, "Triton's end")
            triton.start()
            triton.wait_ready()
            wait_for_right_answers()
            gateway.kill()
            gateway.restart()
            wait_for_right_answers()
        finally:
            over.set()
        for each in calls:
            each.result()
    assert {outcome for each in outcomes for outcome in each} <= {
        *(None, OverloadedError, EmbeddingConnectionError, EmbeddingTimeoutError)
    }
