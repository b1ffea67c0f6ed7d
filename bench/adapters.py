"""The client and the adapters compared with those in common use, against one gateway.

    python bench/adapters.py
    python bench/adapters.py --rounds 9 --markdown table.md

Speed: the same documents through each, with the model at work, and with a gateway that responds
from its cache, which leaves only the adapter's own time. CPU: of this process, for the same call.
Sides take turns within a round, and a row shows the median of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from report import Row, show, spread, write_markdown
from rich.console import Console
from rich.progress import track

import qwen3_nano
from gateway_process import running_gateway
from langchain_qwen3_triton import Qwen3TritonEmbeddings
from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding
from qwen3_triton_client import AsyncEmbeddingClient, EmbeddingClient
from qwen3_triton_tools.tune.texts import mixed_texts

DOCUMENTS = 5000
WORDS = 12  # so that a round takes seconds with the nano model on two cores
CACHE_BYTES = 500_000_000
CPU_SIZES = (32, 256, DOCUMENTS)
CPU_TEXTS = 5000  # for each size, as many calls as make up this number
MIN_COSINE = 0.9999

OURS_LANGCHAIN = "our LangChain adapter"
OURS_LLAMAINDEX = "our LlamaIndex adapter"
OURS_ARRAYS = "our client, float32 arrays"
OPENAI = "LangChain OpenAIEmbeddings"

Embed = Callable[[list[str]], Any]
AsyncEmbed = Callable[[list[str]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Adapter:
    """One way to embed documents, sync and async."""

    name: str
    embed: Embed
    aembed: AsyncEmbed


def adapters(url: str) -> list[Adapter]:
    """Create every adapter that can talk to the gateway, with its own defaults."""
    model = qwen3_nano.MODEL_ID
    langchain = Qwen3TritonEmbeddings(base_url=url)
    llamaindex = Qwen3TritonEmbedding(base_url=url)
    client, aclient = EmbeddingClient(url), AsyncEmbeddingClient(url)
    openai: Any = OpenAIEmbeddings(
        base_url=f"{url}/v1",
        api_key=cast("Any", "unused"),
        model=model,
        check_embedding_ctx_length=False,
    )
    nvidia: Any = NVIDIAEmbeddings(base_url=f"{url}/v1", model=model, api_key="unused")
    openai_like = OpenAILikeEmbedding(model_name=model, api_base=f"{url}/v1", api_key="unused")
    tei = TextEmbeddingsInference(base_url=url, model_name=model)
    return [
        Adapter(OURS_LANGCHAIN, langchain.embed_documents, langchain.aembed_documents),
        Adapter(
            OURS_LLAMAINDEX,
            llamaindex.get_text_embedding_batch,
            llamaindex.aget_text_embedding_batch,
        ),
        Adapter(OURS_ARRAYS, client.embed, aclient.embed),
        Adapter(OPENAI, openai.embed_documents, openai.aembed_documents),
        Adapter("LangChain NVIDIAEmbeddings", nvidia.embed_documents, nvidia.aembed_documents),
        Adapter(
            "LlamaIndex OpenAILikeEmbedding",
            openai_like.get_text_embedding_batch,
            openai_like.aget_text_embedding_batch,
        ),
        Adapter(
            "LlamaIndex TextEmbeddingsInference",
            tei.get_text_embedding_batch,
            tei.aget_text_embedding_batch,
        ),
    ]


def short_documents() -> list[str]:
    """Return documents of one sentence each, all different."""
    words = [text.split()[:WORDS] for text in mixed_texts(DOCUMENTS)]
    return [f"{' '.join(each)} {number}" for number, each in enumerate(words)]


def speed(url: str, what: str, runner: asyncio.Runner, rounds: int, *, warm: bool) -> list[Row]:
    """Time documents through every adapter, one after the other, round by round."""
    texts = short_documents()
    rows: list[Row] = []
    for kind in ("sync", "async"):
        seconds: dict[str, list[float]] = {}
        everyone = adapters(url)
        reference = _vectors(everyone[0].embed(texts)) if warm else None
        for _ in track(range(rounds), f"{DOCUMENTS} documents, {what}, {kind}"):
            for adapter in everyone:
                run = _caller(adapter, kind, texts, runner)
                gc.collect()
                began = time.perf_counter()
                answer = run()
                seconds.setdefault(adapter.name, []).append(time.perf_counter() - began)
                if reference is not None:
                    _compare(_vectors(answer), reference, adapter.name)
        rows += _speed_rows(what, kind, seconds)
    return rows


def cpu(url: str, runner: asyncio.Runner, rounds: int) -> list[Row]:
    """Measure this process's CPU time for the same call, against LangChain's OpenAIEmbeddings."""
    documents = short_documents()
    rows: list[Row] = []
    for kind in ("sync", "async"):
        everyone = {adapter.name: adapter for adapter in adapters(url)}
        for size in track(CPU_SIZES, f"CPU of a call, {kind}"):
            texts, calls = documents[:size], max(1, CPU_TEXTS // size)
            micros: dict[str, list[float]] = {}
            for _ in range(rounds):
                for name in (OURS_LANGCHAIN, OURS_ARRAYS, OPENAI):
                    run = _caller(everyone[name], kind, texts, runner)
                    run()
                    gc.collect()
                    began = time.process_time()
                    for _ in range(calls):
                        run()
                    used = (time.process_time() - began) / calls / size * 1e6
                    micros.setdefault(name, []).append(used)
            rows += [
                _cpu_row(f"CPU per vector, {kind}, {size} texts per call", name, micros)
                for name in (OURS_LANGCHAIN, OURS_ARRAYS)
            ]
    return rows


def _caller(
    adapter: Adapter, kind: str, texts: list[str], runner: asyncio.Runner
) -> Callable[[], object]:
    if kind == "sync":
        return lambda: adapter.embed(texts)

    async def call() -> object:
        return await adapter.aembed(texts)

    return lambda: runner.run(call())


def _vectors(answer: Any) -> Any:
    return answer.to_numpy() if hasattr(answer, "to_numpy") else np.asarray(answer, dtype="f4")


def _compare(vectors: Any, reference: Any, name: str) -> None:
    """Check that both sides returned the same vectors."""
    least = float((vectors * reference).sum(axis=1).min())
    if least < MIN_COSINE:
        sys.exit(f"{name} returned other vectors: cosine {least:.4f}")


def _speed_rows(what: str, kind: str, seconds: dict[str, list[float]]) -> list[Row]:
    rows: list[Row] = []
    for other in list(seconds)[3:]:
        ours = OURS_LANGCHAIN if other.startswith("LangChain") else OURS_LLAMAINDEX
        ratios = [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]
        median = statistics.median(ratios)
        rows.append(
            Row(
                f"{DOCUMENTS} documents, {what}, {kind}",
                f"{ours}: {statistics.median(seconds[ours]):.2f} s",
                f"{other}: {statistics.median(seconds[other]):.2f} s",
                f"{spread(ratios)} times as fast",
                "at least 1",
                median >= 1,
            )
        )
    return rows


def _cpu_row(what: str, name: str, micros: dict[str, list[float]]) -> Row:
    ratios = [a / b for a, b in zip(micros[name], micros[OPENAI], strict=True)]
    return Row(
        what,
        f"{name}: {statistics.median(micros[name]):.0f} µs",
        f"{OPENAI}: {statistics.median(micros[OPENAI]):.0f} µs",
        spread(ratios),
        "at most 0.33",
        statistics.median(ratios) <= 1 / 3,
    )


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Rounds per measurement.")
@click.option(
    "--only",
    default="cpu,cached,model",
    show_default=True,
    help="Parts: cpu, cached (the adapters alone), model (the nano model at work).",
)
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Also write the table to this file."
)
def main(rounds: int, only: str, markdown: Path | None) -> None:
    """Measure the client and the adapters, and print each result with its target.

    \b
    Examples:
      python bench/adapters.py
      python bench/adapters.py --only cpu --rounds 9
    """
    parts = {part.strip() for part in only.split(",")}
    rows: list[Row] = []
    with asyncio.Runner() as runner:
        if parts & {"cpu", "cached"}:
            with running_gateway("--cache-bytes", str(CACHE_BYTES)) as gateway:
                if "cpu" in parts:
                    rows += cpu(gateway.url, runner, rounds)
                if "cached" in parts:
                    what = "answered from the cache"
                    rows += speed(gateway.url, what, runner, rounds, warm=True)
        if "model" in parts:
            with running_gateway() as gateway:
                rows += speed(gateway.url, "nano model", runner, rounds, warm=False)
    show(rows, Console(), header=("", "ours", "compared with"))
    if markdown:
        write_markdown(rows, markdown, header=("", "ours", "compared with"))


if __name__ == "__main__":
    sys.exit(main())
