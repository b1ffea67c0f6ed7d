"""The parts of a running gateway, and whether its answers can be trusted now."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from .admission import Admission
from .backends.base import Backend, ModelSpec
from .backends.behavior import Behavior, accept_pooling, probe_behavior
from .canary import Canary, canary_batch, check_stated_canary
from .embedder import Embedder
from .errors import BackendUnavailableError, ModelNotFoundError, StartupError, shorten
from .fingerprint import EmbeddingSpace
from .memory import MemoryBudget
from .metrics import GatewayState, Metrics
from .model_files import tokenizer_of
from .segments import MAX_WORD_CHARACTERS
from .settings import ModelAlias, Settings
from .tokenization import PROMPT_VERSION, TextTokenizer

logger = logging.getLogger(__name__)

CONNECT_INTERVAL_SECONDS = 0.5
WAITING_LOG_SECONDS = 5.0
# A probe may take a second, so readiness follows the model within two.
WATCH_INTERVAL_SECONDS = 0.5
# While it is unknown whether the model is the one of startup: one short batch decides.
PENDING_INTERVAL_SECONDS = 0.1
# How long a finished answer waits for that, before its caller is asked to retry.
CONFIRM_SECONDS = 10.0
# By now requests have had their time (see `server`): no caller waits for what is left.
DRAIN_SECONDS = 5.0
# The sizes of the family by their hidden size (model cards of Qwen3-Embedding).
MODEL_IDS = {
    1024: "Qwen/Qwen3-Embedding-0.6B",
    2560: "Qwen/Qwen3-Embedding-4B",
    4096: "Qwen/Qwen3-Embedding-8B",
}


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


class EmbeddingService:
    """The owner of tokenizer, backend and embedder, which connects and watches the model."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        """Load the tokenizer; `connect` reaches the model.

        Raises:
            StartupError: The tokenizer is missing or invalid.
        """
        tokenizer_path = settings.tokenizer_path
        if tokenizer_path is None and settings.model_dir is not None:
            tokenizer_path = tokenizer_of(settings.model_dir)
        if tokenizer_path is None:
            msg = (
                "TOKENIZER_PATH is not set. Set it to the folder that contains the model's "
                "tokenizer.json."
            )
            raise StartupError(msg)
        self.settings = settings
        self.tokenizer = TextTokenizer(tokenizer_path, max_length=settings.max_length)
        if not self.tokenizer.appends_end_token:
            logger.warning("The tokenizer file does not append <|endoftext|>; the gateway does.")
        if not self.tokenizer.segmenter.knows_words:
            logger.warning(
                "The tokenizer file does not split words as Qwen3's does, so texts of more than "
                "%d characters are refused.",
                MAX_WORD_CHARACTERS,
            )
        self.backend = backend
        self.metrics = Metrics()
        self.memory = MemoryBudget(settings.max_memory_bytes, self.metrics)
        self.metrics.observe_state(self.state)
        self.stopping = False
        self._readiness = Readiness(ready=False, backend_ready=False, reason="starting")
        self.behavior = Behavior("unknown")
        self.pooling: str = settings.pooling
        self._embedder: Embedder | None = None
        self._canary: Canary | None = None
        self._backend_checks_itself = False
        self._generation = 0
        self._doubts = 0
        self._problems: dict[str, str] = {}
        self._early_check: asyncio.Task[Readiness] | None = None
        self._space: EmbeddingSpace | None = None
        self._model_id = settings.model_id or "unknown"

    @property
    def readiness(self) -> Readiness:
        """The result of the last check, less than two seconds ago."""
        if self.stopping:
            return Readiness(False, self._readiness.backend_ready, "the gateway is shutting down")
        return self._readiness

    @property
    def embedder(self) -> Embedder:
        """The embedder, while its vectors can be trusted.

        A gateway that is shutting down still answers callers that have not noticed yet.

        Raises:
            BackendUnavailableError: The model is unavailable, or has changed since startup.
        """
        if self._embedder is None or not self._readiness.ready:
            raise BackendUnavailableError(f"Not ready: {self._readiness.reason}.")
        return self._embedder

    @property
    def admission(self) -> Admission | None:
        """The bounds of the queue; None while requests are refused for another reason."""
        is_serving = self._embedder is not None and self.readiness.ready
        return self._embedder.scheduler.admission if self._embedder and is_serving else None

    @property
    def spec(self) -> ModelSpec | None:
        return self.backend.spec if self._embedder else None

    @property
    def model_id(self) -> str:
        return self._model_id

    @property
    def model_names(self) -> list[str]:
        """Every name that a request may use for the model."""
        return list(dict.fromkeys([self.model_id, *self.settings.model_aliases]))

    def fingerprint(self, dimensions: int) -> str:
        """Return the fingerprint of vectors with this many dimensions."""
        assert self._space is not None, "connect() comes first"
        return self._space.fingerprint(dimensions)

    def alias_of(self, model: str | None) -> ModelAlias:
        """Return what the name in a request says about its texts.

        Raises:
            ModelNotFoundError: The name is neither the served model's ID nor an alias.
        """
        if model is None or model in self.model_names:
            return self.settings.model_aliases.get(model or "", ModelAlias())
        allowed = " or ".join(map(repr, self.model_names))
        msg = (
            f"Model {shorten(model)!r} is not served here. Set `model` to {allowed}, or omit it. "
            "For programs that can do neither, start the gateway with this name in "
            "EMBED_MODEL_ALIASES."
        )
        raise ModelNotFoundError(msg, param="model")

    async def connect(self) -> None:
        """Wait for the model, read its interface and embed the canary sentence.

        Raises:
            StartupError: The model and the settings do not match.
        """
        logged = -WAITING_LOG_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            try:
                spec = await self.backend.connect()
                await self._accept(spec)
                break
            except BackendUnavailableError as error:
                reason = (
                    f"waiting for {self.backend.description}: {error.message.removesuffix('.')}"
                )
                self._readiness = Readiness(ready=False, backend_ready=False, reason=reason)
                if loop.time() - logged >= WAITING_LOG_SECONDS:
                    logger.warning("Waiting for %s: %s", self.backend.description, error.message)
                    logged = loop.time()
                await asyncio.sleep(CONNECT_INTERVAL_SECONDS)
        logger.info(
            "Serving %s with %s: hidden size %d, pooled in the %s, up to %d texts per batch.",
            self.model_id,
            self.backend.description,
            spec.hidden_size,
            "model" if spec.pooling == "in_graph" else "gateway",
            spec.max_batch_size,
        )

    async def watch(self) -> None:
        """Keep `readiness` current until cancelled."""
        while True:
            await self.check()
            is_pending = self._canary is not None and self._canary.is_pending
            soon = is_pending and self._readiness.backend_ready
            await asyncio.sleep(PENDING_INTERVAL_SECONDS if soon else WATCH_INTERVAL_SECONDS)

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
        """Check after a request found the model unavailable; concurrent callers share a check."""
        if self._early_check is None or self._early_check.done():
            self._early_check = asyncio.create_task(self.check())
        await asyncio.shield(self._early_check)

    async def check(self) -> Readiness:
        """Update `readiness` from the backend and the canary."""
        if self._canary is None:
            return self._readiness
        was_ready = self._readiness.ready
        backend_ready = await self.backend.is_ready()
        problem = self._find_problem(self._canary, backend_ready=backend_ready)
        self._forget_wrong_vectors()
        self._readiness = Readiness(not problem, backend_ready, problem)
        if was_ready and problem:
            logger.warning("Not ready: %s.", problem)
        elif not was_ready and not problem:
            logger.warning("Ready again.")
        return self._readiness

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

    def _forget_wrong_vectors(self) -> None:
        """Empty the cache when a model turns out to be another one: some may be from it."""
        problems = self.backend.problems
        changed = self._canary is not None and self._canary.has_changed
        if self._embedder is not None and (changed or problems.keys() - self._problems.keys()):
            self._embedder.cache.clear()
        self._problems = problems

    async def close(self) -> None:
        """Finish the batches in flight, then release the backend."""
        if self._embedder is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await self._embedder.scheduler.drain()
        await self.backend.close()

    def state(self) -> GatewayState:
        """Describe the queue, the batches in flight and the backends."""
        scheduler = self._embedder.scheduler if self._embedder else None
        return GatewayState(
            lanes=scheduler.lane_states() if scheduler else [],
            batches_in_flight=scheduler.in_flight if scheduler else 0,
            requests_under_way=scheduler.requests_under_way if scheduler else 0,
            memory_bytes=self.memory.used_bytes,
            cache_bytes=self._embedder.cache.used_bytes if self._embedder else 0,
            ready=self.readiness.ready,
            backends=self.backend.states,
            problems=self.backend.problems,
        )

    def _log_behavior(self, behavior: Behavior) -> None:
        if behavior.pooling == "unknown":
            logger.warning("The model is too slow to be probed: its pooling is taken on trust.")
        if not behavior.shares_batches:
            logger.warning("Texts run one by one: in a batch, this model fails or is wrong.")

    async def _accept(self, spec: ModelSpec) -> None:
        output_dim = self.settings.output_dim
        if output_dim > spec.hidden_size:
            msg = (
                f"EMBED_OUTPUT_DIM is {output_dim}, but model {spec.name!r} has hidden size "
                f"{spec.hidden_size}. Lower EMBED_OUTPUT_DIM or serve a larger model."
            )
            raise StartupError(msg)
        self._model_id = self.settings.model_id or MODEL_IDS.get(spec.hidden_size, spec.name)
        batch = canary_batch(self.tokenizer)
        checks_itself = await self.backend.adopt_canary(batch)
        self.behavior = await probe_behavior(self.backend, self.tokenizer)
        self._log_behavior(self.behavior)
        self.pooling = accept_pooling(spec, self.behavior, self.settings.pooling)
        self._space = EmbeddingSpace(
            model_id=self._model_id,
            weights_digest=spec.weights_digest,
            tokenizer_digest=self.tokenizer.digest,
            pooling=self.pooling,
            prompt_version=PROMPT_VERSION,
            dtype=spec.output.dtype.name,
            precision=spec.precision,
        )
        embedder = Embedder(
            self.backend,
            self.tokenizer,
            self._space,
            self.settings,
            self.metrics,
            shares_batches=self.behavior.shares_batches,
        )
        canary = Canary(self.backend, batch, last_answer=lambda: embedder.scheduler.last_answer)
        check_stated_canary(spec.stated_canary, batch, await canary.start())
        self._embedder, self._canary = embedder, canary
        self._backend_checks_itself = checks_itself
        self._generation, self._doubts = self.backend.generation, self.backend.doubts
        self._readiness = Readiness(ready=True, backend_ready=True)
