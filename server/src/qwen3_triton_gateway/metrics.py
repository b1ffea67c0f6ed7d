"""Every Prometheus metric of the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .tensors import TokenBatch

# The creation time of each series is of no use here, and doubles the size of `/metrics`.
disable_created_metrics()

Metric = TypeVar("Metric", Counter, Histogram)

PREFIX = "qwen3_triton"
# From a cached query on a GPU to a request of 2,048 texts on two cores.
SECONDS_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120,
)  # fmt: skip
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class LaneState:
    """The waiting texts of one lane."""

    lane: str
    texts: int
    tokens: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """What is read of a served model when Prometheus asks, instead of counted as it happens."""

    lanes: Sequence[LaneState] = ()
    batches_in_flight: int = 0
    requests_under_way: int = 0
    ready: bool = False
    backends: dict[str, bool] = field(default_factory=dict[str, bool])
    problems: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState(ModelState):
    """What is read of the gateway: of its embedding model, and of what all requests share.

    `ready` is that of every model, and `models` that of each.
    """

    memory_bytes: int
    cache_bytes: int
    models: dict[str, bool] = field(default_factory=dict[str, bool])


class ModelMetrics:
    """The metrics of a served model's queue and batches."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self.registry = registry
        self._prefix = prefix
        self.stage_seconds: Histogram = self._histogram(
            "stage_seconds", "Time of a request for the model by stage.", SECONDS_BUCKETS, "stage"
        )
        self.rejected_requests: Counter = self._counter(
            "rejected_requests", "Requests refused with 429, by the limit they hit.", "limit"
        )
        self.recomputed_texts: Counter = self._counter(
            "recomputed_texts", "Texts retried alone after an unusable result."
        )
        self.abandoned_texts: Counter = self._counter(
            "abandoned_texts", "Texts that left the queue because no caller was waiting for them."
        )
        self.batch_rows: Histogram = self._histogram(
            "batch_rows", "Texts per batch.", ROWS_BUCKETS, "lane"
        )
        self.batch_seconds: Histogram = self._histogram(
            "batch_seconds", "Round trip time of a batch.", SECONDS_BUCKETS, "lane"
        )
        self.batch_tokens: Counter = self._counter(
            "batch_tokens", "Tokens sent to the model, by kind: text or padding.", "kind"
        )
        self.failed_batches: Counter = self._counter(
            "failed_batches", "Batches that failed, by error code.", "code"
        )

    def observe_batch(self, lane: str, batch: TokenBatch, tokens: int) -> None:
        """Count a batch's rows, tokens and padding; `tokens` are those of its texts."""
        self.batch_rows.labels(lane).observe(len(batch.input_ids))
        self.batch_tokens.labels("text").inc(tokens)
        self.batch_tokens.labels("padding").inc(batch.input_ids.size - tokens)

    def observe_state(self, read: Callable[[], ModelState]) -> None:
        """Add the gauges, whose values come from `read` whenever Prometheus asks."""
        self.registry.register(_StateCollector(self._prefix, read))

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        counter = Counter(f"{self._prefix}_{name}", documentation, labels, registry=self.registry)
        return _remember_series(counter)

    def _histogram(
        self, name: str, documentation: str, buckets: Sequence[float], *labels: str
    ) -> Histogram:
        histogram = Histogram(
            f"{self._prefix}_{name}", documentation, labels, buckets=buckets, registry=self.registry
        )
        return _remember_series(histogram)


def _remember_series(metric: Metric) -> Metric:
    """Look up the series of labels once: a request has a dozen, and each would take a lock."""
    metric.labels = cache(metric.labels)  # pyright: ignore[reportAttributeAccessIssue]
    return metric


class RerankMetrics(ModelMetrics):
    """The metrics of the reranker, next to those of its gateway."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, f"{PREFIX}_rerank")
        self.pairs: Counter = self._counter("pairs", "Pairs of a query and a document scored.")
        self.tokens: Counter = self._counter("tokens", "Tokens of those pairs, prompt included.")
        self.key_pairs: Counter = self._counter(
            "key_pairs", "Pairs scored, by the name of the API key.", "key"
        )
        self.key_tokens: Counter = self._counter("key_tokens", "Tokens of those pairs.", "key")
        self.truncated_documents: Counter = self._counter(
            "truncated_documents", "Documents truncated so that their pair has RERANK_MAX_LENGTH."
        )
        self.refused_scores: Counter = self._counter(
            "refused_scores", "Pairs refused with 502: no usable score, even alone."
        )


class Metrics(ModelMetrics):
    """The metrics of one gateway and of its embedding model, in a registry of their own."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry(), PREFIX)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests: Counter = self._counter(
            "requests", "Responses by route, dialect and status.", "route", "dialect", "status"
        )
        self.request_seconds: Histogram = self._histogram(
            "request_seconds",
            "Time from receiving a request to its last byte.",
            SECONDS_BUCKETS,
            "route",
        )
        self.texts: Counter = self._counter("texts", "Texts embedded.", "input_type")
        self.tokens: Counter = self._counter("tokens", "Tokens of those texts.", "input_type")
        self.key_requests: Counter = self._counter(
            "key_requests", "Responses by the name of the API key.", "key", "status"
        )
        self.key_texts: Counter = self._counter(
            "key_texts", "Texts embedded, by the name of the API key.", "key"
        )
        self.key_tokens: Counter = self._counter("key_tokens", "Tokens of those texts.", "key")
        self.truncated_texts: Counter = self._counter(
            "truncated_texts", "Texts truncated to EMBED_MAX_LENGTH."
        )
        self.refused_vectors: Counter = self._counter(
            "refused_vectors", "Texts refused with 502: no usable vector, even alone."
        )
        self.cache_lookups: Counter = self._counter(
            "cache_lookups", "Cache lookups of texts: hit or miss.", "outcome"
        )

    def render(self) -> bytes:
        """Render all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _StateCollector(Collector):
    """The gauges of a `ModelState` or `GatewayState`."""

    def __init__(self, prefix: str, read: Callable[[], ModelState]) -> None:
        self._prefix = prefix
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state = self._read()
        texts = ((lane.lane, lane.texts) for lane in state.lanes)
        tokens = ((lane.lane, lane.tokens) for lane in state.lanes)
        oldest = ((lane.lane, lane.oldest_seconds) for lane in state.lanes)
        excluded = ((name, name in state.problems) for name in state.backends)
        yield self._labeled("queue_texts", "Texts waiting for the model.", "lane", texts)
        yield self._labeled("queue_tokens", "Tokens waiting for the model.", "lane", tokens)
        yield self._labeled(
            "queue_oldest_seconds", "Age of the oldest waiting text.", "lane", oldest
        )
        yield self._gauge(
            "batches_in_flight", "Batches that the model is working on.", state.batches_in_flight
        )
        yield self._gauge(
            "requests_under_way", "Requests for the model in progress.", state.requests_under_way
        )
        yield self._gauge("ready", "Whether requests are answered (1) or not (0).", state.ready)
        yield self._labeled(
            "backend_up",
            "Whether it answers and gets work (1) or not (0).",
            "backend",
            state.backends.items(),
        )
        yield self._labeled(
            "backend_excluded",
            "Whether it is excluded for what it answers (1): other weights, or errors.",
            "backend",
            excluded,
        )
        if isinstance(state, GatewayState):
            yield self._gauge(
                "memory_bytes",
                "Estimated memory of the requests in progress, up to EMBED_MAX_MEMORY_BYTES.",
                state.memory_bytes,
            )
            yield self._gauge("cache_bytes", "Memory used by cached vectors.", state.cache_bytes)
            yield self._labeled(
                "model_ready",
                "Whether requests for this model are answered (1) or not (0).",
                "model",
                state.models.items(),
            )

    def _gauge(self, name: str, documentation: str, value: float) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._prefix}_{name}", documentation, value=float(value))

    def _labeled(
        self, name: str, documentation: str, label: str, values: Iterable[tuple[str, float]]
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"{self._prefix}_{name}", documentation, labels=[label])
        for key, value in values:
            family.add_metric([key], float(value))
        return family
