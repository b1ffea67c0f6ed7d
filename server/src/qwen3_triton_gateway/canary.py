"""A sentence whose vector must stay what it was at start: it notices an exchanged model."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from .embedder import EmbedCall, Embedder
from .errors import (
    BackendError,
    BackendUnavailableError,
    BadVectorError,
    EmbeddingServerError,
    StartupError,
)
from .tensors import Float32Matrix

logger = logging.getLogger(__name__)

# A canary run costs one short batch: often enough to notice swapped weights, rare enough not to
# show in the load.
INTERVAL_SECONDS = 30.0
TIMEOUT_SECONDS = 10.0
CANARY = EmbedCall(
    ["The importance of a canary: it notices bad air before the miners do."], input_type="query"
)
# Equal weights on equal hardware agree to 1e-6 in float32 and 1e-4 in float16, whatever the batch;
# other weights, another padding or a missing end token fall far below.
MIN_COSINE = 0.999


class Canary:
    """Embed the sentence now and then, and say what is wrong with its vector."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._first: Float32Matrix | None = None
        self._due = 0.0
        self._run: asyncio.Task[str] | None = None
        self.trouble = ""

    async def start(self) -> None:
        """Embed the sentence for the first time.

        Raises:
            BackendUnavailableError: the model is away, or has no time.
            StartupError: the model cannot embed it.
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
        """Trust nothing before the next run: whoever comes back may have other weights."""
        if self._run is not None:
            self._run.cancel()
            self._run = None
        self._due = 0.0
        self.trouble = "the canary has not been embedded since the model came back"

    def check(self) -> str:
        """Start a run where one is due, and say what the last one found wrong, if anything."""
        now = asyncio.get_running_loop().time()
        if self._run is not None and self._run.done():
            self.trouble, self._run = self._run.result(), None
            self._due = now if self.trouble else now + INTERVAL_SECONDS
        if self._run is None and now >= self._due:
            self._run = asyncio.create_task(self._compare())
        return self.trouble

    async def _compare(self) -> str:
        began = asyncio.get_running_loop().time()
        try:
            vector = await self._embed()
        except (BadVectorError, BackendError, BackendUnavailableError) as error:
            return error.message
        except EmbeddingServerError as error:
            # A full queue or a missed deadline is load, as long as others get their answers.
            if self._embedder.scheduler.last_answer >= began:
                logger.warning("The canary got no answer: %s", error.message)
                return self.trouble
            return f"the model has answered nothing for {TIMEOUT_SECONDS:.0f} s"
        assert self._first is not None, "start() comes first"
        cosine = float(np.vdot(self._first, vector))
        if cosine >= MIN_COSINE:
            return ""
        return (
            f"the canary's vector has cosine {cosine:.4f} with the one at start: the model behind "
            "the gateway was exchanged; restart the gateway to serve it"
        )

    async def _embed(self) -> Float32Matrix:
        deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
        answer, _ = await self._embedder.embed(CANARY, deadline=deadline, fresh=True)
        return answer.vectors
