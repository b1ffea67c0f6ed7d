"""A sentence whose vector must stay what it was at startup, to notice a model that changed."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from .backends.probe import MIN_COSINE
from .batching import pad_batch
from .embedder import EmbedCall, Embedder
from .errors import (
    BackendError,
    BackendUnavailableError,
    BadVectorError,
    EmbeddingServerError,
    StartupError,
)
from .tensors import Float32Matrix, TokenBatch
from .tokenization import TextTokenizer, format_inputs

logger = logging.getLogger(__name__)

# A run costs one short batch: often enough to notice swapped weights soon, and rare enough to be
# lost in the load.
INTERVAL_SECONDS = 30.0
TIMEOUT_SECONDS = 10.0
CANARY = EmbedCall(
    ["The importance of a canary: it notices bad air before the miners do."], input_type="query"
)


def canary_batch(tokenizer: TextTokenizer) -> TokenBatch:
    """Build the canary sentence as a batch of its own, for backends that check themselves."""
    prompts = format_inputs(CANARY.texts, input_type=CANARY.input_type, instruction=None)
    return pad_batch(
        tokenizer.encode(prompts),
        pad_token_id=tokenizer.end_token_id,
        max_length=tokenizer.max_length,
    )


class Canary:
    """A sentence that is embedded regularly and compared with its startup vector.

    Attributes:
        problem: What the last run found wrong; empty if nothing.
        is_pending: Whether the model may be another one than the last run met.
        has_changed: Whether the last run found other weights.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._first: Float32Matrix | None = None
        self._due = 0.0
        self._run: asyncio.Task[str] | None = None
        self.problem = ""
        self.is_pending = False
        self.has_changed = False

    async def start(self) -> None:
        """Embed the sentence for the first time.

        Raises:
            BackendUnavailableError: The model is unavailable or too busy.
            StartupError: The model cannot embed it.
        """
        try:
            self._first = await self._embed()
        except (BadVectorError, BackendError) as error:
            msg = f"The model cannot embed a plain sentence: {error.message}"
            raise StartupError(msg) from error
        except EmbeddingServerError as error:
            raise BackendUnavailableError(error.message) from error
        self._due = asyncio.get_running_loop().time() + INTERVAL_SECONDS

    def distrust(self) -> None:
        """Trust nothing until the next run: a model that returns may have other weights."""
        self._forget_run()
        self.problem = "the canary sentence has not been embedded since the model came back"

    def suspect(self) -> None:
        """Let the next run decide: a model that was reloaded is usually the same.

        Unlike after an absence, requests are accepted until then, and their answers wait for it.
        """
        self._forget_run()

    async def settle(self, timeout_seconds: float) -> None:
        """Wait until the run in progress ends, or for this long."""
        if self._run is None:
            await asyncio.sleep(timeout_seconds)
            return
        done, _ = await asyncio.wait({self._run}, timeout=timeout_seconds)
        if done:
            self.check()

    def check(self) -> str:
        """Start a run if one is due, and return what the last one found wrong, if anything."""
        now = asyncio.get_running_loop().time()
        if self._run is not None and self._run.done():
            self.problem, self._run = self._run.result(), None
            self.is_pending = False
            self._due = now if self.problem else now + INTERVAL_SECONDS
        if self._run is None and now >= self._due:
            self._run = asyncio.create_task(self._compare())
        return self.problem

    def _forget_run(self) -> None:
        if self._run is not None:
            self._run.cancel()
            self._run = None
        self._due = 0.0
        self.is_pending = True

    async def _compare(self) -> str:
        began = asyncio.get_running_loop().time()
        try:
            vector = await self._embed()
        except (BadVectorError, BackendError, BackendUnavailableError) as error:
            return error.message.removesuffix(".")
        except EmbeddingServerError as error:
            # A missed deadline means load, as long as other requests succeed.
            if self._embedder.scheduler.last_answer >= began:
                logger.warning("The canary sentence was not embedded: %s", error.message)
                return self.problem
            return f"the model has not answered for {TIMEOUT_SECONDS:.0f} s"
        assert self._first is not None, "start() comes first"
        cosine = float(np.vdot(self._first, vector))
        self.has_changed = cosine < MIN_COSINE
        if not self.has_changed:
            return ""
        return (
            f"the canary sentence's vector has cosine {cosine:.4f} with its startup vector: the "
            "model behind the gateway has changed; restart the gateway to serve it"
        )

    async def _embed(self) -> Float32Matrix:
        deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
        answer, _ = await self._embedder.embed(CANARY, deadline=deadline, is_probe=True)
        return answer.vectors
