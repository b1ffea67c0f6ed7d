"""The ledger has a version: old ones are migrated and keep what was loaded, newer ones refused."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from gateway_process import GatewayProcess
from ingest_corpus import SENTENCES
from ingest_loading import Loading, quick_loading, write_jsonl
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest.config import LoadOptions, SplitOptions
from qwen3_triton_ingest.database import connect
from qwen3_triton_ingest.errors import TableError
from qwen3_triton_ingest.ledger import schema
from qwen3_triton_ingest.ledger.runs import Counts
from qwen3_triton_ingest.ledger.schema import ledger_version, prepare_ledger
from qwen3_triton_ingest.reembed import reembed
from qwen3_triton_ingest.search import search
from qwen3_triton_ingest.status import status

WITHOUT_VERSION = Path(__file__).with_name("ledger_without_version.sql")
LATEST = len(list((Path(schema.__file__).parent / "migrations").glob("*.sql")))


@pytest.fixture(name="old_ledger")
def _old_ledger(
    database_url: str,
    in_process_gateway: GatewayProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int], Loading]:
    """Load the notes of the old ledger's table with the same options as then."""
    with EmbeddingClient(in_process_gateway.url) as client:
        spaces = {n: client.embed(["probe"], dimensions=n).fingerprint for n in (32, 64)}
    with psycopg.connect(database_url) as connection:
        connection.execute(WITHOUT_VERSION.read_bytes())
        # Whatever weights and numerics the nano model has had since then.
        connection.execute("UPDATE qwen3_ingest.tables SET fingerprint = %s", (spaces[32],))
        connection.execute("UPDATE qwen3_ingest.reembeds SET fingerprint = %s", (spaces[64],))
    monkeypatch.chdir(tmp_path)

    def loading(count: int) -> Loading:
        notes = [{"id": f"n{n}", "text": SENTENCES[n], "shelf": n} for n in range(count)]
        write_jsonl(tmp_path / "notes.jsonl", [*notes, {"id": "bad", "text": 7}])
        quick = quick_loading(database_url, in_process_gateway)
        return replace(quick, options=options_for(quick.options, dimensions=32))

    return loading


def options_for(options: LoadOptions, *, dimensions: int) -> LoadOptions:
    gateway = replace(options.gateway, dimensions=dimensions)
    return replace(options, split=SplitOptions(chunk_tokens=0), gateway=gateway)


def migrations(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT version FROM qwen3_ingest.migrations ORDER BY 1")
        return [row[0] for row in rows]


def columns(dsn: str) -> set[tuple[str, str, str]]:
    """Return table, column and type of all that the ledger has."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'qwen3_ingest'"
        )
        return set(rows.fetchall())


def test_a_load_migrates_a_ledger_without_version_and_embeds_nothing_again(
    old_ledger: Callable[[int], Loading],
) -> None:
    loading = old_ledger(4)
    before = loading.query("SELECT id, embedding::text, xmin::text FROM notes ORDER BY id")
    texts = loading.texts()
    report = loading("notes.jsonl", table="notes")
    assert report.counts == Counts(unchanged=4, failed=1)
    assert loading.texts() - texts <= 1  # the probe for the embedding space
    after = loading.query("SELECT id, embedding::text, xmin::text FROM notes ORDER BY id")
    assert after == before
    assert migrations(loading.dsn) == list(range(1, LATEST + 1))
    (letter,) = status(loading.dsn, "notes").latest_dead_letters
    assert (letter.doc_id, letter.attempts) == ("bad", 2)


def test_a_load_onto_a_migrated_ledger_writes_new_documents_alone(
    old_ledger: Callable[[int], Loading],
) -> None:
    loading = old_ledger(6)
    report = loading("notes.jsonl", table="notes")
    assert report.counts == Counts(documents=2, unchanged=4, chunks_written=2, failed=1)


def test_an_interrupted_re_embedding_continues_on_a_migrated_ledger(
    old_ledger: Callable[[int], Loading],
) -> None:
    loading = old_ledger(4)
    report = reembed(loading.dsn, "notes", options_for(loading.options, dimensions=64))
    assert (report.swapped, report.rows, report.embedded) == (True, 4, 0)


def test_readers_use_a_ledger_that_is_not_migrated_yet(
    old_ledger: Callable[[int], Loading],
) -> None:
    loading = old_ledger(4)
    assert status(loading.dsn, "notes").documents == 4
    assert search(loading.dsn, "notes", "Moon", gateway=loading.options.gateway, k=4)
    with connect(loading.dsn) as connection:
        assert ledger_version(connection) == 0


def test_a_migrated_ledger_has_the_columns_of_a_new_one(
    old_ledger: Callable[[int], Loading], postgres_uri: str
) -> None:
    loading = old_ledger(0)
    with connect(loading.dsn) as connection:
        prepare_ledger(connection)
    migrated = columns(loading.dsn)
    loading.execute("DROP SCHEMA qwen3_ingest CASCADE")
    with connect(loading.dsn) as connection:
        prepare_ledger(connection)
    assert columns(loading.dsn) == migrated


def test_processes_that_migrate_at_once_wait_for_each_other(
    old_ledger: Callable[[int], Loading],
) -> None:
    dsn = old_ledger(0).dsn

    def prepare(_: int) -> int | None:
        with connect(dsn) as connection:
            prepare_ledger(connection)
            return ledger_version(connection)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(prepare, range(6))) == {LATEST}
    assert migrations(dsn) == list(range(1, LATEST + 1))


@pytest.mark.parametrize("command", ["load", "reembed", "status", "search"])
def test_a_newer_ledger_is_refused(old_ledger: Callable[[int], Loading], command: str) -> None:
    loading = old_ledger(4)
    options = options_for(loading.options, dimensions=64)
    with connect(loading.dsn) as connection:
        prepare_ledger(connection)
        connection.execute("INSERT INTO qwen3_ingest.migrations (version) VALUES (99)")
    calls = {
        "load": lambda: loading("notes.jsonl", table="notes"),
        "reembed": lambda: reembed(loading.dsn, "notes", options),
        "status": lambda: status(loading.dsn, "notes"),
        "search": lambda: search(loading.dsn, "notes", "Moon", gateway=options.gateway),
    }
    message = rf"version 99, and this program knows versions up to {LATEST}\. Update it: pip"
    with pytest.raises(TableError, match=message):
        calls[command]()


def test_a_user_who_may_not_migrate_is_told_who_may(old_ledger: Callable[[int], Loading]) -> None:
    loading = old_ledger(4)
    role = f"role_{secrets.token_hex(4)}"
    with connect(loading.dsn, autocommit=True) as connection:
        owner = connection.info.user
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        connection.execute(f"GRANT ALL ON notes TO {role}")
        connection.execute(f"GRANT ALL ON SCHEMA qwen3_ingest TO {role}")
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA qwen3_ingest TO {role}")
        info = connection.info
        theirs = f"postgresql://{role}:secret@{info.host}:{info.port}/{info.dbname}"
        try:
            with pytest.raises(TableError, match=rf"`{role}` may not do .* owner, `{owner}`"):
                loading("notes.jsonl", table="notes", dsn=theirs)
            loading("notes.jsonl", table="notes")
            with connect(theirs) as other:  # who was granted nothing new
                assert ledger_version(other) == LATEST
        finally:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")
