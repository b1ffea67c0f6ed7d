"""OpenTelemetry traces: spans that cost nothing unless a collector is configured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from fastapi.telemetry import TelemetryConfig
from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind

from . import __version__
from .errors import StartupError
from .settings import Settings
from .tensors import TokenBatch

SERVICE_NAME = "qwen3-triton-gateway"
UNTRACED_PATHS = ("/health", "/v1/health", "/metrics")
# FastAPI creates the span of each request once a provider is set. Its metrics would duplicate ours,
# and its logs would contain what callers sent.
REQUEST_SPANS: TelemetryConfig = {
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
    "exclude": lambda scope: scope["path"].startswith(UNTRACED_PATHS),
}

_NO_SPAN: AbstractContextManager[Span] = nullcontext(trace.INVALID_SPAN)
_tracer = trace.get_tracer("qwen3_triton_gateway", __version__)


def _is_traced() -> bool:
    """Return whether the request has a span; without a provider, each would still take 20 µs."""
    # An empty context has no span, and is faster to recognize.
    is_empty = not context.get_current()
    return not is_empty and trace.get_current_span() is not trace.INVALID_SPAN


def stage_span(name: str) -> AbstractContextManager[Span]:
    """Start a span for a stage, as a child of the request's span."""
    if not _is_traced():
        return _NO_SPAN
    return _tracer.start_as_current_span(name)


def describe_embeddings(*, requested: object, served: str, dimensions: int, tokens: int) -> None:
    """Describe a finished request on its span, by OpenTelemetry's conventions for GenAI.

    Args:
        requested: The model's name in the request, if there is one.
        served: The model's own name.
        dimensions: Those of its vectors.
        tokens: What the texts had after truncation.
    """
    if not _is_traced():
        return
    model = requested if isinstance(requested, str) else served
    trace.get_current_span().set_attributes(
        {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": SERVICE_NAME,
            "gen_ai.request.model": model,
            "gen_ai.response.model": served,
            "gen_ai.embeddings.dimension.count": dimensions,
            "gen_ai.usage.input_tokens": tokens,
        }
    )


def current_origin() -> SpanContext:
    """Return the current span's context, for the batch that its texts will join."""
    if not _is_traced():
        return trace.INVALID_SPAN_CONTEXT
    return trace.get_current_span().get_span_context()


def trace_headers() -> dict[str, str]:
    """Build the headers that continue the trace in another server; none if nothing is traced."""
    headers: dict[str, str] = {}
    if _is_traced():
        propagate.inject(headers)
    return headers


def batch_span(origins: Sequence[object], batch: TokenBatch) -> AbstractContextManager[Span]:
    """Start a span for a batch: a child of its first text's request, linked to the others.

    It is the parent of the spans in the model's server.

    Args:
        origins: The span contexts of the texts; anything else is ignored.
        batch: The padded texts.
    """
    if not _is_traced():
        return _NO_SPAN
    contexts = {
        (origin.trace_id, origin.span_id): origin
        for origin in origins
        if isinstance(origin, SpanContext) and origin.is_valid
    }
    first, *others = contexts.values() or [trace.INVALID_SPAN_CONTEXT]
    rows, length = batch.input_ids.shape
    return _tracer.start_as_current_span(
        "infer batch",
        context=trace.set_span_in_context(trace.NonRecordingSpan(first)),
        kind=SpanKind.CLIENT,
        links=[Link(context) for context in others],
        attributes={"batch.rows": rows, "batch.padded_length": length},
    )


def configure_tracing(settings: Settings) -> Callable[[], None]:
    """Send spans to the collector in the settings, if there is one.

    The SDK's own `OTEL_` variables (headers, sampler, service name) apply too.

    Returns:
        A function that sends the last spans, to call when the gateway ends.

    Raises:
        StartupError: The SDK is not installed.
    """
    if settings.otlp_endpoint is None:
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        msg = (
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but traces need more packages. Install them with "
            '`pip install "qwen3-triton-gateway[otel]"`.'
        )
        raise StartupError(msg) from error
    resource = Resource({"service.name": SERVICE_NAME, "service.version": __version__})
    provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()))
    endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)
    return provider.shutdown
