"""A corpus of real sentences in many files, and checks of a table loaded from it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
from psycopg.sql import SQL, Identifier, Literal

import demo
from polling import wait_until_alone
from tolerances import FLOAT32_COSINE, UNIT_NORM

SENTENCES = [
    sentence
    for line in (Path(demo.__path__[0]) / "documents.jsonl").read_text("utf-8").splitlines()
    for sentence in re.split(r"(?<=[.!?])\s+", json.loads(line)["text"])
]


def write_corpus(folder: Path, *, files: int, documents: int, seed: int = 0) -> Path:
    """Write JSONL files of short documents; the same for the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(files):
        lines = [
            json.dumps(
                {
                    "id": f"{number:03}/{record:04}",
                    "text": f"Note {number}-{record}. " + " ".join(rng.sample(SENTENCES, 3)),
                    "shelf": number % 7,
                    "tags": ["a", record],
                }
            )
            for record in range(documents)
        ]
        (folder / f"part-{number:03}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@dataclass(frozen=True, slots=True)
class LoadedRow:
    """A row of a table in the loader's own layout."""

    doc_id: str
    seq: int
    content: str
    metadata: str
    vector: np.ndarray


def rows_of(dsn: str, table: str) -> dict[str, LoadedRow]:
    """Read a table; fail if an id is in it twice."""
    query = SQL(
        "SELECT id::text, doc_id, seq, content, metadata::text, vector_send(embedding) FROM {}"
    ).format(Identifier(table))
    with psycopg.connect(dsn) as connection:
        # Through the heap: a broken index must not hide rows.
        connection.execute("SET enable_indexscan = off; SET enable_bitmapscan = off")
        found = connection.execute(query, binary=True).fetchall()
    assert len({row[0] for row in found}) == len(found), "An id is in several rows."
    return {
        row_id: LoadedRow(doc_id, seq, content, metadata, np.frombuffer(vector[4:], ">f4"))
        for row_id, doc_id, seq, content, metadata, vector in found
    }


def assert_same_rows(found: dict[str, LoadedRow], expected: dict[str, LoadedRow]) -> None:
    """Compare two tables: ids, texts, metadata, and vectors within what batch shapes change."""
    missing, foreign = expected.keys() - found.keys(), found.keys() - expected.keys()
    assert not missing, f"{len(missing)} chunks are lost"
    assert not foreign, f"{len(foreign)} rows should not be there"
    for each, row in found.items():
        wanted = expected[each]
        assert (row.doc_id, row.seq, row.content, row.metadata) == (
            *(wanted.doc_id, wanted.seq, wanted.content, wanted.metadata),
        )
    ids = list(found)
    ours = np.stack([found[each].vector for each in ids]).astype(np.float64)
    theirs = np.stack([expected[each].vector for each in ids]).astype(np.float64)
    assert abs(np.linalg.norm(ours, axis=1) - 1).max() <= UNIT_NORM
    assert (ours * theirs).sum(axis=1).min() >= FLOAT32_COSINE


def assert_true_ledger(dsn: str, table: str, *, documents: int) -> None:
    """Compare the ledger with the table, and with the documents that were to be loaded.

    All connections to the database must have been closed.
    """
    wait_until_alone(dsn)
    with psycopg.connect(dsn) as connection:

        def query(statement: str) -> list[tuple[object, ...]]:
            text = SQL(statement).format(table=Identifier(table), name=Literal(table))  # pyright: ignore[reportArgumentType]
            return connection.execute(text).fetchall()

        of_table = "table_id = (SELECT id FROM qwen3_ingest.tables WHERE table_name = {name})"
        noted = query(
            "SELECT doc_id, chunk::text, seq - 1 FROM qwen3_ingest.documents, "
            f"unnest(chunk_ids) WITH ORDINALITY AS c (chunk, seq) WHERE {of_table}"
        )
        there = query("SELECT doc_id, id::text, seq FROM {table}")
        assert Counter(noted) == Counter(there)
        assert query(f"SELECT count(*) FROM qwen3_ingest.documents WHERE {of_table}") == [
            (documents,)
        ]
        assert query(f"SELECT count(*) FROM qwen3_ingest.dead_letters WHERE {of_table}") == [(0,)]
        runs = query(
            "SELECT r.state, bool_and(s.done), sum(s.documents)::int, "
            "sum(s.duplicates)::int, sum(s.unchanged)::int, sum(s.chunks_written)::int, "
            "sum(s.chunks_removed)::int "
            "FROM qwen3_ingest.runs r JOIN qwen3_ingest.shards s ON s.run_id = r.id "
            f"WHERE r.{of_table} GROUP BY r.id"
        )
        assert runs == [("complete", True, documents, 0, 0, len(there), 0)]
        assert query("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") == []
        assert query("SELECT relname FROM pg_class WHERE relpersistence = 't'") == []
