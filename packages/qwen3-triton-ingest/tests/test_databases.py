"""Databases as people have them: encodings, time limits, partitions, names, PG* variables."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from array import array
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from gateway_process import GatewayProcess
from ingest_corpus import SENTENCES
from ingest_loading import TABLE, Loading, notes, quick_loading, write_jsonl
from qwen3_triton_ingest.cli import main
from qwen3_triton_ingest.config import IndexOptions, ReadOptions
from qwen3_triton_ingest.errors import SourceError, TableError
from qwen3_triton_ingest.layouts import LayoutName
from qwen3_triton_ingest.ledger.runs import Counts
from qwen3_triton_ingest.reembed import reembed
from qwen3_triton_ingest.rows.staged import StagedRow, StagedTable, write_rows, write_rows_async
from qwen3_triton_ingest.search import Searcher
from qwen3_triton_ingest.status import status

ACCENTED = {"id": "é-1", "text": "Café by the sea, 5 £.", "title": "Größe"}
BUILT = IndexOptions()


@pytest.fixture(name="loading")
def _loading(database_url: str, in_process_gateway: GatewayProcess) -> Loading:
    return quick_loading(database_url, in_process_gateway)


@pytest.fixture(name="encoded", params=["LATIN1", "SQL_ASCII"])
def _encoded(
    request: pytest.FixtureRequest, postgres_uri: str, in_process_gateway: GatewayProcess
) -> Generator[Loading]:
    """A database of another encoding than UTF-8."""
    name = f"encoded_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_uri, autocommit=True) as connection:
        connection.execute(
            SQL(
                "CREATE DATABASE {} STRATEGY FILE_COPY ENCODING {} TEMPLATE template0 "
                "LOCALE_PROVIDER libc LOCALE 'C'"
            ).format(Identifier(name), request.param)
        )
        yield quick_loading(f"{postgres_uri.rpartition('/')[0]}/{name}", in_process_gateway)
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def rows(loading: Loading, table: str = TABLE) -> list[tuple[Any, ...]]:
    with psycopg.connect(loading.dsn, client_encoding="utf8") as connection:
        query = f"SELECT doc_id, content, metadata->>'title' FROM {table} ORDER BY 1"
        return connection.execute(query.encode()).fetchall()


def test_texts_arrive_as_they_were_in_databases_of_other_encodings(
    encoded: Loading, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "café.jsonl", [ACCENTED, *notes(3)])
    for counts in (Counts(documents=4, chunks_written=4), Counts(unchanged=4)):
        assert encoded(path).counts == counts
    assert ("é-1", "Café by the sea, 5 £.", "Größe") in rows(encoded)
    with Searcher(encoded.dsn, TABLE, gateway=encoded.options.gateway) as searcher:
        hit = searcher.search("café", k=1, filter={"title": "Größe"})[0]
    assert (hit.doc_id, hit.text, hit.metadata["title"]) == (
        *("é-1", "Café by the sea, 5 £.", "Größe"),
    )


@pytest.mark.parametrize("encoded", ["LATIN1"], indirect=True)
def test_what_a_database_cannot_store_is_reported_and_the_rest_is_loaded(
    encoded: Loading, tmp_path: Path
) -> None:
    bad = [
        {"id": "鯨-1", "text": "An id."},
        {"id": "text", "text": "A 鯨 text."},
        {"id": "title", "text": "A title.", "title": "鯨"},
        {"id": "number", "text": 7, "鯨": 1},
    ]
    write_jsonl(tmp_path / "鯨.jsonl", [*notes(2), *bad])
    report = encoded(tmp_path)
    assert report.counts == Counts(documents=2, chunks_written=2, failed=4)
    reasons = {letter.doc_id: letter.reason for letter in encoded.letters()}
    assert reasons.keys() == {r"\u9be8-1", "text", "title", "number"}
    assert "U+9BE8" in reasons["text"]
    assert encoded(tmp_path).counts == Counts(unchanged=2, failed=4)
    with Searcher(encoded.dsn, TABLE, gateway=encoded.options.gateway) as searcher:
        for mode in ("vector", "text", "hybrid"):
            hits = searcher.search(f"鯨 {SENTENCES[1]}", k=1, mode=mode)
            assert hits[0].doc_id == "n1"


@pytest.mark.parametrize(
    ("encoded", "good", "bad"),
    # Characters that Python's codecs of these names convert otherwise than PostgreSQL.
    [("EUC_JP", "鯨～－①", "‖〜한"), ("EUC_KR", "가", "갂鱶")],
    indirect=["encoded"],
)
def test_what_a_database_can_store_is_what_postgresql_converts(
    encoded: Loading, tmp_path: Path, good: str, bad: str
) -> None:
    records = [{"id": good, "text": f"{good} is fine."}]
    for char in bad:
        records += [{"id": char, "text": "An id."}, {"id": f"U+{ord(char):X}", "text": char}]
    report = encoded(write_jsonl(tmp_path / "a.jsonl", records))
    assert report.counts == Counts(documents=1, chunks_written=1, failed=2 * len(bad))
    assert rows(encoded) == [(good, f"{good} is fine.", None)]


@pytest.mark.parametrize("encoded", ["LATIN1"], indirect=True)
def test_a_source_whose_name_a_database_cannot_store_needs_another_one(
    encoded: Loading, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "鯨.jsonl", notes(2))
    with pytest.raises(SourceError, match=r"contains '鯨'.*--source-name"):
        encoded(path)
    for counts in (Counts(documents=2, chunks_written=2), Counts(unchanged=2)):
        assert encoded(path, read=ReadOptions(source_name="whales")).counts == counts


def test_the_encoding_of_the_client_changes_nothing(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [ACCENTED])
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    loading(path)
    loading(path, dsn=f"{loading.dsn}?client_encoding=latin1", table="second")
    expected = [("é-1", "Café by the sea, 5 £.", "Größe")]
    assert rows(loading) == rows(loading, "second") == expected


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_texts_arrive_as_they_were_through_the_engines_of_frameworks(
    encoded: Loading, driver: str
) -> None:
    encoded.execute("CREATE EXTENSION vector")
    encoded.execute(
        "CREATE TABLE nodes (id text PRIMARY KEY, content text, metadata jsonb, embedding vector)"
    )
    types = {"id": "text", "content": "text", "metadata": "jsonb", "embedding": "vector"}
    table = StagedTable(
        *("public", "nodes", "id", "content", "embedding", "metadata"),
        types={name: (kind, "public") for name, kind in types.items()},
    )
    row = StagedRow("é", "Café", array("f", [1.0]), json.dumps({"title": "Größe"}))
    url = encoded.dsn.replace("postgresql://", f"postgresql+{driver}://")
    if driver == "asyncpg":
        asyncio.run(_write_async(url, table, row))
    else:
        engine = create_engine(url, connect_args={"client_encoding": "latin1"})
        with engine.begin() as connection:
            write_rows(connection, table, [row])
            found = connection.exec_driver_sql("SHOW client_encoding").scalar_one()
        engine.dispose()
        assert found.upper() == "LATIN1", "the client's encoding stays"
    with psycopg.connect(encoded.dsn, client_encoding="utf8") as connection:
        stored = connection.execute("SELECT id, content, metadata->>'title' FROM nodes").fetchall()
    assert stored == [("é", "Café", "Größe")]


async def _write_async(url: str, table: StagedTable, row: StagedRow) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await write_rows_async(connection, table, [row])
    await engine.dispose()


@pytest.mark.parametrize("encoded", ["SQL_ASCII"], indirect=True)
def test_a_query_on_a_database_without_encoding_is_read_in_the_given_one(encoded: Loading) -> None:
    encoded.execute("CREATE TABLE notes AS SELECT 1 AS id, 'Caf' || E'\\xE9' AS text")
    read = ReadOptions(query="SELECT id, text FROM notes")
    with pytest.raises(SourceError, match=r"invalid byte sequence.*`--encoding`"):
        encoded("sql", read=read)
    for encoding, word in {"latin-1": "Café", "cp1250": "Café", "koi8-r": "CafИ"}.items():
        read = ReadOptions(query=f"SELECT id, text FROM notes -- {encoding}", encoding=encoding)
        encoded("sql", read=read, on_conflict="replace")
        assert rows(encoded) == [("1", word, None)]


@pytest.fixture(name="limited")
def _limited(loading: Loading) -> Generator[Loading]:
    """A role whose statements and connections end early."""
    role = f"limited_{secrets.token_hex(4)}"
    parts = urlsplit(loading.dsn)
    database = parts.path[1:]
    loading.execute("CREATE EXTENSION vector")
    loading.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    loading.execute(f"GRANT CREATE ON DATABASE {database} TO {role}")
    loading.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
    for name, value in {
        "statement_timeout": "200ms",
        "idle_session_timeout": "100ms",
        "idle_in_transaction_session_timeout": "100ms",
        "transaction_timeout": "300ms",
    }.items():
        loading.execute(f"ALTER ROLE {role} SET {name} = '{value}'")
    place = parts.netloc.rpartition("@")[2]
    yield replace(loading, dsn=f"postgresql://{role}:secret@{place}/{database}")
    loading.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_time_limits_of_the_role_do_not_end_a_load(
    loading: Loading, limited: Loading, tmp_path: Path
) -> None:
    # Some milliseconds per row are more than the limits, in each of the long statements.
    path = write_jsonl(tmp_path / "a.jsonl", notes(400))
    slow = (
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END$$"
    )
    patient = replace(limited, options=replace(limited.options, retry_seconds=30))
    patient(write_jsonl(tmp_path / "none.jsonl", notes(1)), index=IndexOptions(policy="none"))
    # Not as the limited role: its sessions end if this process pauses for a moment.
    loading.execute(slow)
    loading.execute(
        f"CREATE TRIGGER slow BEFORE INSERT ON {TABLE} FOR EACH ROW EXECUTE FUNCTION slowly()"
    )
    report = patient(path, index=BUILT, on_conflict="replace", on_progress=_pause)
    assert report.index == "built"
    assert status(loading.dsn, TABLE).documents == 400


def test_formats_that_a_role_has_as_its_default_change_nothing(
    loading: Loading, tmp_path: Path
) -> None:
    database = urlsplit(loading.dsn).path[1:]
    for name, value in {
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "sql_standard",
        "extra_float_digits": "-15",
        "standard_conforming_strings": "off",
        "bytea_output": "escape",
    }.items():
        loading.execute(f"ALTER DATABASE {database} SET {name} = '{value}'")
    path = write_jsonl(tmp_path / "a.jsonl", notes(3))
    for counts in (Counts(documents=3, chunks_written=3), Counts(unchanged=3)):
        assert loading(path).counts == counts
    query = (
        "SELECT 'r' AS id, 'A row.' AS text, 0.1::float8 + 0.2 AS sum, "
        "'1 day 02:00'::interval AS pause, timestamptz '2026-02-01 00:00+00' AS at"
    )
    loading("sql", read=ReadOptions(query=query))
    (row,) = loading.query(
        f"SELECT metadata->>'sum', metadata->>'pause', (metadata->>'at')::timestamptz "
        f"= '2026-02-01 00:00+00' FROM {TABLE} WHERE doc_id = 'r'"
    )
    assert row == ("0.30000000000000004", "1 day, 2:00:00", True)
    assert status(loading.dsn, TABLE).documents == 4


def _pause(_: object) -> None:
    time.sleep(0.15)  # longer than a connection may be idle


@pytest.mark.parametrize("concurrently", [False, True])
def test_a_partitioned_table_is_loaded_and_indexed(
    loading: Loading, tmp_path: Path, concurrently: bool
) -> None:
    loading.execute("CREATE EXTENSION vector")
    loading.execute(
        f"CREATE TABLE {TABLE} (id uuid PRIMARY KEY, doc_id text NOT NULL, seq int NOT NULL, "
        "content text NOT NULL, metadata jsonb NOT NULL, embedding vector(1024) NOT NULL) "
        "PARTITION BY HASH (id)"
    )
    for part in range(2):
        loading.execute(
            f"CREATE TABLE part_{part} PARTITION OF {TABLE} "
            f"FOR VALUES WITH (MODULUS 2, REMAINDER {part})"
        )
    path = write_jsonl(tmp_path / "a.jsonl", notes(20))
    index = IndexOptions(concurrently=concurrently, parallel_workers=1)
    if concurrently:
        with pytest.raises(TableError, match=r"has partitions.*--index none"):
            loading(path, index=index)
        index = IndexOptions(policy="none")
    report = loading(path, index=index)
    assert (report.counts.documents, report.index) == (20, "none" if concurrently else "built")
    assert loading(path, index=index).counts == Counts(unchanged=20)
    options = "SELECT reloptions FROM pg_class WHERE relname LIKE 'part__'"
    assert loading.query(options) == [(None,), (None,)]
    with Searcher(loading.dsn, TABLE, gateway=loading.options.gateway) as searcher:
        assert searcher.search(SENTENCES[3], k=1)[0].doc_id == "n3"


def test_partitions_that_a_load_cannot_use_are_refused_before_it_does_anything(
    loading: Loading, tmp_path: Path
) -> None:
    loading.execute("CREATE EXTENSION vector")
    loading.execute(
        f"CREATE TABLE {TABLE} (id uuid, doc_id text NOT NULL, seq int NOT NULL, content text "
        "NOT NULL, metadata jsonb NOT NULL, embedding vector(1024) NOT NULL, "
        "tenant int DEFAULT 1, PRIMARY KEY (id, tenant)) PARTITION BY LIST (tenant)"
    )
    with pytest.raises(TableError, match=r"id alone.*Partition it by id"):
        loading(write_jsonl(tmp_path / "a.jsonl", notes(1)))


@pytest.mark.parametrize("layout", ["own", "langchain", "llamaindex"])
@pytest.mark.parametrize(
    "name",
    ['"my %s schema"."100% \'new\' {x} ""Docs"""', '"%(id)s"."MixedCase %b"'],
)
def test_names_with_any_characters_work_in_every_statement(
    loading: Loading, tmp_path: Path, name: str, layout: LayoutName
) -> None:
    schema = name.partition(".")[0]
    if layout == "llamaindex":  # whose store writes its names in lowercase
        schema = schema.lower()
    loading.execute(f"CREATE SCHEMA {schema}")
    path = write_jsonl(tmp_path / "a.jsonl", notes(10))
    report = loading(path, table=name, layout=layout, index=BUILT)
    assert (report.counts.documents, report.index) == (10, "built")
    changed = notes(9)
    changed[0]["shelf"], changed[1]["text"] = 99, "Another text."
    write_jsonl(path, changed)
    report = loading(path, table=name, layout=layout, index=replace(BUILT, policy="rebuild"))
    assert (report.counts.documents, report.removed, report.index) == (2, 1, "built")
    gateway = loading.options.gateway
    with Searcher(loading.dsn, name, layout=layout, gateway=gateway) as searcher:
        for mode in ("vector", "text", "hybrid"):
            hits = searcher.search(SENTENCES[5], k=1, mode=mode, filter={"shelf": 5})
            assert hits[0].doc_id == "n5"
    smaller = replace(loading.options, layout=layout, gateway=replace(gateway, dimensions=64))
    assert reembed(loading.dsn, name, smaller).swapped
    found = status(loading.dsn, name, layout=layout)
    assert (found.dimensions, found.rows, len(found.indexes)) == (64, 9, 1)


def test_the_variables_and_services_of_libpq_name_the_database(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", notes(1))
    arguments = ["load", str(path), "--table", TABLE, "--index", "none"]
    arguments += ["--gateway-url", loading.gateway.url]
    for name in ("DATABASE_URL", "PGHOST", "PGDATABASE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert CliRunner().invoke(main, arguments).exit_code == 2, "no database is named"
    parts = conninfo_to_dict(loading.dsn)
    lines = [f"{key}={value}" for key, value in parts.items()]
    services = tmp_path / "services"
    services.write_text("\n".join(["[wiki]", *lines]), encoding="utf-8")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    result = CliRunner().invoke(main, [*arguments, "--dsn", "service=wiki"])
    assert result.exit_code == 0, result.output
    monkeypatch.setenv("PGSERVICE", "wiki")
    assert CliRunner().invoke(main, arguments).exit_code == 0
    monkeypatch.delenv("PGSERVICE")
    for key, value in parts.items():
        name = {"dbname": "PGDATABASE"}.get(key, f"PG{key.upper()}")
        monkeypatch.setenv(name, str(value))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "1 unchanged" in result.output
