"""The ceiling: the same texts, tokenized in advance, batched, and sent straight to Triton."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from qwen3_triton_gateway.backends.triton import TritonBackend
from qwen3_triton_gateway.batching import BatchLimits, pad_batch, similar_lengths
from qwen3_triton_gateway.tensors import TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer, format_inputs
from qwen3_triton_tools.tune.texts import QUERY

MAX_LENGTH = 1024
MAX_BATCH_SIZE = 32
MAX_BATCH_TOKENS = 8192
TIMEOUT_SECONDS = 300.0


class Ceiling:
    """One connection to Triton, without a gateway."""

    def __init__(self, triton_url: str, model: str, tokenizer_dir: Path) -> None:
        self._backend = TritonBackend(triton_url, model)
        self._tokenizer = TextTokenizer(tokenizer_dir, max_length=MAX_LENGTH)

    async def __aenter__(self) -> Ceiling:
        await self._backend.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._backend.close()

    def pack(self, texts: Sequence[str]) -> list[TokenBatch]:
        """Batch all texts by length, with knowledge of all of them."""
        limits = BatchLimits(MAX_BATCH_SIZE, MAX_BATCH_TOKENS, MAX_LENGTH)
        left = sorted(self._tokenizer.encode(texts), key=lambda text: text.length)
        batches: list[TokenBatch] = []
        while left:
            window = similar_lengths([text.length for text in left], len(left) - 1, limits)
            chosen = left[window.start : window.stop]
            del left[window.start : window.stop]
            pad, length = self._tokenizer.end_token_id, MAX_LENGTH
            batches.append(pad_batch(chosen, pad_token_id=pad, max_length=length))
        return batches

    def pack_query(self) -> list[TokenBatch]:
        return self.pack(format_inputs([QUERY], input_type="query"))

    async def run(self, batches: Sequence[TokenBatch], window: int = 2) -> float:
        """Run batches with `window` of them in flight, and return the seconds."""
        slots = asyncio.Semaphore(window)
        began = time.perf_counter()

        async def one(batch: TokenBatch) -> None:
            async with slots:
                await self._backend.infer(batch, timeout_seconds=TIMEOUT_SECONDS, priority=2)

        await asyncio.gather(*(one(batch) for batch in batches))
        return time.perf_counter() - began
