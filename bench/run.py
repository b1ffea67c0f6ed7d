"""The gateway and what it is compared with, in one run on the same local Triton and model.

    make bench                                   # without another gateway
    make bench BASELINE=path/to/app.py           # any server of POST /embed, one caller at a time
    make bench ONLY=lone,answers ROUNDS=9

Rounds alternate between the sides, and medians are reported. Machines drift, so read the ratios.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from answers import measure_answers
from baseline import running_baseline
from ceiling import MAX_BATCH_SIZE, Ceiling
from environments import parity_python
from heavy import MODEL_NAME as HEAVY
from heavy import write_heavy_model
from load import LoadClient, Report, closed_loop, open_loop, until
from peers import measure_peers
from report import Row, show, spread, write_markdown
from rich.console import Console
from rich.progress import track

import qwen3_nano
from gateway_process import running_gateway, triton_flags
from qwen3_triton_tools.local_triton import LocalTriton
from qwen3_triton_tools.tune.texts import QUERY, chunks, mixed_texts

# Sizes so that each round takes five to ten seconds on two cores.
NANO_TEXTS, HEAVY_TEXTS, LARGE_TEXTS = 512, 128, 2048
CLIENTS, TEXTS_PER_REQUEST = 8, 8
QUERIES = 60
QUERY_RATE = 3.0
LANE_SECONDS = 12.0
# Both compute in float32, with different orders of summation.
MIN_COSINE = 0.9999


@dataclass(frozen=True, slots=True)
class Stack:
    """A Triton, the gateway in front of it, and what else runs on it."""

    model: str
    model_dir: Path
    triton: LocalTriton
    gateway_url: str
    baseline_url: str | None
    rounds: int

    def ceiling(self) -> Ceiling:
        return Ceiling(self.triton.grpc_url, self.model, self.model_dir)


async def documents(stack: Stack, count: int, target: float) -> list[Row]:
    """Measure documents: 8 callers of the gateway, one of the baseline, and the ceiling."""
    texts = mixed_texts(count)
    requests = chunks(texts, TEXTS_PER_REQUEST)
    ours: list[float] = []
    theirs: list[float] = []
    packed: list[float] = []
    async with stack.ceiling() as ceiling, LoadClient(stack.gateway_url) as client:
        batches = ceiling.pack(texts)
        await closed_loop(client, requests[:16], CLIENTS)
        for _ in range(stack.rounds):
            ours.append((await closed_loop(client, requests, CLIENTS)).texts_per_second)
            packed.append(count / await ceiling.run(batches))
            if stack.baseline_url:
                async with LoadClient(stack.baseline_url) as other:
                    theirs.append((await closed_loop(other, requests, 1)).texts_per_second)
    name = f"{stack.model}: documents, {CLIENTS} callers, requests of {TEXTS_PER_REQUEST}"
    rows = [_ratio_row(name, ours, "straight to Triton, packed", packed)]
    if theirs:
        rows.append(_ratio_row(name, ours, "the baseline, one caller", theirs, target))
        rows.append(
            _ratio_row(f"{stack.model}: the ceiling itself", packed, "the baseline", theirs)
        )
    return rows


async def large_requests(stack: Stack) -> list[Row]:
    """Measure requests of 256 and of 2,048 texts against the ceiling."""
    rows: list[Row] = []
    for size, count in ((256, 512), (2048, LARGE_TEXTS)):
        texts = mixed_texts(count)
        ours: list[float] = []
        packed: list[float] = []
        async with stack.ceiling() as ceiling, LoadClient(stack.gateway_url) as client:
            batches = ceiling.pack(texts)
            for _ in range(stack.rounds):
                report = await closed_loop(client, chunks(texts, size), 2, encoding_format="base64")
                ours.append(report.texts_per_second)
                packed.append(count / await ceiling.run(batches))
        name = f"{stack.model}: {count} documents in requests of {size}"
        rows.append(_ratio_row(name, ours, "straight to Triton, packed", packed, 0.9))
    return rows


async def lone_query(stack: Stack) -> list[Row]:
    """Measure a query on an idle gateway against the same call to Triton."""
    rows: list[Row] = []
    for url in (stack.triton.grpc_url, stack.triton.http_url):
        with running_gateway(*triton_flags(url, stack.model)) as gateway:
            ceiling = Ceiling(url, stack.model, stack.model_dir)
            async with ceiling, LoadClient(gateway.url) as client:
                rows.append(await _lone_query(url, client, ceiling, stack.rounds))
    return rows


async def _lone_query(url: str, client: LoadClient, ceiling: Ceiling, rounds: int) -> Row:
    batches = ceiling.pack_query()

    async def embed() -> None:
        await client.embed([QUERY], Report(), input_type="query", encoding_format="base64")

    async def direct() -> None:
        await ceiling.run(batches)

    async def nothing() -> None:
        await client.get("/health/live")

    p50 = {name: list[float]() for name in ("gateway", "triton", "client")}
    for _ in range(rounds + 1):
        for name, milliseconds in (await _medians_ms(embed, direct, nothing)).items():
            p50[name].append(milliseconds)
    pairs = list(zip(p50["gateway"], p50["triton"], strict=True))[1:]
    more = [gateway - triton for gateway, triton in pairs]
    return Row(
        f"nano: a single short query over {url.partition(':')[0]}, p50",
        f"{statistics.median(p50['gateway'][1:]):.1f} ms",
        f"straight to Triton: {statistics.median(p50['triton'][1:]):.1f} ms",
        f"+{spread(more, 1)} ms, {statistics.median(p50['client']):.1f} ms of it in the client",
        "at most +3 ms",
        statistics.median(more) <= 3,
    )


async def _medians_ms(*calls: Callable[[], Awaitable[None]]) -> dict[str, float]:
    """Take turns, so that each call finds the machine in the same state."""
    times: dict[str, list[float]] = {name: [] for name in ("gateway", "triton", "client")}
    for _ in range(QUERIES):
        for name, call in zip(times, calls, strict=True):
            began = time.perf_counter()
            await call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) * 1000 for name, seconds in times.items()}


async def lanes(stack: Stack) -> list[Row]:
    """Measure queries during a bulk load that fills the queue, and what they cost it."""
    requests = chunks(mixed_texts(LARGE_TEXTS), 256)
    alone: list[float] = []
    with_queries: list[float] = []
    queries = Report()
    batch_ms: list[float] = []
    async with LoadClient(stack.gateway_url) as client:
        for _ in range(stack.rounds):
            load = closed_loop(client, until(LANE_SECONDS, requests), 4, encoding_format="base64")
            before = await _document_batches(client)
            alone.append((await load).texts_per_second)
            after = await _document_batches(client)
            # Two are in flight on one instance, so a round trip is twice the service time.
            batch_ms.append((after[0] - before[0]) / (after[1] - before[1]) / 2 * 1000)
            load = closed_loop(client, until(LANE_SECONDS, requests), 4, encoding_format="base64")
            bulk, seen = await asyncio.gather(load, open_loop(client, QUERY_RATE, LANE_SECONDS))
            with_queries.append(bulk.texts_per_second)
            queries.latencies_seconds += seen.latencies_seconds
            queries.statuses += seen.statuses
    service, p99 = statistics.median(batch_ms), queries.percentile_ms(99)
    kept = [with_ / without for with_, without in zip(with_queries, alone, strict=True)]
    return [
        Row(
            f"{stack.model}: queries during a bulk load, {QUERY_RATE:g} a second",
            f"p50 {queries.percentile_ms(50):.0f} ms, p99 {p99:.0f} ms, "
            f"{len(queries.latencies_seconds)} queries",
            f"a document batch takes {service:.0f} ms",
            f"p99 is {p99 / service:.1f} batches",
            "at most 3",
            p99 <= 3 * service,
        ),
        Row(
            f"{stack.model}: the bulk load during those queries",
            f"{statistics.median(with_queries):.0f} texts/s",
            f"without queries: {statistics.median(alone):.0f} texts/s",
            spread(kept),
            "at least 0.85",
            statistics.median(kept) >= 0.85,
        ),
    ]


async def _document_batches(client: LoadClient) -> tuple[float, float]:
    """Read the seconds and the number of document batches from the gateway's metrics."""
    lines = (await client.get("/metrics")).splitlines()
    name = "qwen3_triton_batch_seconds"
    seconds, count = (
        sum(
            float(line.split()[1]) for line in lines if line.startswith(f'{name}_{part}{{lane="doc')
        )
        for part in ("sum", "count")
    )
    return seconds, count


async def peers(stack: Stack) -> list[Row]:
    """Measure the gateway without Triton against other in-process engines on the same weights."""
    texts = mixed_texts(HEAVY_TEXTS)
    requests = chunks(texts, TEXTS_PER_REQUEST)
    ours: list[float] = []
    with running_gateway("--model-dir", str(stack.model_dir)) as gateway:
        async with LoadClient(gateway.url) as client:
            await closed_loop(client, requests[:8], CLIENTS)
            for _ in range(stack.rounds):
                ours.append((await closed_loop(client, requests, CLIENTS)).texts_per_second)
            vector = json.loads(await client.post_texts(texts[:1]))["embeddings"][0]
    rows: list[Row] = []
    for name, peer in measure_peers(stack.model_dir, texts).items():
        # Without equal vectors, there is nothing to compare.
        assert np.dot(vector, peer.first) > MIN_COSINE
        rate = statistics.median(peer.texts_per_second)
        rows.append(
            Row(
                f"{stack.model}: documents without Triton, {CLIENTS} callers over HTTP",
                f"{statistics.median(ours):.1f} texts/s",
                f"{name}, one call of {HEAVY_TEXTS}: {rate:.1f} texts/s",
                spread([each / rate for each in ours]),
            )
        )
    return rows


async def answers(_: Stack) -> list[Row]:
    """Measure the CPU time of encoding 256 vectors."""
    cpu = await asyncio.to_thread(measure_answers)
    milliseconds = {name: f"{seconds * 1000:.1f} ms" for name, seconds in cpu.items()}
    to_json, to_usual = cpu["base64"] / cpu["float"], cpu["float"] / cpu["usual"]
    return [
        Row(
            "CPU of encoding 256 vectors as base64",
            milliseconds["base64"],
            f"as JSON floats: {milliseconds['float']}",
            f"{to_json:.2f}",
            "at most 0.25",
            to_json <= 0.25,
        ),
        Row(
            "CPU of encoding 256 vectors as JSON floats",
            milliseconds["float"],
            f"response model and tolist(): {milliseconds['usual']}",
            f"{to_usual:.2f}",
            "at most 0.50",
            to_usual <= 0.5,
        ),
    ]


def _ratio_row(
    what: str, ours: list[float], name: str, theirs: list[float], target: float | None = None
) -> Row:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Row(
        what,
        f"{statistics.median(ours):.1f} texts/s",
        f"{name}: {statistics.median(theirs):.1f} texts/s",
        spread(ratios),
        f"at least {target:g}" if target else "",
        statistics.median(ratios) >= target if target else None,
    )


NANO_PARTS: dict[str, Callable[[Stack], Awaitable[list[Row]]]] = {
    "documents": lambda stack: documents(stack, NANO_TEXTS, 4),
    "large": large_requests,
    "lone": lone_query,
    "lanes": lanes,
    "answers": answers,
}
HEAVY_PARTS: dict[str, Callable[[Stack], Awaitable[list[Row]]]] = {
    "heavy": lambda stack: documents(stack, HEAVY_TEXTS, 2),
    "peers": peers,
}


@click.command()
@click.option("--baseline", type=click.Path(exists=True, path_type=Path), help="Its app.py.")
@click.option("--rounds", default=5, show_default=True, help="Rounds per measurement.")
@click.option(
    "--only", default="", help="Parts, comma-separated: " + ", ".join([*NANO_PARTS, *HEAVY_PARTS])
)
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Also write the table to this file."
)
def main(baseline: Path | None, rounds: int, only: str, markdown: Path | None) -> None:
    """Measure the gateway, and print each result with its target.

    \b
    Examples:
      python bench/run.py
      python bench/run.py --only lone,answers --rounds 9
      python bench/run.py --baseline ../runbook/app.py --markdown table.md
    """
    console = Console()
    chosen = {part.strip() for part in only.split(",") if part.strip()}
    rows: list[Row] = []
    if not baseline:
        console.print("No baseline was given: skipping the rows that compare with one.")
    if not parity_python():
        console.print("Skipping `peers`: it needs the environment of `make parity`.")
        HEAVY_PARTS.pop("peers")
    with tempfile.TemporaryDirectory() as folder:
        for model, model_dir, parts in (
            (qwen3_nano.MODEL_ID, qwen3_nano.model_dir(), NANO_PARTS),
            (HEAVY, Path(folder), HEAVY_PARTS),
        ):
            wanted = {name: part for name, part in parts.items() if not chosen or name in chosen}
            if not wanted:
                continue
            if model == HEAVY:
                write_heavy_model(model_dir)
            console.print(f"Starting Triton with the {model} model, and the gateway ...")
            rows += _measure(model, model_dir, wanted, baseline=baseline, rounds=rounds)
    show(rows, console)
    if markdown:
        write_markdown(rows, markdown)


def _measure(
    model: str,
    model_dir: Path,
    parts: dict[str, Callable[[Stack], Awaitable[list[Row]]]],
    *,
    baseline: Path | None,
    rounds: int,
) -> list[Row]:
    """Start a stack for one model and run its parts."""
    rows: list[Row] = []
    with (
        LocalTriton(model_dir=model_dir, model_name=model, max_batch_size=MAX_BATCH_SIZE) as triton,
        running_gateway(*triton_flags(triton.grpc_url, model)) as gateway,
    ):
        for name, part in track(parts.items(), "Measuring"):
            stack = Stack(model, model_dir, triton, gateway.url, None, rounds)
            if baseline and name in {"documents", "heavy"}:
                with running_baseline(
                    baseline.resolve(),
                    triton_url=triton.http_url,
                    model=model,
                    tokenizer_dir=qwen3_nano.model_dir(),
                ) as url:
                    compared = Stack(model, model_dir, triton, gateway.url, url, rounds)
                    rows += asyncio.run(_run(part, compared))
            else:
                rows += asyncio.run(_run(part, stack))
    return rows


async def _run(part: Callable[[Stack], Awaitable[list[Row]]], stack: Stack) -> list[Row]:
    return await part(stack)


if __name__ == "__main__":
    sys.exit(main())
