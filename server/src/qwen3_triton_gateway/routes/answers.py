"""Vectors and scores on their way to the caller, with the headers that they have in every API."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import Response

from ..memory import REQUEST_BYTES, Reservation
from ..metrics import ModelMetrics
from ..reranker import Reranker, Scores
from ..responses import (
    BYTES_PER_PART,
    JsonResponse,
    PartsResponse,
    VectorForm,
    answer_parts,
    encoded_bytes,
)
from ..served import Timings
from ..service import EmbeddingService
from ..tensors import Embeddings

# Proxies limit the size of headers: beyond this many indices, the rest is only counted.
MAX_INDICES_IN_HEADER = 100


@dataclass(slots=True)
class EmbedAnswer:
    """Vectors on their way to the caller."""

    service: EmbeddingService
    memory: Reservation
    embeddings: Embeddings
    timings: Timings
    fingerprint: str
    encode_seconds: float = 0.0

    @property
    def dimensions(self) -> int:
        return self.embeddings.dimensions

    @property
    def usage(self) -> dict[str, int]:
        tokens = self.embeddings.prompt_tokens
        return {"prompt_tokens": tokens, "total_tokens": tokens}

    def respond(
        self,
        content: object,
        *forms: VectorForm,
        wrap: Callable[[int, Any], Any] | None = None,
    ) -> Response:
        """Build the response, with the headers that embeddings carry in every dialect.

        Args:
            content: The answer, with `VECTORS` wherever the vectors belong.
            *forms: How they are encoded in each such place; see `answer_parts`.
            wrap: What each is wrapped in; see `answer_parts`.
        """

        def parts() -> Iterator[bytes]:
            return answer_parts(content, self.embeddings, forms, wrap)

        # The texts are no longer needed.
        encoded = encoded_bytes(len(self.embeddings.rows), self.dimensions)
        self.memory.resize(REQUEST_BYTES + self.embeddings.distinct.nbytes + encoded)
        if encoded <= BYTES_PER_PART:
            began = time.perf_counter()
            body = b"".join(parts())
            self.encode_seconds = time.perf_counter() - began
            return Response(body, headers=self._headers(), media_type=JsonResponse.media_type)
        return PartsResponse(lambda: self._timed(parts()), late_headers=self._headers)

    async def _timed(self, parts: Iterator[bytes]) -> AsyncGenerator[bytes]:
        began = time.perf_counter()
        for part in parts:
            self.encode_seconds += time.perf_counter() - began
            yield part
            began = time.perf_counter()

    def _headers(self) -> dict[str, str]:
        headers = {
            "X-Embedding-Fingerprint": self.fingerprint,
            "Server-Timing": server_timing(self.service.metrics, self.timings, self.encode_seconds),
        }
        if self.embeddings.truncated:
            headers["X-Embedding-Truncated"] = _indices(self.embeddings.truncated)
        return headers


@dataclass(frozen=True, slots=True)
class RerankAnswer:
    """Scores on their way to the caller."""

    reranker: Reranker
    scores: Scores
    timings: Timings

    @property
    def usage(self) -> dict[str, int]:
        tokens = self.scores.prompt_tokens
        return {"prompt_tokens": tokens, "total_tokens": tokens}

    def respond(self, content: object) -> JsonResponse:
        """Build the response, with the headers that scores carry in every dialect."""
        began = time.perf_counter()
        response = JsonResponse(content)
        seconds = time.perf_counter() - began
        response.headers["X-Rerank-Fingerprint"] = self.reranker.fingerprint
        # As in TEI, whose list of scores has no place for it.
        response.headers["X-Compute-Tokens"] = str(self.scores.prompt_tokens)
        response.headers["Server-Timing"] = server_timing(
            self.reranker.metrics, self.timings, seconds
        )
        if self.scores.truncated:
            response.headers["X-Rerank-Truncated"] = _indices(self.scores.truncated)
        return response


def server_timing(metrics: ModelMetrics, timings: Timings, encode_seconds: float) -> str:
    """Count the stages of a request, and format them as a `Server-Timing` header.

    Its unit is milliseconds.
    """
    stages = {
        "tokenize": timings.tokenize_seconds,
        "queue": timings.queue_seconds,
        "infer": timings.infer_seconds,
        "encode": encode_seconds,
    }
    for stage, seconds in stages.items():
        metrics.stage_seconds.labels(stage).observe(seconds)
    return ", ".join([f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items()])


def _indices(truncated: tuple[int, ...]) -> str:
    indices = ",".join(map(str, truncated[:MAX_INDICES_IN_HEADER]))
    rest = len(truncated) - MAX_INDICES_IN_HEADER
    return f"{indices},+{rest} more" if rest > 0 else indices
