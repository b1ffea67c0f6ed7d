"""Several Tritons that serve the same model: the least busy live one runs the batch."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import BackendUnavailableError, EmbeddingServerError, StartupError
from ..tensors import HiddenStates, PooledStates, TokenBatch
from .base import Backend, ModelSpec

Answer: TypeAlias = HiddenStates | PooledStates

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Replica:
    """One backend of the set.

    Attributes:
        in_flight: Batches that it is running.
        alive: Whether it gets batches.
        lost: Set when it stops answering, which ends its batches.
    """

    backend: Backend
    in_flight: int = 0
    alive: bool = False
    lost: asyncio.Event = field(default_factory=asyncio.Event)


class ReplicatedBackend:
    """A set of backends; one that stops answering is excluded until it is ready again."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._replicas = [Replica(backend) for backend in backends]
        self._spec: ModelSpec | None = None

    @property
    def spec(self) -> ModelSpec:
        assert self._spec is not None, "connect() comes first"
        return self._spec

    @property
    def description(self) -> str:
        return "; ".join(replica.backend.description for replica in self._replicas)

    @property
    def states(self) -> dict[str, bool]:
        return {name: up for r in self._replicas for name, up in r.backend.states.items()}

    async def connect(self) -> ModelSpec:
        """Connect to every replica that answers; one is enough.

        Raises:
            StartupError: A replica serves another model than the first.
            BackendUnavailableError: None answers.
        """
        outcomes = await asyncio.gather(
            *(self._join(replica) for replica in self._replicas), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if not isinstance(failure, BackendUnavailableError):
                raise failure
        if len(failures) == len(self._replicas):
            raise failures[0]
        return self.spec

    async def infer(self, batch: TokenBatch, *, timeout_seconds: float, priority: int) -> Answer:
        tried: set[Replica] = set()
        while True:
            replica = self._least_busy(tried)
            replica.in_flight += 1
            try:
                return await _unless_lost(
                    replica,
                    replica.backend.infer(
                        batch, timeout_seconds=timeout_seconds, priority=priority
                    ),
                )
            except BackendUnavailableError as error:
                # Inference is idempotent, so the batch may go to the next one.
                self._leave(replica, error)
                tried.add(replica)
            finally:
                replica.in_flight -= 1

    async def is_ready(self) -> bool:
        return any(await asyncio.gather(*(self._probe(replica) for replica in self._replicas)))

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.backend.close()

    def _least_busy(self, tried: set[Replica]) -> Replica:
        candidates = [r for r in self._replicas if r.alive and r not in tried]
        if not candidates:
            raise BackendUnavailableError(f"No replica answers: {self.description}.")
        return min(candidates, key=lambda replica: replica.in_flight)

    async def _probe(self, replica: Replica) -> bool:
        if not await replica.backend.is_ready():
            self._leave(replica, None)
        elif not replica.alive:
            try:
                await self._join(replica)
            except EmbeddingServerError as error:
                logger.warning("%s stays excluded: %s", replica.backend.description, error.message)
        return replica.alive

    async def _join(self, replica: Replica) -> None:
        """Include a replica, after checking that it serves the same model as the others."""
        spec = await replica.backend.connect()
        if self._spec is None:
            # The scheduler forms batches for all replicas, so its window counts every instance.
            instances = spec.instance_count * len(self._replicas)
            self._spec = dataclasses.replace(spec, instance_count=instances)
        elif dataclasses.replace(spec, instance_count=self._spec.instance_count) != self._spec:
            msg = (
                f"{replica.backend.description} serves a different model than the other addresses "
                f"in TRITON_URL: {spec} instead of {self._spec}."
            )
            raise StartupError(msg)
        replica.alive = True
        replica.lost.clear()

    def _leave(self, replica: Replica, error: EmbeddingServerError | None) -> None:
        if replica.alive:
            reason = error.message if error else "not ready"
            logger.warning("%s is excluded: %s", replica.backend.description, reason)
        replica.alive = False
        replica.lost.set()


async def _unless_lost(replica: Replica, call: Coroutine[Any, Any, Answer]) -> Answer:
    """Wait for a call, or cancel it when a probe finds that its replica hangs.

    Raises:
        BackendUnavailableError: The replica stopped answering.
    """
    infer = asyncio.ensure_future(call)
    lost = asyncio.ensure_future(replica.lost.wait())
    try:
        await asyncio.wait({infer, lost}, return_when=asyncio.FIRST_COMPLETED)
        if infer.done():
            return infer.result()
        raise BackendUnavailableError(f"{replica.backend.description} stopped answering.")
    finally:
        infer.cancel()
        lost.cancel()
