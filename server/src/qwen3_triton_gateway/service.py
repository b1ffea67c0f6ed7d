"""What the routes talk to: the parts of a running gateway, and whether it can be trusted now."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from .backends import Backend, ModelSpec
from .canary import Canary
from .embedder import Embedder
from .errors import BackendUnavailableError, ModelNotFoundError, StartupError
from .fingerprint import EmbeddingSpace
from .metrics import GatewayState, Metrics
from .prompts import PROMPT_VERSION
from .settings import Settings
from .tokenization import TextTokenizer

logger = logging.getLogger(__name__)

CONNECT_INTERVAL_SECONDS = 0.5
WAITING_LOG_SECONDS = 5.0
# With the second that a probe may take, readiness follows the model within two.
WATCH_INTERVAL_SECONDS = 0.5
# Requests have had their time when this begins (see `server`): what is left, nobody waits for.
DRAIN_SECONDS = 5.0
# The family's sizes, told apart by their hidden size (model cards of Qwen3-Embedding).
MODEL_IDS = {
    1024: "Qwen/Qwen3-Embedding-0.6B",
    2560: "Qwen/Qwen3-Embedding-4B",
    4096: "Qwen/Qwen3-Embedding-8B",
}


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests can be answered now, and why not; `backend_ready` is the model's side."""

    ready: bool
    backend_ready: bool
    reason: str = ""


class EmbeddingService:
    """Own tokenizer, backend and embedder; connect, watch, and answer whether all is well."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        """Load the tokenizer; the model is reached by `connect`.

        Raises:
            StartupError: no tokenizer where the settings say.
        """
        tokenizer_path = settings.tokenizer_path or settings.model_dir
        if tokenizer_path is None:
            msg = (
                "TOKENIZER_PATH is not set: name the folder that holds the model's tokenizer.json."
            )
            raise StartupError(msg)
        self.settings = settings
        self.tokenizer = TextTokenizer(tokenizer_path, max_length=settings.max_length)
        if not self.tokenizer.appends_end_token:
            logger.warning("The tokenizer file appends no <|endoftext|>; the gateway does.")
        self.backend = backend
        self.metrics = Metrics()
        self.metrics.observe_state(self.state)
        self.stopping = False
        self._readiness = Readiness(ready=False, backend_ready=False, reason="starting")
        self._embedder: Embedder | None = None
        self._canary: Canary | None = None
        self._early_check: asyncio.Task[Readiness] | None = None
        self._space: EmbeddingSpace | None = None
        self._model_id = settings.model_id or "unknown"

    @property
    def readiness(self) -> Readiness:
        """Say how it stood when the model was asked last, less than two seconds ago."""
        if self.stopping:
            return Readiness(False, self._readiness.backend_ready, "the gateway is shutting down")
        return self._readiness

    @property
    def embedder(self) -> Embedder:
        """Give the embedder while its vectors can be had and trusted.

        A gateway that shuts down still answers those who did not hear of it yet.

        Raises:
            BackendUnavailableError: the model is away, or another than at start.
        """
        if self._embedder is None or not self._readiness.ready:
            raise BackendUnavailableError(f"Not ready: {self._readiness.reason}.")
        return self._embedder

    @property
    def spec(self) -> ModelSpec | None:
        return self.backend.spec if self._embedder else None

    @property
    def model_id(self) -> str:
        return self._model_id

    @property
    def model_names(self) -> list[str]:
        """Every name that a request may call the model by."""
        return [self.model_id, *self.settings.model_aliases]

    def fingerprint(self, dimensions: int) -> str:
        """Name the embedding space of vectors cut to `dimensions`."""
        assert self._space is not None, "connect() comes first"
        return self._space.fingerprint(dimensions)

    def check_model_name(self, model: str | None) -> None:
        """Refuse a request for another model than the served one.

        Raises:
            ModelNotFoundError: the name is neither the served model's id nor an alias.
        """
        if model is None or model in self.model_names:
            return
        allowed = " or ".join(map(repr, self.model_names))
        msg = f"Model {model!r} is not served here; `model` can be {allowed}."
        raise ModelNotFoundError(msg, param="model")

    async def connect(self) -> None:
        """Learn the model, wait for it as long as it is away, and embed the canary.

        Raises:
            StartupError: the model and the settings do not fit together.
        """
        logged = -WAITING_LOG_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            try:
                spec = await self.backend.connect()
                await self._accept(spec)
                break
            except BackendUnavailableError as error:
                reason = f"waiting for {self.backend.description}"
                self._readiness = Readiness(ready=False, backend_ready=False, reason=reason)
                if loop.time() - logged >= WAITING_LOG_SECONDS:
                    logger.warning("Waiting for %s: %s", self.backend.description, error.message)
                    logged = loop.time()
                await asyncio.sleep(CONNECT_INTERVAL_SECONDS)
        logger.info(
            "Serving %s by %s: hidden size %d, %s, batches of up to %d.",
            self.model_id,
            self.backend.description,
            spec.hidden_size,
            "pooled in the graph" if spec.pooling == "in_graph" else "pooled here",
            spec.max_batch_size,
        )

    async def watch(self) -> None:
        """Keep `readiness` current until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)

    async def check_soon(self) -> None:
        """Check after a request found the model away; those who ask meanwhile share one check."""
        if self._early_check is None or self._early_check.done():
            self._early_check = asyncio.create_task(self.check())
        await asyncio.shield(self._early_check)

    async def check(self) -> Readiness:
        """Ask the backend and the canary, and remember the answer."""
        if self._canary is None:
            return self._readiness
        was = self._readiness.ready
        backend_ready = await self.backend.is_ready()
        if backend_ready:
            trouble = self._canary.check()
        else:
            self._canary.distrust()
            trouble = f"{self.backend.description} is away"
        self._readiness = Readiness(not trouble, backend_ready, trouble)
        if was and trouble:
            logger.warning("Not ready: %s.", trouble)
        elif not was and not trouble:
            logger.warning("Ready again.")
        return self._readiness

    async def close(self) -> None:
        """Finish the batches in flight, then let go of the backend."""
        if self._embedder is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await self._embedder.scheduler.drain()
        await self.backend.close()

    def state(self) -> GatewayState:
        """Say what waits, what runs and who answers now."""
        scheduler = self._embedder.scheduler if self._embedder else None
        return GatewayState(
            lanes=scheduler.lane_states() if scheduler else [],
            batches_in_flight=scheduler.in_flight if scheduler else 0,
            requests_under_way=scheduler.requests_under_way if scheduler else 0,
            cache_bytes=self._embedder.cache.used_bytes if self._embedder else 0,
            ready=self.readiness.ready,
            backends=self.backend.states,
        )

    async def _accept(self, spec: ModelSpec) -> None:
        output_dim = self.settings.output_dim
        if output_dim > spec.hidden_size:
            msg = (
                f"EMBED_OUTPUT_DIM is {output_dim}, but model {spec.name!r} has hidden size "
                f"{spec.hidden_size}. Lower EMBED_OUTPUT_DIM or serve a larger model."
            )
            raise StartupError(msg)
        self._model_id = self.settings.model_id or MODEL_IDS.get(spec.hidden_size, spec.name)
        self._space = EmbeddingSpace(
            model_id=self._model_id,
            weights_digest=spec.weights_digest,
            tokenizer_digest=self.tokenizer.digest,
            pooling="last_token",
            prompt_version=PROMPT_VERSION,
            dtype=spec.output.dtype.name,
        )
        embedder = Embedder(self.backend, self.tokenizer, self._space, self.settings, self.metrics)
        canary = Canary(embedder)
        await canary.start()
        self._embedder, self._canary = embedder, canary
        self._readiness = Readiness(ready=True, backend_ready=True)
