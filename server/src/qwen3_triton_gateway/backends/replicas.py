"""Several Tritons that serve the same model: the least busy live one runs the batch.

A replica takes work only after its own answer to the canary equals the answer of the
others: when the gateway starts, after every absence, after every reload that Triton tells, and at
intervals afterwards. One whose answer differs is excluded, and the others keep serving.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..batching import ModelSpeed
from ..errors import (
    BackendUnavailableError,
    DeadlineExceededError,
    EmbeddingServerError,
    StartupError,
)
from ..settings import Task
from ..tensors import Float32Vector, HiddenStates, PooledStates, TokenBatch
from .base import Backend, ModelSpec, Probe
from .probe import (
    SAME_MODEL,
    Pace,
    largest_agreement,
    run_probe,
    startup_failure,
)

Answer: TypeAlias = HiddenStates | PooledStates

logger: logging.Logger = logging.getLogger(__name__)

# A replica whose answer was wrong is asked again this often, and at once if it was restarted.
RETRY_INTERVAL_SECONDS = 5.0
# How long a batch waits for a replica that is just being checked, if there is no other.
CHECK_PATIENCE_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Replica:
    """One backend of the set.

    Attributes:
        overdue: When each batch that it is running is overdue, in the event loop's time.
        speed: How fast it was at the last ones.
        alive: Whether it gets batches.
        lost: Set when it stops answering, which ends its batches.
        problem: Why it is excluded although it answers; empty if it is not.
        generation: The backend's `generation` when it was last checked.
        doubts: The backend's `doubts`, likewise.
        due: When it is checked next, in the event loop's time.
        last_answer: When it last returned a batch, in the event loop's time.
        check: The check in progress, or the last one.
    """

    backend: Backend
    overdue: list[float] = field(default_factory=list[float])
    speed: ModelSpeed = field(default_factory=ModelSpeed)
    alive: bool = False
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    problem: str = ""
    generation: int = 0
    doubts: int = 0
    due: float = 0.0
    last_answer: float = 0.0
    check: asyncio.Task[None] | None = None

    @property
    def is_being_checked(self) -> bool:
        return self.check is not None and not self.check.done()

    async def infer(self, batch: TokenBatch, *, timeout_seconds: float, priority: int) -> Answer:
        """Run a batch, and measure it; see `Backend.infer`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        tokens = int(batch.attention_mask.sum())
        overdue = began + self.speed.allowed_seconds(tokens, timeout_seconds)
        self.overdue.append(overdue)
        try:
            answer = await _unless_lost(
                self,
                self.backend.infer(batch, timeout_seconds=timeout_seconds, priority=priority),
            )
            self.last_answer = loop.time()
            # Without the model's own time, batches in flight share it.
            seconds = answer.seconds or (self.last_answer - began) / len(self.overdue)
            self.speed.record(tokens, seconds)
            return answer
        finally:
            self.overdue.remove(overdue)

    def is_busy_since(self, began: float) -> bool:
        """Return whether it has answered since then, or may be silent because of a long batch."""
        now = asyncio.get_running_loop().time()
        return self.last_answer >= began or any(now < overdue for overdue in self.overdue)


class ReplicatedBackend:
    """A set of backends; one that stops answering, or answers wrongly, is excluded."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._replicas = [Replica(backend) for backend in backends]
        self._spec: ModelSpec | None = None
        self._canary: Probe | None = None
        self._expected: Float32Vector | None = None
        self._pace = Pace()

    @property
    def spec(self) -> ModelSpec:
        assert self._spec is not None, "connect() comes first"
        return self._spec

    @property
    def description(self) -> str:
        return "; ".join(replica.backend.description for replica in self._replicas)

    @property
    def states(self) -> dict[str, bool]:
        return {
            name: up and not replica.problem
            for replica in self._replicas
            for name, up in replica.backend.states.items()
        }

    @property
    def generation(self) -> int:
        return 0  # each replica is checked after its own reloads

    @property
    def doubts(self) -> int:
        return 0

    @property
    def problems(self) -> dict[str, str]:
        return {
            name: replica.problem
            for replica in self._replicas
            if replica.problem
            for name in replica.backend.states
        }

    @property
    def run_memory(self) -> None:
        """They run elsewhere."""

    @property
    def max_output_bytes(self) -> int | None:
        bounds = [replica.backend.max_output_bytes for replica in self._replicas]
        return min((bound for bound in bounds if bound is not None), default=None)

    async def connect(self) -> ModelSpec:
        """Connect to every replica that answers; one is enough.

        Raises:
            StartupError: A replica serves another model than the first.
            BackendUnavailableError: None answers.
        """
        outcomes = await asyncio.gather(
            *(self._connect(replica) for replica in self._replicas), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if not isinstance(failure, BackendUnavailableError):
                raise failure
        if len(failures) == len(self._replicas):
            raise failures[0]
        return self.spec

    async def adopt_canary(self, canary: Probe) -> bool:
        """Compare the replicas' answers to `canary`, and expect that of the majority from now on.

        Raises:
            StartupError: There is no majority, so any choice could be the wrong one.
            BackendUnavailableError: None answers.
        """
        connected = [replica for replica in self._replicas if replica.alive]
        loop = asyncio.get_running_loop()
        began = loop.time()
        slowest = 0.0

        async def probe(replica: Replica) -> Float32Vector:
            nonlocal slowest
            answer = await run_probe(replica.backend, canary)
            slowest = loop.time() - began
            return answer

        outcomes = await asyncio.gather(*map(probe, connected), return_exceptions=True)
        answers_of: dict[Replica, Float32Vector] = {}
        for replica, outcome in zip(connected, outcomes, strict=True):
            if isinstance(outcome, EmbeddingServerError):
                self._leave(replica, outcome.message)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                answers_of[replica] = outcome
        if not answers_of:
            errors = [error for error in outcomes if isinstance(error, EmbeddingServerError)]
            raise _choose_error(self.spec.task, errors)
        answers = list(answers_of.values())
        chosen, is_majority = largest_agreement(answers, self.spec.task)
        if not is_majority:
            names = ", ".join(replica.backend.description for replica in answers_of)
            msg = (
                f"{names} return different answers to the same canary, and neither side is in "
                "the majority. They have different weights: serve the same model at every address "
                "in TRITON_URL."
            )
            raise StartupError(msg)
        self._canary, self._expected = canary, answers[chosen]
        self._pace = Pace(slowest)
        for number, (replica, answer) in enumerate(answers_of.items(), start=1):
            # They take turns, so that a check never meets more than one of them.
            replica.due = loop.time() + self._pace.interval * number / len(answers_of)
            self._judge(replica, answer)
        return True

    async def infer(self, batch: TokenBatch, *, timeout_seconds: float, priority: int) -> Answer:
        tried: set[Replica] = set()
        while True:
            replica = await self._choose(tried, timeout_seconds)
            try:
                return await replica.infer(
                    batch, timeout_seconds=timeout_seconds, priority=priority
                )
            except BackendUnavailableError as error:
                # Inference is idempotent, so the batch may go to the next one.
                self._leave(replica, error.message)
                # One that is being checked gets work again only if its canary is correct.
                if not replica.is_being_checked:
                    tried.add(replica)

    async def is_ready(self) -> bool:
        return any(await asyncio.gather(*(self._watch(replica) for replica in self._replicas)))

    async def close(self) -> None:
        for replica in self._replicas:
            if replica.check is not None:
                replica.check.cancel()
            await replica.backend.close()

    async def _choose(self, tried: set[Replica], timeout_seconds: float) -> Replica:
        """Choose the least busy replica; if there is none, wait for one that is being checked."""
        while not (candidates := [r for r in self._replicas if r.alive and r not in tried]):
            checks = [
                replica.check
                for replica in self._replicas
                if replica.check is not None and replica.is_being_checked and replica not in tried
            ]
            patience = min(timeout_seconds, CHECK_PATIENCE_SECONDS)
            if not await _first_of(checks, patience):
                reasons = "; ".join(self.problems.values()) or self.description
                raise BackendUnavailableError(f"No replica answers: {reasons}.")
        return min(candidates, key=lambda replica: len(replica.overdue))

    async def _watch(self, replica: Replica) -> bool:
        """Exclude a replica that is away or reloaded, and start the check that is due."""
        now = asyncio.get_running_loop().time()
        if not await replica.backend.is_ready():
            self._leave(replica, "not ready")
            replica.problem, replica.due = "", 0.0
            if replica.check is not None:
                replica.check.cancel()  # what it found may not be true when the replica returns
            return False
        if replica.backend.generation != replica.generation:
            replica.generation = replica.backend.generation
            if replica.check is not None:
                replica.check.cancel()
                replica.check = None
            self._leave(replica, "its model was reloaded")
            replica.due = 0.0
        # A check in progress may have begun before the reload, so the doubt remains until the next.
        if replica.backend.doubts != replica.doubts and not replica.is_being_checked:
            replica.doubts = replica.backend.doubts
            replica.due = 0.0
        if now >= replica.due and not replica.is_being_checked:
            replica.check = asyncio.create_task(self._check(replica))
        return replica.alive

    async def _check(self, replica: Replica) -> None:
        """Ask a replica for its canary, connecting first if it was away."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            if not replica.alive:
                await self._compare_spec(replica)
            if self._canary is None:
                self._include(replica)
            else:
                timeout = self._pace.timeout
                answer = await run_probe(replica.backend, self._canary, timeout_seconds=timeout)
                self._judge(replica, answer)
        except DeadlineExceededError as error:
            if replica.alive and replica.is_busy_since(began):
                logger.warning("The canary was not answered: %s", error.message)
            else:
                self._reject(replica, error.message)
        except BackendUnavailableError as error:
            self._leave(replica, error.message)  # checked again once it is ready
            return
        except EmbeddingServerError as error:
            self._reject(replica, error.message)
        interval = RETRY_INTERVAL_SECONDS if replica.problem else self._pace.interval
        replica.due = loop.time() + interval

    def _judge(self, replica: Replica, answer: Float32Vector) -> None:
        """Include a replica if its canary has the expected answer, else exclude it."""
        assert self._expected is not None, "adopt_canary() comes first"
        difference = SAME_MODEL.find_difference(answer, self._expected, self.spec.task)
        if difference:
            msg = f"its answer to the canary {difference} the expected one: it serves other weights"
            self._reject(replica, msg)
            return
        if not replica.alive:
            logger.warning("%s is included: its canary is correct.", replica.backend.description)
        self._include(replica)

    async def _connect(self, replica: Replica) -> None:
        await self._compare_spec(replica)
        replica.generation = replica.backend.generation
        self._include(replica)

    async def _compare_spec(self, replica: Replica) -> None:
        """Check that a replica states the same model as the others."""
        spec = await replica.backend.connect()
        if self._spec is None:
            # The scheduler forms batches for all replicas, so its window counts every instance.
            instances = spec.instance_count * len(self._replicas)
            self._spec = dataclasses.replace(spec, instance_count=instances)
        elif not spec.is_same_model(self._spec):
            msg = (
                f"{replica.backend.description} serves a different model than the other addresses "
                f"in TRITON_URL: {spec} instead of {self._spec}."
            )
            raise StartupError(msg)

    def _include(self, replica: Replica) -> None:
        replica.alive = True
        replica.problem = ""
        replica.lost.clear()

    def _reject(self, replica: Replica, problem: str) -> None:
        """Exclude a replica that answers, but not as it should."""
        problem = problem.removesuffix(".")
        if replica.alive:
            self._leave(replica, problem)
        elif replica.problem != problem:
            logger.warning("%s stays excluded: %s.", replica.backend.description, problem)
        replica.problem = problem

    def _leave(self, replica: Replica, reason: str) -> None:
        if replica.alive:
            logger.warning(
                "%s is excluded: %s.", replica.backend.description, reason.removesuffix(".")
            )
            replica.due = 0.0
        replica.alive = False
        replica.lost.set()


def _choose_error(task: Task, errors: Sequence[EmbeddingServerError]) -> EmbeddingServerError:
    """Choose the error to raise when no replica answers the canary: one that waiting may fix."""
    for error in errors:
        if isinstance(error, (BackendUnavailableError, DeadlineExceededError)):
            return BackendUnavailableError(error.message)
    return startup_failure(task, errors[0])


async def _first_of(checks: Sequence[asyncio.Task[None]], timeout_seconds: float) -> bool:
    """Wait for one of the checks to end; return whether one did."""
    if not checks:
        return False
    done, _ = await asyncio.wait(
        checks, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
    )
    return bool(done)


async def _unless_lost(replica: Replica, call: Coroutine[Any, Any, Answer]) -> Answer:
    """Wait for a call, or cancel it when its replica is excluded.

    Raises:
        BackendUnavailableError: The replica stopped answering, or its answers are not trusted.
    """
    infer = asyncio.ensure_future(call)
    lost = asyncio.ensure_future(replica.lost.wait())
    try:
        await asyncio.wait({infer, lost}, return_when=asyncio.FIRST_COMPLETED)
        # Checked first: what an excluded replica has just returned may be from other weights.
        if replica.lost.is_set():
            infer.add_done_callback(_discard)
            raise BackendUnavailableError(f"{replica.backend.description} was excluded.")
        return infer.result()
    finally:
        infer.cancel()
        lost.cancel()


def _discard(call: asyncio.Future[Answer]) -> None:
    """Retrieve a result that is not used, or asyncio would report its exception as lost."""
    if not call.cancelled():
        call.exception()
