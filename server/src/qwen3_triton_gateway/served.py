"""A model that the gateway serves, from connecting to draining, and whether it can be trusted."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from .admission import Admission
from .backends.base import Backend, ModelSpec, Probe
from .batching import BatchLimits, pad_batch
from .canary import Canary, check_stated_canary
from .errors import (
    DEADLINE_PASSED,
    BackendUnavailableError,
    DeadlineExceededError,
    ModelNotFoundError,
    shorten,
)
from .memory import in_worker
from .metrics import ModelMetrics, ModelState
from .pooling import unusable_rows
from .run_memory import LARGE_RUN_BYTES, available_bytes
from .scheduler import Scheduler
from .segments import MAX_WORD_CHARACTERS
from .settings import LENGTH_SETTINGS, ModelAlias, Settings
from .tensors import Float32Matrix, HiddenStates, PooledStates, TokenBatch
from .tokenization import TextTokenizer
from .tracing import batch_span
from .turns import QueuedText

logger: logging.Logger = logging.getLogger(__name__)

# What a name of the model says about texts if it is not an alias.
NO_ALIAS = ModelAlias()

CONNECT_INTERVAL_SECONDS = 0.5
WAITING_LOG_SECONDS = 5.0
# A model that answers nothing is probed for two seconds, so readiness follows it within three.
WATCH_INTERVAL_SECONDS = 0.5
# While it is unknown whether the model is the one of startup: one short batch decides.
PENDING_INTERVAL_SECONDS = 0.1
# How long a finished answer waits for that, before its caller is asked to retry.
CONFIRM_SECONDS = 10.0
# By now requests have had their time (see `server`): no caller waits for what is left.
DRAIN_SECONDS = 5.0
# Of what is available at start, so that the batches of two models fit, and later ones do if there
# is less. A longer text runs alone.
BATCH_SHARE_OF_MEMORY = 4
# Below this, a thread costs more than tokenizing does.
TOKENIZE_INLINE_CHARACTERS = 4096
# A queued text has a record, a future and their places in lists, and its tokens twice.
QUEUED_TEXT_BYTES = 1500
QUEUED_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests can be answered now.

    Attributes:
        ready: Whether requests are answered.
        backend_ready: Whether the model answers.
        reason: Why not; empty when ready.
    """

    ready: bool
    backend_ready: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; all 0 if every text was cached."""

    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0


class Steps(Protocol):
    """Work that is done a step at a time, such as a `Tokenization`."""

    @property
    def is_done(self) -> bool: ...

    def step(self) -> None: ...


class ServedModel(ABC):
    """A tokenizer, a backend, the queue in front of it, and the canary that watches it.

    A subclass knows what the model computes. Until `connect` has returned, nothing is known of the
    model but what the settings say.

    Attributes:
        kind: What it is, for errors: the gateway may serve a model of another kind by that name.
        backend: What runs the model.
        tokenizer: The model's tokenizer.
        settings: The gateway's settings.
        model_id: The model's name in answers.
        readiness: The result of the last check, less than three seconds ago.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        backend: Backend,
        tokenizer: TextTokenizer,
        settings: Settings,
        metrics: ModelMetrics,
        *,
        model_id: str,
        aliases: Mapping[str, ModelAlias],
        names_setting: str,
    ) -> None:
        """Prepare to serve; `connect` reaches the model.

        Args:
            backend: What runs it.
            tokenizer: Its tokenizer.
            settings: The gateway's settings.
            metrics: Its metrics.
            model_id: Its name, as far as the settings tell.
            aliases: Its other names.
            names_setting: The setting that adds a name, for errors.
        """
        self.backend = backend
        self.tokenizer = tokenizer
        self.settings = settings
        self.model_id: str = model_id
        self.readiness: Readiness = Readiness(ready=False, backend_ready=False, reason="starting")
        self._metrics = metrics
        self._aliases = aliases
        self._names_setting = names_setting
        self._scheduler: Scheduler | None = None
        self._canary: Canary | None = None
        self._backend_checks_itself = False
        self._generation = 0
        self._doubts = 0
        self._check: asyncio.Task[Readiness] | None = None
        # As of `readiness`, or metrics would show an unavailable backend of a model that is ready.
        self._backends: dict[str, bool] = backend.states
        self._problems: dict[str, str] = {}
        if not tokenizer.segmenter.knows_words:
            logger.warning(
                "The tokenizer file does not split words as Qwen3's does, so texts of more than "
                "%d characters are refused.",
                MAX_WORD_CHARACTERS,
            )

    @abstractmethod
    def _build_canary(self, spec: ModelSpec) -> Probe:
        """Build what the canary of a model runs.

        Raises:
            StartupError: The model has no output for that.
        """

    @abstractmethod
    async def _accept(self, spec: ModelSpec) -> BatchLimits:
        """Prepare for a model, and return the bounds of its batches.

        Raises:
            StartupError: The model cannot be served, or not with these settings.
            BackendUnavailableError: The model does not answer.
        """

    @abstractmethod
    def _describe(self, spec: ModelSpec) -> str:
        """Describe an accepted model for the log."""

    @abstractmethod
    def _rows(self, states: HiddenStates | PooledStates, batch: TokenBatch) -> Float32Matrix:
        """Return one row for each text of a batch, from what the model returned."""

    def _unusable(self, rows: Float32Matrix) -> list[int]:
        """List the rows that cannot be a text's result."""
        return unusable_rows(rows)

    @abstractmethod
    def _forget_answers(self) -> None:
        """Forget what was kept of answers: some may be from another model."""

    def require_ready(self) -> Scheduler:
        """Return the queue, while the model's answers can be trusted.

        A gateway that is shutting down still answers callers that have not noticed yet.

        Raises:
            BackendUnavailableError: The model is unavailable, or has changed since startup.
        """
        if self._scheduler is None or not self.readiness.ready:
            raise BackendUnavailableError(f"Not ready: {self.readiness.reason}.")
        return self._scheduler

    @property
    def admission(self) -> Admission | None:
        """The bounds of the queue; None while requests are refused for another reason."""
        is_serving = self._scheduler is not None and self.readiness.ready
        return self._scheduler.admission if self._scheduler and is_serving else None

    @property
    def spec(self) -> ModelSpec | None:
        """The model's interface, once it is connected."""
        return self.backend.spec if self._scheduler else None

    @property
    def names(self) -> list[str]:
        """Every name that a request may use for the model."""
        return list(dict.fromkeys([self.model_id, *self._aliases]))

    def alias_of(self, model: str | None) -> ModelAlias:
        """Return what the name in a request says about its texts.

        Raises:
            ModelNotFoundError: The name is neither the served model's ID nor an alias.
        """
        if model is None or model in self.names:
            return self._aliases.get(model or "", NO_ALIAS)
        allowed = " or ".join(map(repr, self.names))
        msg = (
            f"No {self.kind} {shorten(model)!r} is served here. Set `model` to {allowed}, or omit "
            "it. For programs that can do neither, start the gateway with this name in "
            f"{self._names_setting}."
        )
        raise ModelNotFoundError(msg, param="model")

    async def watch(self) -> None:
        """Keep `readiness` current until canceled."""
        while True:
            await self.check()
            is_pending = self._canary is not None and self._canary.is_pending
            soon = is_pending and self.readiness.backend_ready
            await asyncio.sleep(PENDING_INTERVAL_SECONDS if soon else WATCH_INTERVAL_SECONDS)

    async def connect(self) -> None:
        """Wait for the model, read its interface and run the canary.

        Raises:
            StartupError: The model and the settings do not match.
        """
        logged = -WAITING_LOG_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            try:
                spec = await self.backend.connect()
                await self._start(spec)
                break
            except BackendUnavailableError as error:
                reason = (
                    f"waiting for {self.backend.description}: {error.message.removesuffix('.')}"
                )
                self.readiness: Readiness = Readiness(
                    ready=False, backend_ready=False, reason=reason
                )
                if loop.time() - logged >= WAITING_LOG_SECONDS:
                    logger.warning("Waiting for %s: %s", self.backend.description, error.message)
                    logged = loop.time()
                await asyncio.sleep(CONNECT_INTERVAL_SECONDS)
        logger.info(
            "Serving %s with %s: %s", self.model_id, self.backend.description, self._describe(spec)
        )

    async def confirm(self, deadline: float) -> None:
        """Wait until the model that computed an answer is known to be the one of startup.

        It costs nothing, unless the model was away or reloaded and the canary has not run since.

        Args:
            deadline: When the request times out, in the event loop's time.

        Raises:
            BackendUnavailableError: It is another one, or it is not known in time.
        """
        canary = self._canary
        if canary is None or self._backend_checks_itself:
            return
        loop = asyncio.get_running_loop()
        end = min(deadline, loop.time() + CONFIRM_SECONDS)
        while canary.is_pending and loop.time() < end:
            await self.check_soon()
            await canary.settle(PENDING_INTERVAL_SECONDS)
        if canary.is_pending or canary.has_changed:
            problem = canary.problem or "the model was reloaded and has not been checked"
            raise BackendUnavailableError(f"Not ready: {problem}.")

    async def check_soon(self) -> None:
        """Check after a request found the model unavailable."""
        may_be_older = self._check is not None and not self._check.done()
        readiness = await self.check()
        if may_be_older and readiness.ready:
            await self.check()

    async def check(self) -> Readiness:
        """Update `readiness` from the backend and the canary; concurrent callers share a check."""
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._update_readiness())
        return await asyncio.shield(self._check)

    async def _update_readiness(self) -> Readiness:
        if self._canary is None:
            return self.readiness
        was_ready = self.readiness.ready
        backend_ready = await self.backend.is_ready()
        problem = self._find_problem(self._canary, backend_ready=backend_ready)
        problems = self.backend.problems
        if self._canary.has_changed or problems.keys() - self._problems.keys():
            self._forget_answers()
        self.readiness = Readiness(not problem, backend_ready, problem)
        self._backends, self._problems = self.backend.states, problems
        if was_ready and problem:
            logger.warning("%s is not ready: %s.", self.model_id, problem)
        elif not was_ready and not problem:
            logger.warning("%s is ready again.", self.model_id)
        return self.readiness

    def _find_problem(self, canary: Canary, *, backend_ready: bool) -> str:
        if self._backend_checks_itself:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.backend.problems.items())
            return "" if backend_ready else reasons or f"{self.backend.description} is unavailable"
        if not backend_ready:
            canary.distrust()
            return f"{self.backend.description} is unavailable"
        if self._generation != self.backend.generation:
            self._generation = self.backend.generation
            canary.suspect()
        if self._doubts != self.backend.doubts:
            self._doubts = self.backend.doubts
            canary.hasten()
        return canary.check()

    async def close(self) -> None:
        """Finish the batches in flight, then release the backend."""
        if self._scheduler is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await self._scheduler.drain()
        if self._check is not None:
            self._check.cancel()
        await self.backend.close()

    def state(self) -> ModelState:
        """Describe the queue, the batches in flight and the backends."""
        scheduler = self._scheduler
        return ModelState(
            lanes=scheduler.lane_states() if scheduler else [],
            batches_in_flight=scheduler.in_flight if scheduler else 0,
            requests_under_way=scheduler.requests_under_way if scheduler else 0,
            ready=self.readiness.ready,
            backends=self._backends,
            problems=self._problems,
        )

    async def _start(self, spec: ModelSpec) -> None:
        """Accept a model, and prepare its queue and its canary."""
        probe = self._build_canary(spec)
        checks_itself = await self.backend.adopt_canary(probe)
        limits = self._within_memory(await self._accept(spec))
        scheduler = Scheduler(
            self._run_batch,
            self._unusable,
            limits=limits,
            window=spec.instance_count + 1,
            max_queue_tokens=self.settings.max_queue_tokens,
            max_queue_requests=self.settings.max_queue_requests,
            metrics=self._metrics,
        )
        canary = Canary(
            self.backend,
            probe,
            last_answer=lambda: scheduler.last_answer,
            is_at_work=lambda: scheduler.is_at_work,
        )
        answer = await canary.start()
        check_stated_canary(spec.stated_canary, probe.batch, answer, task=spec.task)
        self._scheduler, self._canary = scheduler, canary
        self._backend_checks_itself = checks_itself
        self._generation, self._doubts = self.backend.generation, self.backend.doubts
        self.readiness = Readiness(ready=True, backend_ready=True)
        self._backends, self._problems = self.backend.states, self.backend.problems

    def _within_memory(self, limits: BatchLimits) -> BatchLimits:
        """Bound batches by the memory that is left, and warn of texts that do not fit into it."""
        memory = self.backend.run_memory
        if memory is None:
            return limits
        available = available_bytes()
        longest = memory.longest_text(available)
        if longest < limits.max_length:
            logger.warning(
                "%s is %s, but the %.1f GB of memory that are available suffice for texts of about "
                "%s tokens with this engine. Longer ones are refused with status 413. Lower it so "
                "that they are truncated, or see docs/cpu.md for what takes less.",
                LENGTH_SETTINGS[self.backend.spec.task],
                f"{limits.max_length:,}",
                available / 1e9,
                f"{longest:,}",
            )
        max_batch_bytes = max(LARGE_RUN_BYTES, available // BATCH_SHARE_OF_MEMORY)
        return replace(limits, memory=memory, max_batch_bytes=max_batch_bytes)

    async def _finish(self, steps: Steps, *, characters: int, deadline: float) -> None:
        """Do work in steps between which others get their turn.

        Args:
            steps: The work.
            characters: Its size; a thread does what is large.
            deadline: When it is given up, in the event loop's time.

        Raises:
            DeadlineExceededError: The deadline passed first.
        """
        while not steps.is_done:
            if characters <= TOKENIZE_INLINE_CHARACTERS:
                steps.step()
            else:
                await in_worker(steps.step)
            if asyncio.get_running_loop().time() > deadline:
                raise DeadlineExceededError(DEADLINE_PASSED)

    async def _run_batch(
        self, entries: Sequence[QueuedText], timeout_seconds: float
    ) -> Float32Matrix:
        lane = entries[0].lane
        batch = pad_batch(
            [entry.text for entry in entries],
            pad_token_id=self.tokenizer.end_token_id,
            max_length=self.tokenizer.max_length,
        )
        tokens = sum(entry.text.length for entry in entries)
        self._metrics.observe_batch(lane.label, batch, tokens)
        seconds = self._metrics.batch_seconds.labels(lane.label)
        with batch_span([entry.origin for entry in entries], batch), seconds.time():
            states = await self.backend.infer(
                batch, timeout_seconds=timeout_seconds, priority=lane.value
            )
        for entry in entries:
            entry.model_seconds = states.seconds
        return self._rows(states, batch)


def queue_and_infer_seconds(entries: Sequence[QueuedText]) -> tuple[float, float]:
    """Return how long the finished texts of a request waited, and then ran."""
    arrived = min(entry.arrived for entry in entries)
    started = min(entry.started for entry in entries)
    finished = max(entry.finished for entry in entries)
    return max(0.0, started - arrived), finished - started
