"""What one gateway serves, and what its models share."""

from __future__ import annotations

from .admission import Admission
from .backends.base import Backend
from .embedder import Embedder
from .memory import MemoryBudget
from .metrics import GatewayState, Metrics
from .served import Readiness
from .settings import Settings


class EmbeddingService:
    """The owner of the served models, of the memory for requests and of the metrics.

    Attributes:
        embedder: The embedding model.
        stopping: Whether the gateway is shutting down.
    """

    def __init__(self, settings: Settings, backend: Backend) -> None:
        """Load the tokenizer; `run` reaches the model.

        Raises:
            StartupError: The tokenizer is missing or invalid.
        """
        self.settings = settings
        self.metrics = Metrics()
        self.memory = MemoryBudget(settings.max_memory_bytes, self.metrics)
        self.embedder = Embedder(backend, settings, self.metrics)
        self.stopping = False
        self.metrics.observe_state(self.state)

    @property
    def readiness(self) -> Readiness:
        """Whether requests are answered, and more should be sent."""
        readiness = self.embedder.readiness
        if self.stopping:
            return Readiness(False, readiness.backend_ready, "the gateway is shutting down")
        return readiness

    @property
    def admission(self) -> Admission | None:
        """The bounds of the queue; None while requests are refused for another reason."""
        return None if self.stopping else self.embedder.admission

    async def run(self) -> None:
        """Connect and watch the model until cancelled.

        Raises:
            StartupError: The model and the settings do not match.
        """
        await self.embedder.run()

    async def close(self) -> None:
        """Finish the batches in flight, then release the backend."""
        await self.embedder.close()

    def state(self) -> GatewayState:
        """Describe the model's queue, and what all requests share."""
        model = self.embedder.state()
        return GatewayState(
            lanes=model.lanes,
            batches_in_flight=model.batches_in_flight,
            requests_under_way=model.requests_under_way,
            memory_bytes=self.memory.used_bytes,
            cache_bytes=self.embedder.cache.used_bytes,
            ready=self.readiness.ready,
            backends=model.backends,
            problems=model.problems,
        )
