"""Measure candidates stage by stage, within a time budget.

Rounds alternate between the candidates of a stage, so that a machine that slows down
slows all of them. Their gateways stay up between the rounds while there is memory for them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from qwen3_triton_gateway.settings import WantedPrecision

from ..verify.cards import Float64Matrix
from ..verify.loss import compare
from .candidates import Candidate, Result, batch_candidates, choose_best, thread_candidates
from .gateway import CandidateError, CandidateGateway
from .machine import available_bytes
from .texts import mixed_texts, spread_sample

Stage: TypeAlias = Literal["engine", "threads", "batch"]

MAX_TEXTS, MIN_TEXTS, PILOT_TEXTS, FIRST_TEXTS = 240, 24, 16, 2
MAX_ROUNDS, QUERIES = 5, 8
# A round of all texts takes at most and at least this long with the first candidate.
LONGEST_ROUND_SECONDS, SHORTEST_ROUND_SECONDS = 10.0, 3.0
# By when each stage ends, in parts of the budget.
STAGE_ENDS: dict[Stage, float] = {"engine": 0.6, "threads": 0.8, "batch": 1.0}
SUBJECTS: dict[Stage, str] = {
    "engine": "Engines were",
    "threads": "Other numbers of threads were",
    "batch": "Smaller batches were",
}
# The texts of the first stage are as many as three rounds allow, and a warm-up.
PLANNED_ROUNDS, MAX_ENGINES = 4, 4
# Times the memory of the largest gateway so far; with less, others end before one starts.
MEMORY_RESERVE = 1.2


@dataclass(frozen=True, slots=True)
class Workload:
    """The texts of a round."""

    texts: list[str]
    passes: int

    @classmethod
    def for_speed(cls, texts_per_second: float, seconds: float) -> Workload:
        """Choose as many texts as take about `seconds`, of all lengths in the same proportions."""
        wanted = round(texts_per_second * min(seconds, LONGEST_ROUND_SECONDS))
        count = max(MIN_TEXTS, min(MAX_TEXTS, wanted))
        passes = round(texts_per_second * min(seconds, SHORTEST_ROUND_SECONDS) / count)
        return cls(spread_sample(mixed_texts(MAX_TEXTS), count), max(1, passes))


@dataclass
class Outcome:
    """What was measured, and the best of it.

    Attributes:
        best: None if nothing that was measured can be recommended.
        notes: What was left out, as sentences.
    """

    results: list[Result]
    best: Result | None = None
    notes: list[str] = field(default_factory=list[str])
    texts: int = 0
    seconds: float = 0.0

    def document(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "notes": self.notes,
            "texts": self.texts,
            "seconds": round(self.seconds, 1),
            "candidates": [
                result.document() | {"recommended": result is self.best} for result in self.results
            ],
        }


class Search:
    """One run of `qwen3-triton tune`."""

    def __init__(
        self,
        base: dict[str, str],
        *,
        seconds: float,
        cores: int,
        precision: WantedPrecision | None,
        on_progress: Callable[[str], None],
    ) -> None:
        """Prepare to measure.

        Args:
            base: Variables that all candidates share.
            seconds: The budget. One round of each engine is measured even if it takes longer.
            cores: Cores that have work.
            precision: The only one that may be recommended; None for all.
            on_progress: Called often, with what is done.
        """
        self._base = base
        self._seconds = seconds
        self._cores = cores
        self._precision = precision
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._gateways: dict[int, CandidateGateway] = {}
        self._workload: Workload | None = None
        self._reference: Float64Matrix | None = None
        self._activity = ""

    async def run(self, engines: Sequence[Result]) -> Outcome:
        """Measure engines, then threads and tokens per batch of the best one."""
        outcome = Outcome(list(engines))
        try:
            rounds = await self._measure(outcome.results, "engine")
            wanted = [r for r in outcome.results if self._precision in (None, r.precision)]
            outcome.best = choose_best(wanted, rounds)
            if outcome.best:
                found = thread_candidates(outcome.best.candidate, self._cores)
                await self._refine(outcome, "threads", found)
                found = batch_candidates(outcome.best.candidate, outcome.best.tokens_per_second)
                await self._refine(outcome, "batch", found)
        finally:
            await self._stop_all()
        outcome.texts = len(self._workload.texts) if self._workload else 0
        outcome.seconds = time.monotonic() - self._began
        return outcome

    async def _refine(self, outcome: Outcome, stage: Stage, others: Sequence[Candidate]) -> None:
        """Measure variants of the best candidate next to it, if there is time for one round."""
        best = outcome.best
        assert best is not None
        if not others:
            return
        await self._stop_all(but=best)
        pass_seconds = self._round_seconds(best)
        start_seconds = self._gateway_of(best).start_seconds
        needed = len(others) * (start_seconds + 2 * pass_seconds) + pass_seconds
        if time.monotonic() - self._began + needed > self._seconds * STAGE_ENDS[stage]:
            outcome.notes.append(f"{SUBJECTS[stage]} not tried for lack of time: raise --minutes.")
            return
        results = [best, *(Result(candidate) for candidate in others)]
        outcome.results += results[1:]
        rounds = await self._measure(results, stage)
        outcome.best = choose_best(results, rounds) or best

    async def _measure(self, results: Sequence[Result], stage: Stage) -> int:
        """Measure rounds of these in turns until the stage ends, and return how many."""
        for result in results:
            await self._attempt(result, self._prepare, "starting, and warming up")
        ends = self._began + self._seconds * STAGE_ENDS[stage]
        rounds, seconds = 0, 0.0
        while rounds < MAX_ROUNDS and (not rounds or time.monotonic() + seconds < ends):
            began = time.monotonic()
            for result in results:
                await self._attempt(result, self._run_round, f"round {rounds + 1}")
            rounds, seconds = rounds + 1, time.monotonic() - began
        return rounds

    async def _attempt(
        self, result: Result, step: Callable[[Result], Awaitable[None]], activity: str
    ) -> None:
        """Take a step with a candidate that has not failed; one that fails keeps its reason."""
        if result.problem:
            return
        self._activity = f"{result.candidate.name}: {activity}"
        try:
            await step(result)
        except CandidateError as error:
            result.problem = str(error)
            await self._stop(result)

    async def _prepare(self, result: Result) -> None:
        """Start a candidate, choose the texts if it is the first, and compare its vectors."""
        if self._gateway_of(result).is_running:  # the best of the stage before
            return
        gateway = await self._start(result)
        if self._workload is None:
            pilot = spread_sample(mixed_texts(MAX_TEXTS), PILOT_TEXTS)
            await gateway.embed(pilot)
            speed = (await gateway.embed(pilot)).texts_per_second
            share = self._seconds * STAGE_ENDS["engine"] / (PLANNED_ROUNDS * MAX_ENGINES)
            self._workload = Workload.for_speed(speed, share)
        warm_up = await gateway.embed(self._workload.texts)
        result.tokens_per_text = warm_up.tokens_per_text
        if self._reference is not None:
            result.loss = compare(self._reference, warm_up.vectors)
        elif result.precision == "float32":
            self._reference = warm_up.vectors

    async def _run_round(self, result: Result) -> None:
        assert self._workload is not None, "_prepare() comes first"
        gateway = self._gateway_of(result)
        if not gateway.is_running:
            gateway = await self._start(result)
            await gateway.embed(self._workload.texts)  # each shape is compiled when it comes first
        run = await gateway.embed(self._workload.texts, passes=self._workload.passes)
        latency_ms = await gateway.time_queries(QUERIES)
        result.rates.append(run.texts_per_second)
        result.latencies_ms.append(latency_ms)
        if memory_bytes := gateway.memory_bytes:
            result.memory_bytes = max(memory_bytes, result.memory_bytes or 0)

    async def _start(self, result: Result) -> CandidateGateway:
        if self._is_memory_short():
            await self._stop_all()
        gateway = self._gateway_of(result)
        await gateway.start()
        # From these, the gateway learns the model's speed. Its first batch could otherwise have all
        # texts in it and take a minute, in which a canary that waits for it counts as a failure.
        await gateway.embed(mixed_texts(FIRST_TEXTS))
        return gateway

    def _is_memory_short(self) -> bool:
        held = [g.memory_bytes or 0 for g in self._gateways.values() if g.is_running]
        return bool(held) and available_bytes(sum(held)) < MEMORY_RESERVE * max(held)

    def _gateway_of(self, result: Result) -> CandidateGateway:
        """Return the gateway of a candidate, running or not."""
        if id(result) not in self._gateways:
            settings = self._base | result.candidate.settings()
            self._gateways[id(result)] = CandidateGateway(settings, self._report)
        return self._gateways[id(result)]

    def _round_seconds(self, result: Result) -> float:
        assert self._workload is not None
        texts = len(self._workload.texts) * self._workload.passes
        return texts / result.texts_per_second + QUERIES * result.latency_ms / 1000

    async def _stop(self, result: Result) -> None:
        await self._gateway_of(result).stop()

    async def _stop_all(self, *, but: Result | None = None) -> None:
        kept = None if but is None else id(but)
        gateways = [gateway for key, gateway in self._gateways.items() if key != kept]
        for gateway in gateways:  # all of them, even if a second Ctrl-C interrupts the waiting
            gateway.terminate()
        for gateway in gateways:
            await gateway.stop()

    def _report(self) -> None:
        self._on_progress(self._activity)
