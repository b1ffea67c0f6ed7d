"""A load stores the vectors of the gateway, from every kind of source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway_process import GatewayProcess
from ingest_corpus import SENTENCES, assert_same_rows, assert_true_ledger, rows_of, write_corpus
from ingest_loading import TABLE, Loading, quick_loading, write_jsonl
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.ledger.runs import Counts

LONG = " ".join(SENTENCES[:30])


@pytest.fixture(name="loading")
def _loading(database_url: str, in_process_gateway: GatewayProcess) -> Loading:
    return quick_loading(database_url, in_process_gateway)


def test_every_chunk_has_the_vector_of_the_gateway(loading: Loading, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", files=3, documents=20)
    report = loading(corpus)
    rows = rows_of(loading.dsn, TABLE)
    assert report.counts == Counts(documents=60, chunks_written=len(rows))
    assert len(rows) > 60
    assert_true_ledger(loading.dsn, TABLE, documents=60)
    with EmbeddingClient(loading.gateway.url) as client:
        embedded = client.embed([row.content for row in rows.values()])
    wanted = {
        each: replace(row, vector=_as_row(vector))
        for (each, row), vector in zip(rows.items(), embedded.vectors, strict=True)
    }
    assert_same_rows(rows, wanted)


def test_the_column_holds_the_bytes_of_the_gateway(loading: Loading, tmp_path: Path) -> None:
    loading(write_jsonl(tmp_path / "one.jsonl", [{"id": "a", "text": "One short text."}]))
    (row,) = rows_of(loading.dsn, TABLE).values()
    with EmbeddingClient(loading.gateway.url) as client:
        (vector,) = client.embed(["One short text."]).vectors
    vector.byteswap()
    assert row.vector.tobytes() == vector.tobytes()


def _as_row(vector: Any) -> Any:
    return np.frombuffer(vector, dtype="f4")


def test_a_folder_of_text_and_markdown_is_loaded(loading: Loading, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text(LONG, encoding="utf-8")
    (folder / "deep" / "b.md").write_text(f"# Title\n\n{LONG}\n\n## More\n\nEnd.", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    report = loading(folder)
    assert report.counts.documents == 2
    assert report.skipped_files == {".png": 1}
    assert {doc_id.rpartition("/")[2] for doc_id in loading.doc_ids()} == {"a.txt", "b.md"}
    text = (folder / "a.txt").read_text("utf-8")
    chunks = loading.query(f"SELECT content FROM {TABLE} WHERE doc_id LIKE '%a.txt' ORDER BY seq")
    assert len(chunks) > 5
    assert all(chunk in text for (chunk,) in chunks)


def test_an_instruction_embeds_texts_as_queries(loading: Loading, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "text": "One short text."}])
    loading(path, gateway=replace(loading.options.gateway, instruction="Find the twin"))
    (row,) = rows_of(loading.dsn, TABLE).values()
    with EmbeddingClient(loading.gateway.url, instruction="Find the twin") as client:
        (vector,) = client.embed(["One short text."], input_type="query").vectors
    vector.byteswap()
    assert row.vector.tobytes() == vector.tobytes()


def test_precomputed_vectors_are_stored_unchanged(loading: Loading, tmp_path: Path) -> None:
    texts = SENTENCES[:20]
    with EmbeddingClient(loading.gateway.url) as client:
        embedded = client.embed(texts)
    columns = {
        "id": [f"n{n}" for n in range(20)],
        "text": texts,
        "vector": pa.array([v.tolist() for v in embedded.vectors], pa.list_(pa.float32())),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    changes: dict[str, Any] = {
        "read": ReadOptions(vector_column="vector"),
        "fingerprint": embedded.fingerprint,
        "gateway": replace(loading.options.gateway, dimensions=1024),
    }
    before = loading.texts()
    report = loading(path, **changes)
    assert report.counts == Counts(documents=20, chunks_written=20)
    assert loading.texts() == before, "the gateway is not asked"
    for row in rows_of(loading.dsn, TABLE).values():
        vector = embedded.vectors[texts.index(row.content)][:]
        vector.byteswap()
        assert row.vector.tobytes() == vector.tobytes()
    assert loading(path, **changes).counts == Counts(unchanged=20)
    # The row gets another vector of the same text.
    columns["vector"] = pa.array(
        [v.tolist()[::-1] for v in embedded.vectors], pa.list_(pa.float32())
    )
    pq.write_table(pa.table(columns), path)
    assert loading(path, **changes).counts.documents == 20
    (row, *_) = rows_of(loading.dsn, TABLE).values()
    vector = embedded.vectors[texts.index(row.content)][::-1]
    vector.byteswap()
    assert row.vector.tobytes() == vector.tobytes()
    assert len(rows_of(loading.dsn, TABLE)) == 20


def test_rows_of_a_query_are_loaded_without_a_password_in_the_ledger(loading: Loading) -> None:
    loading.execute("CREATE TABLE articles (id int, body text, shelf int)")
    loading.execute(
        "INSERT INTO articles SELECT n, 'Article number ' || n, n % 3 FROM generate_series(1, 10) n"
    )
    read = ReadOptions(query="SELECT * FROM articles ORDER BY id", text_column="body")
    report = loading(loading.dsn, read=read)
    assert report.counts.documents == 10
    password = psycopg.conninfo.conninfo_to_dict(loading.dsn)["password"]
    dumped = loading.query(
        "SELECT r::text FROM qwen3_ingest.runs r UNION ALL SELECT d::text FROM "
        "qwen3_ingest.documents d UNION ALL SELECT s::text FROM qwen3_ingest.shards s"
    )
    assert not [row for (row,) in dumped if str(password) in row]
    loading.execute("DELETE FROM articles WHERE id = 4")
    report = loading(loading.dsn, read=read)
    assert report.removed == 1
    assert "4" not in loading.doc_ids()
