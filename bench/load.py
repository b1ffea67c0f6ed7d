"""A load generator for `POST /embed`: callers that wait for responses, and queries that do not.

Run it against any gateway:

    python bench/load.py --clients 8 --texts-per-request 8 --seconds 30
    python bench/load.py --url http://gpu-box:8101 --texts-per-request 256 --query-rate 20
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import aiohttp
import click
import numpy as np
from rich.console import Console
from rich.table import Table

from qwen3_triton_tools.tune.texts import QUERY, chunks, mixed_texts

TIMEOUT_SECONDS = 300.0


@dataclass
class Report:
    """The results of one lane of a load."""

    texts: int = 0
    wall_seconds: float = 0.0
    latencies_seconds: list[float] = field(default_factory=list[float])
    statuses: Counter[int] = field(default_factory=Counter[int])

    @property
    def texts_per_second(self) -> float:
        return self.texts / self.wall_seconds

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latencies_seconds, percent)) * 1000


class LoadClient:
    """A session with a gateway."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session = aiohttp.ClientSession(
            url, headers=headers, timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS)
        )

    async def __aenter__(self) -> LoadClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def embed(self, texts: list[str], report: Report, **fields: str) -> None:
        """Send one request and record its result."""
        began = time.perf_counter()
        async with self._session.post("/embed", json={"texts": texts} | fields) as answer:
            await answer.read()
        report.latencies_seconds.append(time.perf_counter() - began)
        report.statuses[answer.status] += 1
        report.texts += len(texts) if answer.status == 200 else 0

    async def post_texts(self, texts: list[str]) -> str:
        """Embed texts and return the response's body."""
        async with self._session.post("/embed", json={"texts": texts}) as answer:
            return await answer.text()

    async def get(self, path: str) -> str:
        async with self._session.get(path) as answer:
            return await answer.text()


async def closed_loop(
    client: LoadClient, requests: Iterable[list[str]], callers: int, **fields: str
) -> Report:
    """Let callers take requests from one list; each sends its next one after a response."""
    report, left = Report(), iter(requests)
    began = time.perf_counter()

    async def caller() -> None:
        for texts in left:
            await client.embed(texts, report, **fields)

    await asyncio.gather(*(caller() for _ in range(callers)))
    report.wall_seconds = time.perf_counter() - began
    return report


async def open_loop(client: LoadClient, rate: float, seconds: float) -> Report:
    """Send queries as Poisson arrivals at `rate` per second, whatever is still waiting."""
    report, random = Report(), np.random.default_rng(5)
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            await asyncio.sleep(random.exponential(1 / rate))
            if time.perf_counter() - began > seconds:
                break
            query = [f"{QUERY} {number}"]
            group.create_task(
                client.embed(query, report, input_type="query", encoding_format="base64")
            )
    report.wall_seconds = time.perf_counter() - began
    return report


def until(seconds: float, requests: list[list[str]]) -> Iterable[list[str]]:
    """Repeat requests for so many seconds."""
    end = time.perf_counter() + seconds
    return itertools.takewhile(lambda _: time.perf_counter() < end, itertools.cycle(requests))


@click.command()
@click.option("--url", default="http://localhost:8101", show_default=True)
@click.option("--api-key", envvar="QWEN3_TRITON_API_KEY", help="If the gateway requires one.")
@click.option("--clients", default=8, show_default=True, help="Callers that send documents.")
@click.option("--texts-per-request", default=8, show_default=True)
@click.option("--query-rate", default=0.0, help="Queries per second at the same time; 0 for none.")
@click.option("--seconds", default=30.0, show_default=True)
def main(
    *,
    url: str,
    api_key: str | None,
    clients: int,
    texts_per_request: int,
    query_rate: float,
    seconds: float,
) -> None:
    """Load a running gateway with documents of mixed lengths, and queries at the same time.

    \b
    Examples:
      python bench/load.py --clients 8 --texts-per-request 8
      python bench/load.py --clients 4 --texts-per-request 256 --query-rate 20 --seconds 60
    """
    requests = chunks(mixed_texts(4096), texts_per_request)

    async def run() -> dict[str, Report]:
        async with LoadClient(url, api_key) as client:
            work = {
                "documents": closed_loop(
                    client, until(seconds, requests), clients, encoding_format="base64"
                )
            }
            if query_rate:
                work["queries"] = open_loop(client, query_rate, seconds)
            return dict(zip(work, await asyncio.gather(*work.values()), strict=True))

    table = Table("", "texts/s", "p50", "p95", "p99", "statuses")
    for lane, report in asyncio.run(run()).items():
        percentiles = (f"{report.percentile_ms(percent):.0f} ms" for percent in (50, 95, 99))
        statuses = ", ".join(f"{code}: {count}" for code, count in sorted(report.statuses.items()))
        table.add_row(lane, f"{report.texts_per_second:.1f}", *percentiles, statuses)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
