"""What one gateway serves, and what its models share."""

from __future__ import annotations

import asyncio

from .admission import Admission
from .backends.base import Backend
from .embedder import Embedder
from .errors import ModelNotFoundError, StartupError, shorten
from .memory import MemoryBudget
from .metrics import GatewayState, Metrics, ModelState, RerankMetrics
from .reranker import Reranker
from .served import Readiness, ServedModel
from .settings import Settings

NO_RERANKER = (
    "No reranker is served here. Start the gateway with RERANK_TRITON_MODEL, the name of one in "
    "Triton, or with RERANK_MODEL_DIR, a folder with its model.onnx."
)
NO_EMBEDDER = (
    "No embedding model is served here, only a reranker. Start the gateway with TRITON_MODEL and "
    "TOKENIZER_PATH, or with EMBED_MODEL_DIR, too."
)


class EmbeddingService:
    """The owner of the served models, of the memory for requests and of the metrics.

    Attributes:
        models: Every served model.
        served_embedder: The embedding model, if one is served.
        served_reranker: The reranker, if one is served.
        stopping: Whether the gateway is shutting down.
    """

    def __init__(
        self, settings: Settings, backend: Backend | None, rerank_backend: Backend | None = None
    ) -> None:
        """Load the tokenizers; `run` reaches the models.

        Args:
            settings: The gateway's settings.
            backend: What runs the embedding model; None to serve none.
            rerank_backend: What runs the reranker; None to serve none.

        Raises:
            StartupError: A tokenizer is missing or invalid.
        """
        self.settings = settings
        self.metrics: Metrics = Metrics()
        metrics = self.metrics
        self.memory: MemoryBudget = MemoryBudget(settings.max_memory_bytes, metrics)
        self.served_embedder: Embedder | None = (
            Embedder(backend, settings, metrics) if backend else None
        )
        self.served_reranker: Reranker | None = None
        if rerank_backend is not None:
            rerank_metrics = RerankMetrics(metrics.registry)
            self.served_reranker = Reranker(rerank_backend, settings, rerank_metrics)
        models: list[ServedModel | None] = [self.served_embedder, self.served_reranker]
        self.models: list[ServedModel] = [model for model in models if model is not None]
        self.stopping = False
        metrics.observe_state(self.state)

    @property
    def embedder(self) -> Embedder:
        """The embedding model.

        Raises:
            ModelNotFoundError: None is served.
        """
        if self.served_embedder is None:
            raise ModelNotFoundError(NO_EMBEDDER)
        return self.served_embedder

    @property
    def reranker(self) -> Reranker:
        """The reranker.

        Raises:
            ModelNotFoundError: None is served.
        """
        if self.served_reranker is None:
            raise ModelNotFoundError(NO_RERANKER)
        return self.served_reranker

    @property
    def readiness(self) -> Readiness:
        """Whether more requests should be sent, and what is wrong.

        At first, every model has to be there: a new gateway must not replace one that serves more.
        From then on, a model that fails does not take the other one out of service.
        """
        states = [model.readiness for model in self.models]
        backend_ready = all(state.backend_ready for state in states)
        if self.stopping:
            return Readiness(False, backend_ready, "the gateway is shutting down")
        have_started = all(model.spec is not None for model in self.models)
        ready = have_started and any(state.ready for state in states)
        reasons = [
            f"{model.model_id}: {state.reason}" if len(states) > 1 else state.reason
            for model, state in zip(self.models, states, strict=True)
            if state.reason
        ]
        return Readiness(ready, backend_ready, "; ".join(reasons))

    @property
    def is_complete(self) -> bool:
        """Whether requests for every model are answered."""
        return not self.stopping and all(model.readiness.ready for model in self.models)

    def find_model(self, name: str) -> ServedModel:
        """Return the served model with this name.

        Raises:
            ModelNotFoundError: None has it.
        """
        for model in self.models:
            if name in model.names:
                return model
        raise self.unknown_model(name)

    def unknown_model(self, name: str) -> ModelNotFoundError:
        """Build the error for a name that no served model has."""
        msg = f"Model {shorten(name)!r} is not served here. GET /v1/models lists those that are."
        return ModelNotFoundError(msg, param="model")

    @property
    def admission(self) -> Admission | None:
        """The bounds of the embedder's queue; None while it refuses for another reason."""
        return self._admission_of(self.served_embedder)

    @property
    def rerank_admission(self) -> Admission | None:
        """The bounds of the reranker's queue; None while it refuses for another reason."""
        return self._admission_of(self.served_reranker)

    async def run(self) -> None:
        """Connect and watch every model until canceled.

        Raises:
            StartupError: A model and the settings do not match.
        """
        await asyncio.gather(*map(self._run, self.models))

    async def close(self) -> None:
        """Finish the batches in flight, then release the backends."""
        await asyncio.gather(*(model.close() for model in self.models))

    async def _run(self, model: ServedModel) -> None:
        await model.connect()
        self._check_names()
        await model.watch()

    def _check_names(self) -> None:
        """Check that requests, metrics and health checks can tell the connected models apart.

        Raises:
            StartupError: Two have the same name.
        """
        names = [name for model in self.models if model.spec for name in model.names]
        for name in names:
            if names.count(name) > 1:
                msg = (
                    f"The embedding model and the reranker are both called {name!r}. Give them "
                    "different names with EMBED_MODEL_ID, EMBED_MODEL_ALIASES and RERANK_MODEL_ID."
                )
                raise StartupError(msg)

    def _admission_of(self, model: ServedModel | None) -> Admission | None:
        return None if self.stopping or model is None else model.admission

    def state(self) -> GatewayState:
        """Describe the embedder's queue and backends, and what all requests share."""
        embedder = self.served_embedder
        model = embedder.state() if embedder else ModelState()
        return GatewayState(
            lanes=model.lanes,
            batches_in_flight=model.batches_in_flight,
            requests_under_way=model.requests_under_way,
            memory_bytes=self.memory.used_bytes,
            cache_bytes=embedder.cache.used_bytes if embedder else 0,
            ready=self.is_complete,
            models={model.model_id: model.readiness.ready for model in self.models},
            backends=model.backends,
            problems=model.problems,
        )
