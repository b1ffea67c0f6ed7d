"""What the routes talk to: the parts of a running gateway, and whether it can be trusted now."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from .backends import Backend, ModelSpec
from .embedder import Embedder
from .errors import (
    BackendError,
    BackendUnavailableError,
    BadVectorError,
    EmbeddingServerError,
    ModelNotFoundError,
    StartupError,
)
from .fingerprint import EmbeddingSpace
from .prompts import PROMPT_VERSION
from .settings import Settings
from .tensors import Float32Matrix
from .tokenization import TextTokenizer

logger = logging.getLogger(__name__)

CONNECT_INTERVAL_SECONDS = 0.5
WAITING_LOG_SECONDS = 5.0
WATCH_INTERVAL_SECONDS = 1.0
# A canary run costs one short batch: often enough to notice swapped weights, rare enough not to
# show in the load.
CANARY_INTERVAL_SECONDS = 30.0
CANARY_TIMEOUT_SECONDS = 10.0
# Requests have had their time when this begins (see `server`): what is left, nobody waits for.
DRAIN_SECONDS = 5.0
CANARY_TEXT = "The importance of a canary: it notices bad air before the miners do."
# Equal weights on equal hardware agree to 1e-6 in float32 and 1e-4 in float16, whatever the batch;
# other weights, another padding or a missing end token fall far below.
CANARY_COSINE = 0.999
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
        self.readiness = Readiness(ready=False, backend_ready=False, reason="starting")
        self._embedder: Embedder | None = None
        self._space: EmbeddingSpace | None = None
        self._model_id = settings.model_id or "unknown"
        self._canary: Float32Matrix | None = None
        self._canary_due = 0.0
        self._check_lock = asyncio.Lock()

    @property
    def embedder(self) -> Embedder:
        """Give the embedder while its vectors can be had and trusted.

        Raises:
            BackendUnavailableError: the model is away, or another than at start.
        """
        if self._embedder is None or not self.readiness.ready:
            raise BackendUnavailableError(f"Not ready: {self.readiness.reason}.")
        return self._embedder

    @property
    def spec(self) -> ModelSpec | None:
        return self.backend.spec if self._embedder else None

    @property
    def model_id(self) -> str:
        return self._model_id

    @property
    def queued_tokens(self) -> int:
        return self._embedder.scheduler.queued_tokens if self._embedder else 0

    @property
    def batches_in_flight(self) -> int:
        return self._embedder.scheduler.in_flight if self._embedder else 0

    def fingerprint(self, dimensions: int) -> str:
        """Name the embedding space of vectors cut to `dimensions`."""
        assert self._space is not None, "connect() comes first"
        return self._space.fingerprint(dimensions)

    def check_model_name(self, model: str | None) -> None:
        """Refuse a request for another model than the served one.

        Raises:
            ModelNotFoundError: the name is neither the served model's id nor an alias.
        """
        served = [self.model_id, *self.settings.model_aliases]
        if model is None or model in served:
            return
        msg = (
            f"Model {model!r} is not served here; `model` can be {' or '.join(map(repr, served))}."
        )
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
                self._accept(spec)
                await self.check()
                break
            except BackendUnavailableError as error:
                self._embedder = None
                self.readiness = Readiness(
                    ready=False,
                    backend_ready=False,
                    reason=f"waiting for {self.backend.description}",
                )
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
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            was = self.readiness
            now = await self.check()
            if was.ready != now.ready:
                logger.warning("Ready again." if now.ready else f"Not ready: {now.reason}.")

    async def check(self) -> Readiness:
        """Ask the backend, and where it is due the canary, and remember the answer."""
        if self._embedder is None:
            return self.readiness
        async with self._check_lock:
            self.readiness = await self._check(self._embedder)
        return self.readiness

    async def close(self) -> None:
        """Finish the batches in flight, then let go of the backend."""
        if self._embedder is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await self._embedder.scheduler.drain()
        await self.backend.close()

    def _accept(self, spec: ModelSpec) -> None:
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
        self._embedder = Embedder(self.backend, self.tokenizer, self.settings)

    async def _check(self, embedder: Embedder) -> Readiness:
        if not await self.backend.is_ready():
            # Whoever comes back may have been started with other weights.
            self._canary_due = 0.0
            reason = f"{self.backend.description} is away"
            return Readiness(ready=False, backend_ready=False, reason=reason)
        loop = asyncio.get_running_loop()
        if loop.time() < self._canary_due:
            return Readiness(ready=True, backend_ready=True)
        readiness = await self._sing(embedder)
        if readiness.ready:
            self._canary_due = loop.time() + CANARY_INTERVAL_SECONDS
        return readiness

    async def _sing(self, embedder: Embedder) -> Readiness:
        """Embed the canary and compare it with its first vector."""
        deadline = asyncio.get_running_loop().time() + CANARY_TIMEOUT_SECONDS
        try:
            answer, _ = await embedder.embed([CANARY_TEXT], deadline=deadline, input_type="query")
        except (BadVectorError, BackendError) as error:
            if self._canary is None:
                msg = f"The model cannot embed a plain sentence: {error.message}"
                raise StartupError(msg) from error
            return Readiness(ready=False, backend_ready=True, reason=error.message)
        except BackendUnavailableError:
            if self._canary is None:
                raise
            reason = f"{self.backend.description} is away"
            return Readiness(ready=False, backend_ready=False, reason=reason)
        except EmbeddingServerError as error:
            # A full queue or a missed deadline is load, and says nothing about the vectors.
            logger.warning("The canary got no answer: %s", error.message)
            return Readiness(ready=self._canary is not None, backend_ready=True)
        if self._canary is None:
            self._canary = answer.vectors
        cosine = float(np.vdot(self._canary, answer.vectors))
        if cosine >= CANARY_COSINE:
            return Readiness(ready=True, backend_ready=True)
        reason = (
            f"the canary's vector has cosine {cosine:.4f} with the one at start: the model behind "
            "the gateway was exchanged; restart the gateway to serve it"
        )
        return Readiness(ready=False, backend_ready=True, reason=reason)
