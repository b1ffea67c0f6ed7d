"""What the gateway costs over Triton alone, measured in one run on the same local Triton and model.

* Bulk: documents of mixed lengths in requests of 256, beside the ceiling: the same texts tokenized
  beforehand, packed by length and sent straight to Triton, with no gateway.
* Query: one short query at a time on an idle gateway, beside the same inference sent straight.

Rounds alternate between the two sides and medians are reported, since machines drift.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
from rich.console import Console
from rich.table import Table

import qwen3_nano
from gateway_process import running_gateway, triton_flags
from qwen3_triton_gateway.backends.triton import TritonBackend
from qwen3_triton_gateway.batching import pad_batch
from qwen3_triton_gateway.local_triton import LocalTriton
from qwen3_triton_gateway.prompts import format_inputs
from qwen3_triton_gateway.scheduler import BatchLimits, similar_lengths
from qwen3_triton_gateway.tensors import TokenBatch
from qwen3_triton_gateway.tokenization import TextTokenizer

DOCUMENTS = Path(__file__).resolve().parents[1] / "examples" / "demo" / "documents.jsonl"
ROUNDS = 5
BULK_TEXTS = 512
REQUEST_TEXTS = 256
QUERIES = 40
MAX_LENGTH = 1024
MAX_BATCH_SIZE = 32
MAX_BATCH_TOKENS = 8192
# Lengths in words are log-normal around this median, as paragraphs of real corpora are.
MEDIAN_WORDS, SIGMA, MAX_WORDS = 50, 0.8, 480
QUERY = "Why does bread rise?"
TIMEOUT_SECONDS = 120.0

Measurement = Callable[[], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to the same vectors, in seconds a round."""

    name: str
    gateway_seconds: list[float]
    direct_seconds: list[float]


def mixed_texts(count: int) -> list[str]:
    """Cut the bundled documents' words into texts of log-normal lengths."""
    lines = DOCUMENTS.read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in lines).split()
    random = np.random.default_rng(11)
    lengths = np.clip(random.lognormal(np.log(MEDIAN_WORDS), SIGMA, count), 1, MAX_WORDS)
    starts = random.integers(0, len(words) - MAX_WORDS, count)
    pairs = zip(starts.tolist(), lengths.astype(int).tolist(), strict=True)
    return [" ".join(words[start : start + length]) for start, length in pairs]


def packed(tokenizer: TextTokenizer, texts: list[str]) -> list[TokenBatch]:
    """Tokenize and pack texts as the scheduler would, knowing all of them beforehand."""
    limits = BatchLimits(MAX_BATCH_SIZE, MAX_BATCH_TOKENS, MAX_LENGTH)
    left = sorted(tokenizer.encode(texts), key=lambda text: text.length)
    batches: list[TokenBatch] = []
    while left:
        window = similar_lengths([text.length for text in left], len(left) - 1, limits)
        chosen = left[window.start : window.stop]
        del left[window.start : window.stop]
        batches.append(
            pad_batch(chosen, pad_token_id=tokenizer.end_token_id, max_length=MAX_LENGTH)
        )
    return batches


async def infer_all(backend: TritonBackend, batches: list[TokenBatch], window: int) -> None:
    """Run batches straight on Triton with `window` of them in flight."""
    slots = asyncio.Semaphore(window)

    async def one(batch: TokenBatch) -> None:
        async with slots:
            await backend.infer(batch, timeout_seconds=TIMEOUT_SECONDS, priority=2)

    await asyncio.gather(*(one(batch) for batch in batches))


async def timed(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def compare(name: str, gateway: Measurement, direct: Measurement) -> Comparison:
    """Alternate the two sides, one warm-up round first."""
    await gateway()
    await direct()
    rounds = [(await gateway(), await direct()) for _ in range(ROUNDS)]
    return Comparison(name, [one for one, _ in rounds], [other for _, other in rounds])


async def measure(triton_url: str, gateway_url: str) -> list[Comparison]:
    """Measure both comparisons through one gateway and one connection to Triton."""
    tokenizer = TextTokenizer(qwen3_nano.model_dir(), max_length=MAX_LENGTH)
    backend = TritonBackend(triton_url, qwen3_nano.MODEL_ID)
    await backend.connect()
    texts = mixed_texts(BULK_TEXTS)
    batches = packed(tokenizer, texts)
    query_batches = packed(tokenizer, format_inputs([QUERY], input_type="query"))
    async with httpx2.AsyncClient(base_url=gateway_url, timeout=TIMEOUT_SECONDS) as http:

        async def embed(chunk: list[str], input_type: str) -> None:
            body = {"texts": chunk, "input_type": input_type, "encoding_format": "base64"}
            (await http.post("/embed", json=body)).raise_for_status()

        async def bulk() -> None:
            chunks = range(0, len(texts), REQUEST_TEXTS)
            await asyncio.gather(
                *(embed(texts[start : start + REQUEST_TEXTS], "document") for start in chunks)
            )

        async def queries() -> float:
            times = [await timed(embed([QUERY], "query")) for _ in range(QUERIES)]
            return statistics.median(times)

        async def direct_queries() -> float:
            times = [await timed(infer_all(backend, query_batches, 1)) for _ in range(QUERIES)]
            return statistics.median(times)

        comparisons = [
            await compare(
                f"{len(texts)} documents in requests of {REQUEST_TEXTS}",
                lambda: timed(bulk()),
                lambda: timed(infer_all(backend, batches, backend.spec.instance_count + 1)),
            ),
            await compare("one short query on an idle gateway, p50", queries, direct_queries),
        ]
    await backend.close()
    return comparisons


def show(title: str, comparisons: list[Comparison], console: Console) -> None:
    """Print medians and the ratio of each round's two sides."""
    table = Table(title, "gateway", "straight to Triton", "ratio, median (min to max)")
    for comparison in comparisons:
        pairs = zip(comparison.direct_seconds, comparison.gateway_seconds, strict=True)
        ratios = sorted(direct / gateway for direct, gateway in pairs)
        table.add_row(
            comparison.name,
            f"{statistics.median(comparison.gateway_seconds) * 1000:.1f} ms",
            f"{statistics.median(comparison.direct_seconds) * 1000:.1f} ms",
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        )
    console.print(table)


def main() -> int:
    """Start both servers, measure, print the table."""
    console = Console()
    console.print("Starting Triton with the nano model, and the gateway ...")
    with LocalTriton(
        model_dir=qwen3_nano.model_dir(),
        model_name=qwen3_nano.MODEL_ID,
        max_batch_size=MAX_BATCH_SIZE,
    ) as triton:
        for url in (triton.grpc_url, triton.http_url):
            title = "over " + url.partition(":")[0]
            with running_gateway(*triton_flags(url)) as gateway:
                console.print(f"Measuring {title}, {ROUNDS} rounds of each ...")
                show(title, asyncio.run(measure(url, gateway.url)), console)
    console.print("The ratio is Triton's time by the gateway's: 1.00 would be a free gateway.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
