"""Queries as sources."""

from __future__ import annotations

import re
import uuid
from array import array
from pathlib import Path

import psycopg
import pytest

from polling import wait_until_alone
from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.documents import BadRecord, Document
from qwen3_triton_ingest.errors import DatabaseError, SourceError
from qwen3_triton_ingest.sources import plan_shards, read_shard, source_name


def test_rows_of_a_query_are_records(database_url: str) -> None:
    key = uuid.uuid4()
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute(
            "CREATE TABLE notes (id uuid, body text, at date, price numeric, tags text[], "
            "info jsonb, v vector(2))"
        )
        connection.execute(
            "INSERT INTO notes VALUES (%s, 'first', '2026-01-02', 1.5, '{a,b}', "
            "'{\"x\": [1]}', '[0.5,0.25]'), (NULL, ' ', NULL, NULL, NULL, NULL, NULL)",
            [key],
        )
    query = "SELECT *, '50%' AS share FROM notes\n ORDER BY price NULLS LAST"
    options = ReadOptions(query=query, text_column="body", vector_column="v")
    (shard,) = plan_shards([database_url], options)
    first, second = read_shard(shard, options, source_dsn=database_url)
    assert isinstance(first, Document)
    assert (first.doc_id, first.text) == (str(key), "first")
    assert first.metadata == {
        "at": "2026-01-02",
        "price": 1.5,
        "tags": ["a", "b"],
        "info": {"x": [1]},
        "share": "50%",
    }
    assert first.vector == array("f", [0.5, 0.25])
    assert first.origin.path == " ".join(query.split())
    assert (first.origin.position, second.origin.position) == (1, 2)
    assert isinstance(second, BadRecord)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("'infinity'::date", "infinity"),
        ("'-infinity'::timestamptz", "-infinity"),
        ("'0044-03-15 BC'::date", "0044-03-15 BC"),
        ("'0044-03-15 12:00 BC'::timestamp", "0044-03-15 12:00:00 BC"),
        ("'12026-01-02'::date", "12026-01-02"),
        ("'24:00'::time", "24:00:00"),
        ("'24:00+00'::timetz", "24:00:00+00"),
        ("ARRAY['infinity', '2026-01-02']::date[]", ["infinity", "2026-01-02"]),
        ("12345678901234567890123::numeric", "12345678901234567890123"),
        ("0.1234567890123456789::numeric", "0.1234567890123456789"),
        ("12.50::numeric", 12.5),
        ("42::numeric", 42),
        ("'NaN'::numeric", None),
        ("'{\"n\": 98765432109876543210}'::jsonb", {"n": "98765432109876543210"}),
    ],
)
def test_values_that_python_cannot_hold_arrive_as_their_text(
    database_url: str, value: str, expected: object
) -> None:
    query = f"SELECT 12345678901234567890.0::numeric AS id, 'a' AS text, {value} AS value"
    options = ReadOptions(query=query)
    (shard,) = plan_shards(["sql"], options)
    (document,) = read_shard(shard, options, source_dsn=database_url)
    assert isinstance(document, Document)
    assert document.metadata == {"value": expected}
    assert document.doc_id == "12345678901234567890.0"


def test_the_password_of_a_source_is_never_shown(database_url: str) -> None:
    secret = "postgresql://me:hunter2@db.example:5433/wiki"
    options = ReadOptions(query="SELECT 1")
    (shard,) = plan_shards([secret], options)
    assert shard.source == source_name(secret, options)
    assert shard.source.startswith("postgresql://db.example:5433/wiki#")
    assert "hunter2" not in repr(shard)
    with pytest.raises(SourceError) as caught:
        plan_shards(["postgresql://me:hunter2@db.example/wiki?%zz"], options)
    assert "hunter2" not in str(caught.value)
    (other,) = plan_shards([database_url], ReadOptions(query="SELECT 2"))
    assert other.key != shard.key


def test_a_failing_query_reports_the_message_of_the_server(database_url: str) -> None:
    options = ReadOptions(query="SELECT text FROM nothing_there")
    (shard,) = plan_shards(["sql"], options)
    with pytest.raises(SourceError, match='relation "nothing_there" does not exist'):
        list(read_shard(shard, options, source_dsn=database_url))
    writing = ReadOptions(query="CREATE TABLE t (a int)")
    (shard,) = plan_shards(["sql"], writing)
    with pytest.raises(SourceError, match="read-only transaction"):
        list(read_shard(shard, writing, source_dsn=database_url))
    for statement in ("SET x.y = 1", "COMMIT", "COPY (SELECT 1) TO STDOUT"):
        silent = ReadOptions(query=statement)
        (shard,) = plan_shards(["sql"], silent)
        with pytest.raises(SourceError, match=rf"returns no rows: `{re.escape(statement)}`"):
            list(read_shard(shard, silent, source_dsn=database_url))
    with pytest.raises(SourceError, match="`source_dsn` is missing"):
        list(read_shard(shard, writing))
    with pytest.raises(DatabaseError, match="does not exist"):
        list(read_shard(shard, writing, source_dsn=database_url + "_other"))


def test_a_query_and_its_database_belong_together(tmp_path: Path) -> None:
    for nothing in (None, "", " \n", " ; "):
        with pytest.raises(SourceError, match="needs a `query`"):
            plan_shards(["sql"], ReadOptions(query=nothing))
    with pytest.raises(SourceError, match="`query` needs a postgresql://"):
        plan_shards([str(tmp_path)], ReadOptions(query="SELECT 1"))


def test_a_query_may_be_abandoned_before_its_end(database_url: str) -> None:
    options = ReadOptions(query="SELECT g::text AS text FROM generate_series(1, 3000000) g")
    (shard,) = plan_shards(["sql"], options)
    rows = read_shard(shard, options, source_dsn=database_url)
    assert isinstance(next(rows), Document)
    rows.close()
    wait_until_alone(database_url)
