"""Recall, latency, size and build time of the index choices, on real text.

    python bench/ingest_recall.py
    python bench/ingest_recall.py --documents 50000 --markdown recall.md --plot docs/recall.svg

The documents are docstrings of the installed Python modules, embedded by the nano model; the
questions are summaries of other docstrings. Recall is the share of the exact ten nearest neighbors
that a search returns. Random vectors would be meaningless: they have no neighborhoods.
"""

from __future__ import annotations

import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import click
import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo
from recall_choices import CHOICES, EXACT, HALF, Choice
from recall_corpus import Corpus, Matrix, embedded_corpus
from recall_points import Point, write_plot
from report import Row, show, write_markdown
from rich.console import Console
from rich.progress import track

from demo.embedded_postgres import embedded_postgres
from qwen3_triton_ingest.config import IndexOptions
from qwen3_triton_ingest.index.build import build_index
from qwen3_triton_ingest.index.plan import BuildStatement
from qwen3_triton_ingest.layouts import LAYOUTS, Table
from qwen3_triton_ingest.rows.binary import copy_stream, pack_vector

K = 10
EF_SEARCH = (10, 20, 40, 100, 200, 400)
DEFAULT_EF_SEARCH, MIN_RECALL = 100, 0.95
MIN_EXACT_RECALL = 0.995  # numpy and pgvector may order ties differently
PERCENTS = (1, 10, 50)
WARM_UP = 30
SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "4GB"}
HEADER = ("", "recall@10, or time", "p50 and p95, or size")

Ids = npt.NDArray[np.int64]


def fill(connection: psycopg.Connection[Any], corpus: Corpus) -> None:
    """Write the vectors to a table for each type of column; `part` is for filters."""
    connection.execute("CREATE EXTENSION vector")
    parts = np.random.default_rng(3).integers(0, 100, len(corpus.texts))
    for table, kind in (("full_precision", "vector"), ("half_precision", "halfvec")):
        name = sql.Identifier(table)
        create = sql.SQL("CREATE TABLE {} (id int PRIMARY KEY, part int, embedding vector(1024))")
        connection.execute(create.format(name))
        with connection.cursor().copy(
            sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(name)
        ) as copy:
            for block in copy_stream(_fields(corpus.vectors, parts)):
                copy.write(block)
        change = sql.SQL("ALTER TABLE {} ALTER embedding TYPE {}(1024)")
        connection.execute(change.format(name, sql.Identifier(kind)))
        connection.execute(sql.SQL("VACUUM ANALYZE {}").format(name))


def _fields(vectors: Matrix, parts: Ids) -> Iterator[tuple[bytes, bytes, bytes]]:
    for number, (vector, part) in enumerate(zip(vectors, parts, strict=True)):
        yield (
            number.to_bytes(4, "big"),
            int(part).to_bytes(4, "big"),
            pack_vector(array("f", vector.tobytes())),
        )


def truth(vectors: Matrix, questions: Matrix) -> Ids:
    """Compute the exact ten nearest neighbors of each question with numpy."""
    return np.argsort(-(questions @ vectors.T), axis=1, kind="stable")[:, :K]


def build(dsn: str, choice: Choice) -> tuple[float, int]:
    """Build an index as the loader does, and return its seconds and bytes."""
    assert choice.index is not None
    table = Table("public", choice.table, LAYOUTS["own"], 1024)
    statement = BuildStatement(
        "the_index", sql.SQL(choice.index), bytes_per_dimension=choice.bytes_per_dimension
    )
    began = time.perf_counter()
    build_index(dsn, table, statement, IndexOptions())
    seconds = time.perf_counter() - began
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT pg_relation_size('the_index')").fetchone()
    return seconds, row[0] if row else 0


def search(
    connection: psycopg.Connection[Any],
    choice: Choice,
    questions: Matrix,
    expected: Ids,
    *,
    ef_search: int,
    where: LiteralString = "",
) -> Point:
    """Run every question once, one after the other, and compare with the exact results."""
    settings = f"SET hnsw.ef_search = {ef_search}"
    connection.execute(sql.SQL(settings))  # pyright: ignore[reportArgumentType] - a number
    query = sql.SQL(choice.query).format(table=sql.Identifier(choice.table), where=sql.SQL(where))
    cursor = connection.cursor()
    milliseconds: list[float] = []
    hits = returned = 0
    for turn, number in enumerate((*range(WARM_UP), *range(len(questions)))):
        packed = _Packed(pack_vector(array("f", questions[number].tobytes())))
        began = time.perf_counter()
        found = [row[0] for row in cursor.execute(query, (packed,), prepare=True)]
        took = time.perf_counter() - began
        if turn >= WARM_UP:
            milliseconds.append(took * 1000)
            hits += len(set(found) & set(expected[number].tolist()))
            returned += len(found)
    asked = len(questions)
    return Point(choice.name, ef_search, hits / expected.size, returned / asked, milliseconds)


class _Packed(bytes):
    """A vector in PostgreSQL's binary format."""


def _register(connection: psycopg.Connection[Any]) -> None:
    found = TypeInfo.fetch(connection, "vector")
    assert found is not None
    number = found.oid

    class VectorDumper(Dumper):
        format = Format.BINARY
        oid = number

        def dump(self, obj: bytes) -> bytes:
            return bytes(obj)

    connection.adapters.register_dumper(_Packed, VectorDumper)


def measure(dsn: str, corpus: Corpus) -> tuple[list[Row], list[Point]]:
    """Measure every choice, and the default one with filters."""
    rows: list[Row] = []
    points: list[Point] = []
    expected = truth(corpus.vectors, corpus.questions)
    with psycopg.connect(dsn, autocommit=True) as connection:
        fill(connection, corpus)
        _register(connection)
        exact = search(connection, EXACT, corpus.questions[:100], expected[:100], ef_search=40)
        if exact.recall < MIN_EXACT_RECALL:
            sys.exit(
                f"The exact search has a recall of {exact.recall:.3f}, so the benchmark is wrong."
            )
        rows.append(Row("exact", f"{exact.recall:.3f}", exact.latency, ""))
        sizes: dict[str, int] = {}
        for choice in CHOICES[1:]:
            seconds, sizes[choice.name] = build(dsn, choice)
            connection.execute("SET enable_seqscan = off")
            part = sizes[choice.name] / sizes[CHOICES[1].name]
            rows.append(
                Row(
                    f"{choice.name}: build",
                    f"{seconds:.1f} s, {len(corpus.texts) / seconds:.0f} rows/s",
                    f"{sizes[choice.name] / 1e6:.0f} MB",
                    f"{part:.2f} of full precision's size",
                )
            )
            for ef_search in track(EF_SEARCH, choice.name):
                point = search(
                    *(connection, choice, corpus.questions, expected), ef_search=ef_search
                )
                points.append(point)
                rows.append(_row(point, exact, choice))
            if choice is HALF:
                rows += filtered(connection, corpus)
            connection.execute("SET enable_seqscan = on")
            connection.execute("DROP INDEX the_index")
    return rows, points


def filtered(connection: psycopg.Connection[Any], corpus: Corpus) -> list[Row]:
    """Measure the default choice with filters that select a part of the rows."""
    rows: list[Row] = []
    parts = np.random.default_rng(3).integers(0, 100, len(corpus.texts))
    for percent in track(PERCENTS, "Filters"):
        (inside,) = np.nonzero(parts < percent)
        expected = inside[truth(corpus.vectors[inside], corpus.questions)]
        for scan in ("off", "strict_order", "relaxed_order"):
            connection.execute("SELECT set_config('hnsw.iterative_scan', %s, false)", (scan,))
            where: Any = f"WHERE part < {percent}"
            point = search(
                *(connection, HALF, corpus.questions, expected),
                ef_search=DEFAULT_EF_SEARCH,
                where=where,
            )
            what = f"{HALF.name}, filter to {percent} %, iterative_scan {scan}"
            rows.append(
                Row(
                    what,
                    f"{point.recall:.3f}",
                    point.latency,
                    f"{point.returned:.1f} rows of {K}",
                    "all rows" if scan == "relaxed_order" else "",
                    point.returned == K if scan == "relaxed_order" else None,
                )
            )
    connection.execute("SET hnsw.iterative_scan = off")
    return rows


def _row(point: Point, exact: Point, choice: Choice) -> Row:
    is_default = choice is HALF and point.ef_search == DEFAULT_EF_SEARCH
    return Row(
        f"{point.choice}, ef_search {point.ef_search}",
        f"{point.recall:.3f}",
        point.latency,
        f"{exact.p50 / point.p50:.0f} times as fast as exact",
        f"recall at least {MIN_RECALL}" if is_default else "",
        point.recall >= MIN_RECALL if is_default else None,
    )


@click.command()
@click.option("--documents", default=30_000, show_default=True, help="Rows in the table.")
@click.option("--questions", default=400, show_default=True, help="Searches per measurement.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(tempfile.gettempdir()) / "qwen3-triton-bench",
    show_default=True,
    help="Folder to cache the vectors in, which take most of the time.",
)
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Also write the table to this file."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Write a plot of recall over latency to this SVG file.",
)
def main(
    documents: int, questions: int, cache: Path, markdown: Path | None, plot: Path | None
) -> None:
    """Measure the index choices on real text, and print each result with its target.

    \b
    Examples:
      python bench/ingest_recall.py
      python bench/ingest_recall.py --documents 50000 --plot docs/recall.svg
    """
    cache.mkdir(parents=True, exist_ok=True)
    corpus = embedded_corpus(documents, questions, cache)
    with embedded_postgres(0, durable=True, settings=SETTINGS) as dsn:
        rows, points = measure(dsn, corpus)
    show(rows, Console(), header=HEADER)
    if markdown:
        write_markdown(rows, markdown, header=HEADER)
    if plot:
        write_plot(points, plot, documents)


if __name__ == "__main__":
    sys.exit(main())
