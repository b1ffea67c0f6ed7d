"""The CPU time of encoding a response of 256 vectors: base64, JSON, and the usual way.

The usual way is the runbook's: `tolist()`, a pydantic response model, FastAPI's own JSON. Each runs
the serving code in this process, so that neither inference nor a network is counted.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

from qwen3_triton_gateway.responses import VECTORS as PLACE
from qwen3_triton_gateway.responses import EncodingFormat, answer_parts
from qwen3_triton_gateway.tensors import Embeddings, Float32Matrix

VECTORS, DIMENSIONS = 256, 1024
REPEATS = 10


class UsualResponse(BaseModel):
    """The runbook's response."""

    embeddings: list[list[float]]
    model: str


def measure_answers() -> dict[str, float]:
    """Return the median CPU seconds per response."""
    vectors = np.random.default_rng(1).normal(size=(VECTORS, DIMENSIONS)).astype(np.float32)
    usual = _usual_server(vectors)
    return {
        "base64": asyncio.run(_cpu_seconds(lambda: _render(vectors, "base64"))),
        "float": asyncio.run(_cpu_seconds(lambda: _render(vectors, "float"))),
        "usual": asyncio.run(_cpu_seconds(lambda: _call(usual))),
    }


async def _render(vectors: Float32Matrix, encoding_format: EncodingFormat) -> None:
    embeddings = Embeddings(vectors, np.arange(len(vectors)), prompt_tokens=0, truncated=())
    for _ in answer_parts({"embeddings": PLACE}, embeddings, [encoding_format]):
        await asyncio.sleep(0)


def _usual_server(vectors: Float32Matrix) -> FastAPI:
    app = FastAPI()

    @app.get("/embed", response_model=UsualResponse)
    async def embed() -> UsualResponse:  # pyright: ignore[reportUnusedFunction]
        return UsualResponse(embeddings=vectors.tolist(), model="usual")

    return app


async def _call(app: FastAPI) -> None:
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/embed",
        "headers": [],
        "query_string": b"",
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(_: object) -> None:
        pass

    await app(scope, receive, send)


async def _cpu_seconds(work: Callable[[], Awaitable[None]]) -> float:
    await work()
    times: list[float] = []
    for _ in range(REPEATS):
        began = time.process_time()
        await work()
        times.append(time.process_time() - began)
    return statistics.median(times)
