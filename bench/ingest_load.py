"""The loader end to end: how busy it keeps the gateway, a second run, and memory over a million.

    PYTHONPATH=tests/support:examples python bench/ingest_load.py
    PYTHONPATH=tests/support:examples python bench/ingest_load.py --texts 5000 --rounds 5
    PYTHONPATH=tests/support:examples python bench/ingest_load.py --only stream --rows 1000000

The gateway runs the nano model in its own process, without a cache. The loader is compared with
the client alone, given the same texts, which shows what the gateway can do. PostgreSQL writes to
disk as in production. The million rows come from Parquet files with vectors, in another process.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx2
import numpy as np
import psycopg
import pyarrow
from pyarrow import parquet
from report import Row, show, spread, write_markdown
from rich.console import Console
from rich.progress import track

from demo.embedded_postgres import embedded_postgres
from gateway_process import running_gateway
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest import (
    GatewayOptions,
    IndexOptions,
    LoadOptions,
    LoadReport,
    load,
)
from qwen3_triton_tools.tune.texts import mixed_texts

SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "4GB"}
CONCURRENCY = 16
DIMENSIONS = 1024
FILES = 8
SAMPLE_SECONDS = 0.02
pa: Any = pyarrow  # whose own types are incomplete
pq: Any = parquet
BUSY_TARGET = 0.9
MEMORY_TARGET_MIB = 500
GROUP_ROWS = 5000
HEADER = ("", "the loader", "compared with")
# Prints its own peak memory: `ru_maxrss` of a child would inherit the parent's.
PEAK = """
import sys
from qwen3_triton_ingest.cli import main
try:
    main(sys.argv[1:])
finally:
    print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")), file=sys.stderr)
"""


@contextmanager
def sampled(url: str, shares: list[float]) -> Generator[None]:
    """Append the share of time in which the gateway had a batch at the model."""
    stopped, seen = threading.Event(), list[bool]()

    def sample() -> None:
        with httpx2.Client() as client:
            while not stopped.wait(SAMPLE_SECONDS):
                seen.append(client.get(f"{url}/health").json()["batches_in_flight"] > 0)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        shares.append(sum(seen) / max(1, len(seen)))


def write_texts(folder: Path, texts: list[str]) -> None:
    """Write texts into some JSONL files."""
    folder.mkdir(parents=True)
    for number in range(FILES):
        lines = [
            json.dumps({"id": f"{number}-{at}", "text": text, "topic": "bench"})
            for at, text in enumerate(texts[number::FILES])
        ]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def end_to_end(texts: int, rounds: int) -> list[Row]:
    """Load texts and embed the same texts with the client alone, in turn."""
    ratios, busy, busy_alone = list[float](), list[float](), list[float]()
    rates, alone, again = list[float](), list[float](), list[float]()
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded_postgres(0, durable=True, settings=SETTINGS) as dsn,
        running_gateway("--cache-bytes", "0") as gateway,
        EmbeddingClient(gateway.url, max_concurrency=CONCURRENCY) as client,
    ):
        options = LoadOptions(
            gateway=GatewayOptions(url=gateway.url, max_concurrency=CONCURRENCY),
            index=IndexOptions(policy="none", text="none"),
        )

        def load_round(number: int) -> LoadReport:
            source = Path(folder) / str(number)
            return load([source], dsn=dsn, table=f"round_{number}", options=options)

        for number in track(range(rounds), "end to end"):
            corpus = mixed_texts(texts, seed=number)
            write_texts(Path(folder) / str(number), corpus)
            began = time.perf_counter()
            with sampled(gateway.url, busy):
                report = load_round(number)
            rates.append(report.counts.chunks_written / (time.perf_counter() - began))
            began = time.perf_counter()
            with sampled(gateway.url, busy_alone):
                count = sum(1 for _ in client.iter_embed(corpus))
            alone.append(count / (time.perf_counter() - began))
            ratios.append(rates[-1] / alone[-1])
            began = time.perf_counter()
            report = load_round(number)
            again.append(time.perf_counter() - began)
            assert report.counts.chunks_written == 0
    share, share_alone = statistics.median(busy), statistics.median(busy_alone)
    return [
        Row(
            "share of time with a batch at the model",
            f"{share:.1%} of the time",
            f"the client alone: {share_alone:.1%}",
            spread(busy, 3),
            f"at least {BUSY_TARGET}",
            share >= BUSY_TARGET,
        ),
        Row(
            f"{texts:,} short texts into PostgreSQL",
            f"{statistics.median(rates):,.0f} chunks/s",
            f"the client alone: {statistics.median(alone):,.0f} texts/s",
            f"{spread(ratios)} times as fast",
            f"at least {BUSY_TARGET}",
            statistics.median(ratios) >= BUSY_TARGET,
        ),
        Row(
            "the same again, nothing changed",
            "nothing embedded",
            "",
            f"{spread(again)} s",
            "seconds",
        ),
    ]


def write_vectors(path: Path, rows: int) -> None:
    """Write rows of a short text and a vector of norm 1, a few thousand at a time."""
    random = np.random.default_rng(7)
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("text", pa.string()),
            ("embedding", pa.list_(pa.float32(), DIMENSIONS)),
        ]
    )
    with pq.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
        for start in track(range(0, rows, GROUP_ROWS), "writing Parquet"):
            count = min(GROUP_ROWS, rows - start)
            vectors = random.standard_normal((count, DIMENSIONS), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            flat = pa.array(vectors.ravel())
            columns = [
                pa.array(range(start, start + count), pa.int64()),
                pa.array([f"Short chunk number {start + at}." for at in range(count)]),
                pa.FixedSizeListArray.from_arrays(flat, DIMENSIONS),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=GROUP_ROWS)


def stream(rows: int) -> list[Row]:
    """Load many rows in a separate process, and read its peak memory."""
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded_postgres(0, durable=True, settings=SETTINGS) as dsn,
    ):
        path = Path(folder) / "vectors.parquet"
        write_vectors(path, rows)
        command = (
            *("load", str(path), "--dsn", dsn, "--table", "stream", "--index", "none"),
            *("--text-index", "none", "--vector-column", "embedding", "--fingerprint", "bench"),
            *("--dimensions", str(DIMENSIONS)),
        )
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=True
        )
        seconds = time.perf_counter() - began
        with psycopg.connect(dsn) as connection:
            found = connection.execute("SELECT count(*) FROM stream").fetchone()
        assert found == (rows,), found
    kib = re.search(r"VmHWM:\s+(\d+)", done.stderr)
    assert kib is not None
    peak = int(kib[1]) / 1024
    return [
        Row(
            f"{rows:,} chunks with precomputed vectors",
            f"{rows / seconds:,.0f} rows/s",
            "",
            f"peak {peak:.0f} MiB resident",
            f"below {MEMORY_TARGET_MIB} MiB",
            peak < MEMORY_TARGET_MIB,
        )
    ]


@click.command()
@click.option("--texts", default=4000, show_default=True, help="Texts per end-to-end round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--rows", default=100_000, show_default=True, help="Rows of the stream.")
@click.option("--only", type=click.Choice(["end-to-end", "stream"]))
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Also write the table to this file."
)
def main(texts: int, rounds: int, rows: int, only: str | None, markdown: Path | None) -> None:
    """Measure the loader end to end."""
    table: list[Row] = []
    if only != "stream":
        table += end_to_end(texts, rounds)
    if only != "end-to-end":
        table += stream(rows)
    show(table, Console(), HEADER)
    if markdown:
        write_markdown(table, markdown, HEADER)


if __name__ == "__main__":
    main()
