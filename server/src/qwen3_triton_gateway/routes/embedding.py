"""What the embedding routes of all dialects share: from a request's body to vectors and headers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import Request
from starlette.requests import ClientDisconnect

from ..embedder import EmbedCall, EmbedTimings
from ..encoding import EncodingFormat
from ..errors import BackendUnavailableError
from ..responses import Dialect, JsonResponse, render_vectors
from ..schemas import Usage, parse_json
from ..service import EmbeddingService
from ..tensors import Embeddings

Result = TypeVar("Result")

# Proxies bound their headers: more indices than these are counted, not listed.
MAX_INDICES_IN_HEADER = 100


@dataclass(frozen=True, slots=True)
class Exchange:
    """One embedding request while it is under way."""

    request: Request
    service: EmbeddingService
    body: dict[str, Any]
    deadline: float

    def speak(self, dialect: Dialect) -> None:
        """Answer in this dialect from now on, errors included."""
        self.request.state.dialect = dialect

    async def embed(self, call: EmbedCall) -> EmbedAnswer:
        """Embed for as long as somebody waits for it."""
        work = self.service.embedder.embed(call, deadline=self.deadline)
        try:
            embeddings, timings = await while_connected(self.request, work)
        except BackendUnavailableError:
            # The next caller, or a load balancer, is told by readiness already.
            await self.service.check_soon()
            raise
        self.request.state.log = {
            "input_type": call.input_type,
            "texts": len(call.texts),
            "tokens": embeddings.prompt_tokens,
            "truncated": len(embeddings.truncated),
            "queue_ms": round(timings.queue_seconds * 1000, 1),
            "infer_ms": round(timings.infer_seconds * 1000, 1),
        }
        return EmbedAnswer(self.service, embeddings, timings)


@dataclass(slots=True)
class EmbedAnswer:
    """Vectors on their way to the caller."""

    service: EmbeddingService
    embeddings: Embeddings
    timings: EmbedTimings
    encode_seconds: float = 0.0

    @property
    def dimensions(self) -> int:
        return self.embeddings.vectors.shape[1]

    @property
    def fingerprint(self) -> str:
        return self.service.fingerprint(self.dimensions)

    @property
    def usage(self) -> dict[str, int]:
        tokens = self.embeddings.prompt_tokens
        return Usage(prompt_tokens=tokens, total_tokens=tokens).model_dump()

    async def render(
        self, encoding_format: EncodingFormat, wrap: Callable[[int, Any], Any] | None = None
    ) -> orjson.Fragment:
        """Write the vectors; see `render_vectors`."""
        began = time.perf_counter()
        vectors = await render_vectors(self.embeddings.vectors, encoding_format, wrap)
        self.encode_seconds += time.perf_counter() - began
        return vectors

    def respond(self, content: object) -> JsonResponse:
        """Answer with the headers that every dialect's embeddings carry."""
        began = time.perf_counter()
        response = JsonResponse(content)
        self.encode_seconds += time.perf_counter() - began
        response.headers["X-Embedding-Fingerprint"] = self.fingerprint
        response.headers["Server-Timing"] = self._server_timing()
        if self.embeddings.truncated:
            response.headers["X-Embedding-Truncated"] = _indices(self.embeddings.truncated)
        return response

    def _server_timing(self) -> str:
        """Write the stages as a `Server-Timing` header, in its unit, milliseconds."""
        stages = {
            "tokenize": self.timings.tokenize_seconds,
            "queue": self.timings.queue_seconds,
            "infer": self.timings.infer_seconds,
            "encode": self.encode_seconds,
        }
        for stage, seconds in stages.items():
            self.service.metrics.stage_seconds.labels(stage).observe(seconds)
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())


@asynccontextmanager
async def open_exchange(request: Request, service: EmbeddingService) -> AsyncGenerator[Exchange]:
    """Take a request in: its deadline begins, it is counted, then its body is read.

    Raises:
        BackendUnavailableError: the model is away.
        QueueFullError: too many requests are under way.
        BodyTooLargeError: the body is above the limit.
        InvalidRequestError: the body is no JSON object.
    """
    deadline = asyncio.get_running_loop().time() + service.settings.timeout_seconds
    with service.embedder.scheduler.request():
        yield Exchange(request, service, parse_json(await request.body()), deadline)


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, or cancel it when the caller goes away.

    Raises:
        ClientDisconnect: nobody is there to answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body only a disconnect can come
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def _indices(truncated: tuple[int, ...]) -> str:
    listed = ",".join(map(str, truncated[:MAX_INDICES_IN_HEADER]))
    rest = len(truncated) - MAX_INDICES_IN_HEADER
    return f"{listed},+{rest} more" if rest > 0 else listed
