"""A sentence whose vector must stay what it was at startup, to notice a model that changed."""

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

# A run costs one short batch: often enough to notice swapped weights soon, and rare enough to be
# lost in the load.
INTERVAL_SECONDS = 30.0
TIMEOUT_SECONDS = 10.0
CANARY = EmbedCall(
    ["The importance of a canary: it notices bad air before the miners do."], input_type="query"
)
# Equal weights on equal hardware agree to 1e-6 in float32 and 1e-4 in float16, in any batch. Other
# weights, another padding or a missing end token fall far below this.
MIN_COSINE = 0.999


class Canary:
    """A sentence that is embedded regularly and compared with its startup vector.

    Attributes:
        problem: What the last run found wrong; empty if nothing.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._first: Float32Matrix | None = None
        self._due = 0.0
        self._run: asyncio.Task[str] | None = None
        self.problem = ""

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
        if self._run is not None:
            self._run.cancel()
            self._run = None
        self._due = 0.0
        self.problem = "the canary sentence has not been embedded since the model came back"

    def check(self) -> str:
        """Start a run if one is due, and return what the last one found wrong, if anything."""
        now = asyncio.get_running_loop().time()
        if self._run is not None and self._run.done():
            self.problem, self._run = self._run.result(), None
            self._due = now if self.problem else now + INTERVAL_SECONDS
        if self._run is None and now >= self._due:
            self._run = asyncio.create_task(self._compare())
        return self.problem

    async def _compare(self) -> str:
        began = asyncio.get_running_loop().time()
        try:
            vector = await self._embed()
        except (BadVectorError, BackendError, BackendUnavailableError) as error:
            return error.message.removesuffix(".")
        except EmbeddingServerError as error:
            # A full queue or a missed deadline means load, as long as other requests succeed.
            if self._embedder.scheduler.last_answer >= began:
                logger.warning("The canary sentence was not embedded: %s", error.message)
                return self.problem
            return f"the model has not answered for {TIMEOUT_SECONDS:.0f} s"
        assert self._first is not None, "start() comes first"
        cosine = float(np.vdot(self._first, vector))
        if cosine >= MIN_COSINE:
            return ""
        return (
            f"the canary sentence's vector has cosine {cosine:.4f} with its startup vector: the "
            "model behind the gateway has changed; restart the gateway to serve it"
        )

    async def _embed(self) -> Float32Matrix:
        deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
        answer, _ = await self._embedder.embed(CANARY, deadline=deadline, bypass_cache=True)
        return answer.vectors
