"""Rows per second into PostgreSQL: the loader and its stores against the frameworks' own.

    PYTHONPATH=tests/support:examples python bench/ingest_rates.py
    PYTHONPATH=tests/support:examples python bench/ingest_rates.py --rows 5000 --rounds 5

Vectors are precomputed by the nano model from each text's first words. A row has 1 KB of text,
metadata and 1024 float32. PostgreSQL writes to disk as in production. Sides take turns within a
round, each on an empty table, including the commit; a row shows the median of the rounds' ratios.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import psycopg
from ingest_sides import (
    LANGCHAIN,
    LAYOUTS,
    LLAMAINDEX,
    OUR_LANGCHAIN,
    OUR_LLAMAINDEX,
    Side,
    langchain_sides,
    llamaindex_sides,
    loader_sides,
    make_corpus,
    sqlalchemy_url,
)
from langchain_postgres import PGEngine
from report import Row, show, spread, write_markdown
from rich.console import Console
from rich.progress import track

from demo.embedded_postgres import embedded_postgres
from qwen3_triton_ingest.database import Connection

SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "4GB"}
NEW, AGAIN = "new rows", "existing rows"

Rates = dict[tuple[str, str], list[float]]


def without_index(connection: Connection, sides: list[Side], rounds: int) -> Rates:
    """Measure every side on an empty table, and again over the rows that it wrote."""
    rates: Rates = {}
    for number in track(range(rounds), "without a vector index"):
        for side in sides:
            connection.execute(f"TRUNCATE {side.table}".encode())
            connection.commit()
            rows = side.prepare(number)
            rates.setdefault((side.name, NEW), []).append(_rate(side, rows))
            if side.overwrites:
                rates.setdefault((side.name, AGAIN), []).append(_rate(side, rows))
    return rates


def with_index(connection: Connection, sides: list[Side], rounds: int, count: int) -> Rates:
    """Measure every side on a table with rows and an HNSW index."""
    for side in {side.table: side for side in sides}.values():
        connection.execute(f"TRUNCATE {side.table}".encode())
        connection.commit()
        side.write(side.prepare(0))
        index = f"CREATE INDEX ON {side.table} USING hnsw (embedding vector_cosine_ops)"
        connection.execute(index.encode())
        connection.commit()
    rates: Rates = {}
    for number in track(range(rounds), "with an HNSW index"):
        for place, side in enumerate(sides):
            rows = side.prepare(1000 * (place + 1) + number)[:count]
            rates.setdefault((side.name, NEW), []).append(_rate(side, rows))
    return rates


def compare(rates: Rates, pairs: Sequence[tuple[str, str, str, str, float | None]]) -> list[Row]:
    """Build rows from pairs of rates: what, ours, theirs, the kind of rows, the target."""
    rows: list[Row] = []
    for what, ours, theirs, kind, target in pairs:
        mine, other = rates[ours, kind], rates[theirs, kind]
        ratios = [a / b for a, b in zip(mine, other, strict=True)]
        rows.append(
            Row(
                what,
                f"{ours}: {statistics.median(mine):,.0f} rows/s",
                f"{theirs}: {statistics.median(other):,.0f} rows/s",
                f"{spread(ratios, 1)} times as fast",
                f"at least {target:g}" if target else "",
                statistics.median(ratios) >= target if target else None,
            )
        )
    return rows


def plain_pairs() -> list[tuple[str, str, str, str, float | None]]:
    """List the comparisons without an index, with their targets."""
    pairs: list[tuple[str, str, str, str, float | None]] = []
    for layout in LAYOUTS:
        for theirs, fresh, upsert in ((LANGCHAIN, 30, 20), (LLAMAINDEX, 12, 8)):
            copied, upserted = f"COPY, {layout} table", f"upsert, {layout} table"
            pairs.append(("a fresh load", copied, theirs, NEW, fresh))
            pairs.append((f"an upsert of {NEW}", upserted, theirs, NEW, upsert))
            pairs.append((f"an upsert of {AGAIN}", upserted, theirs, AGAIN, upsert))
    for kind in (NEW, AGAIN):
        pairs.append((f"the drop-in, {kind}", OUR_LANGCHAIN, LANGCHAIN, kind, None))
        pairs.append((f"the drop-in, {kind}", OUR_LLAMAINDEX, LLAMAINDEX, kind, None))
    return pairs


def indexed_pairs() -> list[tuple[str, str, str, str, float | None]]:
    """List the comparisons with an index, which is the bottleneck for all."""
    what = "new rows, with an HNSW index"
    return [
        (what, "upsert, langchain table", LANGCHAIN, NEW, None),
        (what, "upsert, llamaindex table", LLAMAINDEX, NEW, None),
        (what, OUR_LANGCHAIN, LANGCHAIN, NEW, None),
        (what, OUR_LLAMAINDEX, LLAMAINDEX, NEW, None),
    ]


def _rate(side: Side, rows: list[Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    side.write(rows)
    return len(rows) / (time.perf_counter() - began)


@click.command()
@click.option("--rows", default=3000, show_default=True, help="Rows per measurement.")
@click.option("--rounds", default=5, show_default=True, help="Rounds per measurement.")
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Also write the table to this file."
)
def main(rows: int, rounds: int, markdown: Path | None) -> None:
    """Measure the loader and the stores, and print each result with its target.

    \b
    Examples:
      python bench/ingest_rates.py
      python bench/ingest_rates.py --rows 5000 --rounds 9 --markdown table.md
    """
    corpus = make_corpus(rows)
    with (
        embedded_postgres(0, durable=True, settings=SETTINGS) as uri,
        psycopg.connect(uri) as connection,
    ):
        engine = PGEngine.from_connection_string(sqlalchemy_url(uri, "asyncpg"))
        sides = loader_sides(connection, corpus)
        sides += langchain_sides(engine, corpus) + llamaindex_sides(uri, corpus)
        results = compare(without_index(connection, sides, rounds), plain_pairs())
        indexed = [side for side in sides if "COPY" not in side.name and "own" not in side.name]
        rates = with_index(connection, indexed, rounds, max(1, rows // 10))
        results += compare(rates, indexed_pairs())
        engine._run_as_sync(engine.close())  # pyright: ignore[reportPrivateUsage]
    header = ("", "ours", "compared with")
    show(results, Console(), header=header)
    if markdown:
        write_markdown(results, markdown, header=header)


if __name__ == "__main__":
    sys.exit(main())
