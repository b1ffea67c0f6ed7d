"""Behind PgBouncer in transaction mode, everything works and nothing stays behind in a session."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from gateway_process import GatewayProcess
from ingest_corpus import SENTENCES
from ingest_loading import TABLE, Loading, quick_loading
from pooled_postgres import POOL_SIZE, pgbouncer
from qwen3_triton_ingest.config import IndexOptions
from qwen3_triton_ingest.database import connect
from qwen3_triton_ingest.errors import BusyError
from qwen3_triton_ingest.index.build import is_pooled
from qwen3_triton_ingest.layouts import LayoutName
from qwen3_triton_ingest.ledger.runs import Counts
from qwen3_triton_ingest.ledger.tables import TableHold, find_record
from qwen3_triton_ingest.reembed import reembed
from qwen3_triton_ingest.search import Searcher
from qwen3_triton_ingest.status import status
from qwen3_triton_ingest.tables.preparation import find_table

FILES = 70  # several shards
SETTINGS = (
    *("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"),
    *("maintenance_work_mem", "max_parallel_maintenance_workers"),
    *("client_connection_check_interval", "search_path"),
)


@pytest.fixture(name="loading")
def _loading(database_url: str, in_process_gateway: GatewayProcess) -> Generator[Loading]:
    with pgbouncer(database_url) as uri:
        yield quick_loading(uri, in_process_gateway)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    for n in range(FILES):
        (tmp_path / f"{n:03}.txt").write_text(f"Note {n}. {SENTENCES[n]}", encoding="utf-8")
    return tmp_path


def settings(dsn: str) -> set[tuple[str | None, ...]]:
    """Return the settings of all sessions that the pooler has."""
    query = "SELECT " + ", ".join(f"current_setting('{name}', true)" for name in SETTINGS)
    connections = [psycopg.connect(dsn, prepare_threshold=None) for _ in range(POOL_SIZE)]
    try:
        # Each is in a transaction, so each has a session of its own.
        rows = [connection.execute(query).fetchone() for connection in connections]
        return {tuple(value or None for value in row or ()) for row in rows}
    finally:
        for connection in connections:
            connection.close()


def test_the_pooler_is_recognized(loading: Loading, database_url: str) -> None:
    with connect(loading.dsn) as pooled, connect(database_url) as direct:
        assert is_pooled(pooled)
        assert not is_pooled(direct)


@pytest.mark.parametrize(
    ("layout", "concurrently"), [("own", True), ("langchain", False), ("llamaindex", False)]
)
def test_loads_and_searches_leave_nothing_in_the_sessions(
    loading: Loading, folder: Path, layout: LayoutName, concurrently: bool
) -> None:
    before = settings(loading.dsn)
    index = IndexOptions(concurrently=concurrently, maintenance_work_mem="70MB")
    report = loading(folder, layout=layout, index=index, workers=4)
    assert report.counts == Counts(documents=FILES, chunks_written=report.counts.chunks_written)
    assert report.index == "built"
    assert loading(folder, layout=layout, index=index).counts == Counts(unchanged=FILES)
    with Searcher(loading.dsn, TABLE, layout=layout, gateway=loading.options.gateway) as searcher:
        for n in range(8):  # more often than psycopg's threshold for prepared statements
            hits = searcher.search(SENTENCES[n], k=3)
            assert f"Note {n}. {SENTENCES[n]}" in {hit.text for hit in hits}
    assert settings(loading.dsn) == before
    assert loading.query("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") == []
    assert loading.query("SELECT 1 FROM pg_prepared_statements") == []


def test_a_changed_document_and_a_new_model(loading: Loading, folder: Path) -> None:
    loading(folder)
    (folder / "000.txt").write_text("Another text.", encoding="utf-8")
    (folder / "001.txt").unlink()
    report = loading(folder)
    assert (report.counts.documents, report.removed) == (1, 1)
    loading.assert_ledger_agrees()
    before = settings(loading.dsn)
    gateway = replace(loading.options.gateway, dimensions=64)
    assert reembed(loading.dsn, TABLE, replace(loading.options, gateway=gateway)).swapped
    assert status(loading.dsn, TABLE).dimensions == 64
    assert settings(loading.dsn) == before


def test_the_hold_on_a_table_ends_with_its_connection(loading: Loading, folder: Path) -> None:
    loading(folder)
    with connect(loading.dsn) as connection:
        table = find_table(connection, TABLE)
        record = find_record(connection, table)
    assert record
    with TableHold(loading.dsn, record, table, retry_seconds=1) as hold:
        hold.renew()
        with pytest.raises(BusyError):
            loading(folder)
    assert loading(folder).counts == Counts(unchanged=FILES)
