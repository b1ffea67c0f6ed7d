"""Resident memory of a gateway over minutes of mixed load: does it stay flat?

    python bench/memory.py                       # ten minutes, after two of warm-up
    python bench/memory.py --minutes 60

The load resembles a bad hour: documents of mixed lengths in requests of 8, 256 and 2,048, as floats
and as base64, with queries at the same time, rejected requests, callers that disconnect, and a full
cache.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from pathlib import Path

import aiohttp
import click
from load import LoadClient, Report, closed_loop, open_loop, until
from report import machine
from rich.console import Console
from rich.table import Table

import qwen3_nano
from gateway_process import running_gateway, triton_flags
from qwen3_triton_tools.local_triton import LocalTriton
from qwen3_triton_tools.tune.texts import chunks, mixed_texts

# Full after the warm-up, and replaced continuously from then on.
CACHE_BYTES = 4_000_000
SAMPLE_SECONDS = 1.0
HANG_UP_SECONDS = 0.05
QUERY_RATE = 2.0
PAUSE_SECONDS = 0.5
BAR_WIDTH = 40
REFUSED: list[dict[str, list[str]]] = [{"texts": []}, {"text": ["a"]}, {"texts": ["a", " "]}]


def resident_mib(pid: int) -> float:
    """Read a process's resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmRSS"))
    return int(kilobytes) / 1024


async def refused(url: str, seconds: float) -> None:
    """Send requests that the gateway rejects, and requests whose caller disconnects."""
    end = time.perf_counter() + seconds
    long = mixed_texts(64, seed=1)
    impatient = aiohttp.ClientTimeout(HANG_UP_SECONDS)
    async with aiohttp.ClientSession(url) as session:
        while time.perf_counter() < end:
            for body in REFUSED:
                async with session.post("/embed", json=body) as answer:
                    await answer.read()
            async with session.post("/embed", data=b"[" * 1_000_000) as answer:
                await answer.read()
            try:
                async with session.post("/embed", json={"texts": long}, timeout=impatient):
                    pass
            except TimeoutError:
                pass
            await asyncio.sleep(PAUSE_SECONDS)


async def mixed_load(url: str, seconds: float) -> list[Report]:
    """Load a gateway with requests of all kinds."""
    # Texts that differ from round to round, so that the cache is replaced.
    rounds = [mixed_texts(4096, seed=seed) for seed in range(5)]
    texts = list(itertools.chain.from_iterable(rounds))
    async with LoadClient(url) as client:
        small, middle, large = (until(seconds, chunks(texts, size)) for size in (8, 256, 2048))
        *reports, _ = await asyncio.gather(
            closed_loop(client, small, 4),
            closed_loop(client, middle, 1, encoding_format="base64"),
            closed_loop(client, large, 1),
            open_loop(client, QUERY_RATE, seconds),
            refused(url, seconds),
        )
    return reports


async def watch(pid: int, seconds: float) -> list[float]:
    """Sample a process's memory."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        samples.append(resident_mib(pid))
        await asyncio.sleep(SAMPLE_SECONDS)
    return samples


async def measure(url: str, pid: int, minutes: int, warm_minutes: int) -> None:
    """Load and watch a gateway, and print the median of every minute."""
    seconds = (minutes + warm_minutes) * 60.0
    reports, samples = await asyncio.gather(mixed_load(url, seconds), watch(pid, seconds))
    per_minute = len(samples) // (minutes + warm_minutes)
    medians = [
        statistics.median(samples[start : start + per_minute])
        for start in range(0, per_minute * (minutes + warm_minutes), per_minute)
    ]
    table = Table("minute", "resident, MiB", "")
    for minute, median in enumerate(medians, 1):
        bar = "█" * round(BAR_WIDTH * median / max(medians))
        table.add_row(
            f"{minute}{' (warm-up)' if minute <= warm_minutes else ''}", f"{median:.1f}", bar
        )
    console = Console()
    console.print(machine())
    console.print(table)
    growth = medians[-1] / medians[warm_minutes] - 1
    texts = sum(report.texts for report in reports)
    console.print(f"{growth:+.1%} from the first measured minute to the last; target: under +5 %.")
    console.print(f"{texts:,} texts embedded; peak {max(samples):.1f} MiB.")


@click.command()
@click.option("--minutes", default=10, show_default=True, help="Minutes to measure.")
@click.option("--warm-minutes", default=2, show_default=True, help="Minutes of warm-up.")
def main(minutes: int, warm_minutes: int) -> None:
    """Load a gateway in front of a local Triton and print its memory, minute by minute."""
    with (
        LocalTriton(
            model_dir=qwen3_nano.model_dir(), model_name=qwen3_nano.MODEL_ID, max_batch_size=32
        ) as triton,
        running_gateway(
            *triton_flags(triton.grpc_url), "--cache-bytes", str(CACHE_BYTES)
        ) as gateway,
    ):
        asyncio.run(measure(gateway.url, gateway.process.pid, minutes, warm_minutes))


if __name__ == "__main__":
    sys.exit(main())
