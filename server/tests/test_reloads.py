"""What Triton's statistics tell about reloads, from readings of real servers and made-up ones."""

from __future__ import annotations

import itertools
import random

import pytest

from qwen3_triton_gateway.backends.reloads import (
    LoadHistory,
    Reading,
    Verdict,
    read_statistics,
)

SAME, DOUBTFUL, RELOADED, SEVERAL = Verdict


class FakeTriton:
    """Counts batches as Triton does, for one gateway and others.

    Attributes:
        in_flight: Batches that the gateway has sent. They may be counted, but are not answered.
    """

    def __init__(self, *, warm_up: int = 0, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._warm_up = warm_up
        self._answered = 0
        self.in_flight = 0
        self.reload()

    def reload(self) -> None:
        self._batches = 0
        self._runs: dict[int, tuple[int, int]] = {}
        for _ in range(self._warm_up):
            self.count(8)

    def count(self, rows: int) -> None:
        """Run a batch of somebody else."""
        runs, nanoseconds = self._runs.get(rows, (0, 0))
        self._runs[rows] = (runs + 1, nanoseconds + self._random.randint(1_000_000, 9_000_000))
        self._batches += 1

    def answer(self, *sizes: int) -> None:
        """Run batches of the gateway."""
        for rows in sizes:
            self.count(rows)
            self._answered += 1

    def read(self) -> Reading:
        sent = self._answered + self.in_flight
        return Reading(1, self._batches, dict(self._runs), answered=self._answered, sent=sent)


def watch(triton: FakeTriton, *, canaries: int = 1) -> LoadHistory:
    """Begin as a gateway does: the first reading, then canaries, then another reading."""
    history = LoadHistory()
    assert history.judge(triton.read()) is SAME
    triton.answer(*[1] * canaries)
    history.judge(triton.read())
    return history


def test_an_idle_model_is_the_same() -> None:
    triton = FakeTriton()
    history = watch(triton)
    assert history.judge(triton.read()) is SAME


@pytest.mark.parametrize("warm_up", [0, 1, 4])
def test_a_reload_of_an_idle_model_is_noticed(warm_up: int) -> None:
    triton = FakeTriton(warm_up=warm_up)
    history = watch(triton)
    triton.reload()
    assert history.judge(triton.read()) is RELOADED


def test_a_reload_is_noticed_by_the_sizes_that_have_not_come_again() -> None:
    triton = FakeTriton()
    history = watch(triton)
    triton.reload()
    triton.answer(*[8] * 20)
    assert history.judge(triton.read()) is RELOADED


@pytest.mark.parametrize("warm_up", [0, 1, 4])
def test_a_reload_never_passes_for_the_same_load(warm_up: int) -> None:
    """However few batches came before it, and however many since, all of one size."""
    for earlier, answers, in_flight in itertools.product(range(8), range(8), range(4)):
        triton = FakeTriton(warm_up=warm_up)
        history = watch(triton)
        triton.answer(*[1] * earlier)
        history.judge(triton.read())
        triton.reload()
        triton.in_flight = in_flight
        for _ in range(in_flight):
            triton.count(1)
        triton.answer(*[1] * answers)
        assert history.judge(triton.read()) is not SAME, (earlier, answers, in_flight)


def test_the_doubt_ends_when_a_reload_would_be_noticed() -> None:
    triton = FakeTriton()
    history = watch(triton)
    triton.in_flight = 3
    verdicts: list[Verdict] = []
    for _ in range(10):
        triton.answer(1)
        verdicts.append(history.judge(triton.read()))
    assert verdicts[0] is DOUBTFUL
    assert verdicts[-1] is SAME
    assert RELOADED not in verdicts


def test_work_of_others_is_not_a_reload() -> None:
    triton = FakeTriton()
    history = watch(triton, canaries=3)
    triton.answer(1)
    triton.count(1)
    history.judge(triton.read())
    for _ in range(50):
        triton.count(1)
    assert history.judge(triton.read()) is SAME


def test_another_version_is_a_reload() -> None:
    history = LoadHistory()
    history.judge(Reading(1, 10))
    assert history.judge(Reading(2, 99)) is RELOADED


def test_a_batch_that_is_counted_late_raises_a_doubt_at_most() -> None:
    triton = FakeTriton()
    history = watch(triton)
    for _ in range(10):
        triton.answer(1, 2)
        late = Reading(1, triton.read().batches - 1, triton.read().runs, *[triton.read().sent] * 2)
        assert history.judge(late) in (SAME, DOUBTFUL)


@pytest.mark.parametrize("rounds", [1, 5])
def test_several_servers_at_one_address_are_told_apart_from_reloads(rounds: int) -> None:
    servers = [FakeTriton(seed=0), FakeTriton(seed=1)]
    servers[0].answer(1, 1, 8)
    servers[1].answer(1)
    history = LoadHistory()
    verdicts = [history.judge(server.read()) for _ in range(rounds + 1) for server in servers]
    assert verdicts[:3] == [SAME, RELOADED, SEVERAL]
    assert set(verdicts[3:]) == {SEVERAL}
    servers[1].reload()
    assert history.judge(servers[1].read()) is SAME  # their counters tell nothing


def test_a_model_that_is_reloaded_repeatedly_is_not_several() -> None:
    triton = FakeTriton()
    history = watch(triton)
    for _ in range(10):
        triton.reload()
        assert history.judge(triton.read()) is RELOADED
        triton.answer(1)
        assert history.judge(triton.read()) in (SAME, DOUBTFUL)


@pytest.mark.parametrize("number", [int, str], ids=["http", "grpc"])
def test_statistics_are_read_from_both_protocols(number: type) -> None:
    def entry(version: str) -> dict[str, object]:
        infer = {"count": number(3), "ns": number(40939660)}
        return {
            "version": version,
            "inference_stats": {"success": {"count": number(4), "ns": number(5)}},
            "batch_stats": [{"batch_size": number(2), "compute_infer": infer}],
        }

    statistics = {"model_stats": [entry("2"), entry("10"), {"version": "1"}]}
    expected = Reading(10, 4, {2: (3, 40939660)}, answered=1, sent=2)
    assert read_statistics(statistics, answered=1, sent=2) == expected
    unloaded: dict[str, object] = {"model_stats": []}
    assert read_statistics(unloaded, answered=0, sent=0) is None
