"""Building the vector index: the correct kind, observable, replaced, and safe to interrupt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import uuid
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from filled_tables import is_exclusive_lock_awaited, times_used
from polling import wait_for, wait_until_alone
from qwen3_triton_ingest.config import IndexOptions
from qwen3_triton_ingest.database import Connection, connect
from qwen3_triton_ingest.documents import Chunk, EmbeddedChunk
from qwen3_triton_ingest.errors import BusyError, TableError
from qwen3_triton_ingest.index.build import build_vector_index
from qwen3_triton_ingest.index.catalog import (
    IndexProgress,
    drop_vector_indexes,
    find_vector_indexes,
    index_progress,
)
from qwen3_triton_ingest.index.plan import build_memory_bytes, decide
from qwen3_triton_ingest.layouts import LayoutName, Table
from qwen3_triton_ingest.rows.chunks import copy_chunks
from qwen3_triton_ingest.tables.preparation import prepare_table

ROWS = 300
SERIAL = IndexOptions(parallel_workers=0)
# With random vectors, this takes a minute, so that a test can act in the middle of it. No build of
# this kind is completed.
SLOW_ROWS = 4000
SLOW = IndexOptions(m=100, ef_construction=1000, parallel_workers=0)


def fill(connection: Connection, table: Table, rows: int = ROWS) -> None:
    random = np.random.default_rng(5)
    vectors = random.standard_normal((rows, table.dimensions), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chunks = (
        EmbeddedChunk(
            Chunk(uuid.UUID(int=number), f"doc {number}", 0, f"text {number}", {}),
            array("f", vector.tobytes()),
        )
        for number, vector in enumerate(vectors)
    )
    with connection.transaction():
        copy_chunks(connection, table, chunks)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll the progress often: a fast machine is done within half a second."""
    monkeypatch.setattr("qwen3_triton_ingest.index.build.POLL_SECONDS", 0.05)


def make(
    url: str, layout: LayoutName = "own", *, name: str = "t", dimensions: int = 64, rows: int = ROWS
) -> Table:
    with connect(url, autocommit=True) as connection:
        table = prepare_table(connection, name, layout, dimensions)
        fill(connection, table, rows)
    return table


def plan_of(connection: Connection, table: Table, order: str) -> str:
    connection.execute("SET enable_seqscan = off")
    query = f"EXPLAIN SELECT * FROM {table} ORDER BY {order} LIMIT 5"
    return "\n".join(row[0] for row in connection.execute(query))


def reloptions(connection: Connection, table: Table) -> list[str]:
    row = connection.execute(
        "SELECT coalesce(reloptions, '{}') FROM pg_class WHERE oid = %s::regclass", (str(table),)
    ).fetchone()
    assert row
    return row[0]


def test_the_default_is_half_precision_and_serves_queries_that_cast(database_url: str) -> None:
    table = make(database_url)
    index = build_vector_index(database_url, table, IndexOptions(m=8, ef_construction=40))
    assert (index.name, index.method, index.opclass) == (
        "t_embedding_hnsw",
        "hnsw",
        "halfvec_cosine_ops",
    )
    assert index.valid
    assert index.size_bytes > 0
    assert set(index.options) == {"m=8", "ef_construction=40"}
    vector = str([1.0] * 64)
    with connect(database_url, autocommit=True) as connection:
        cast = f"embedding::halfvec(64) <=> '{vector}'::halfvec(64)"
        assert index.name in plan_of(connection, table, cast)
        assert find_vector_indexes(connection, table) == [index]


def test_full_precision_and_a_halfvec_column_get_an_index_on_the_plain_column(
    database_url: str,
) -> None:
    table = make(database_url)
    index = build_vector_index(database_url, table, IndexOptions(halfvec=False))
    assert (index.expression, index.opclass) == ("embedding", "vector_cosine_ops")
    with connect(database_url, autocommit=True) as connection:
        connection.execute("DROP INDEX t_embedding_hnsw")
        connection.execute("ALTER TABLE t ALTER embedding TYPE halfvec(64)")
    half = replace(table, vector_type="halfvec")
    index = build_vector_index(database_url, half, IndexOptions(halfvec=False))
    assert (index.expression, index.opclass) == ("embedding", "halfvec_cosine_ops")


def without_sequential_scans(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET enable_seqscan = off").format(name))


def test_langchains_store_uses_the_index(database_url: str) -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from langchain_postgres import PGEngine, PGVectorStore

    table = make(database_url, "langchain", rows=1000)
    index = build_vector_index(database_url, table, IndexOptions())
    without_sequential_scans(database_url)
    engine = PGEngine.from_connection_string(
        database_url.replace("postgresql://", "postgresql+asyncpg://")
    )
    try:
        fake = DeterministicFakeEmbedding(size=64)
        store = PGVectorStore.create_sync(engine, fake, "t")
        assert len(store.similarity_search("question", k=3)) == 3
    finally:
        engine._run_as_sync(engine.close())
    assert times_used(database_url, index.name) > 0


def test_llamaindexs_store_uses_the_index_and_builds_no_other(database_url: str) -> None:
    from llama_index.core.vector_stores import VectorStoreQuery
    from llama_index.vector_stores.postgres import PGVectorStore

    table = make(database_url, "llamaindex", rows=1000)
    index = build_vector_index(database_url, table, IndexOptions())
    without_sequential_scans(database_url)
    store: Any = PGVectorStore.from_params(
        connection_string=database_url.replace("postgresql://", "postgresql+psycopg2://"),
        async_connection_string=database_url.replace("postgresql://", "postgresql+asyncpg://"),
        table_name="t",
        embed_dim=64,
        use_jsonb=True,
        hnsw_kwargs={
            "hnsw_m": 16,
            "hnsw_ef_construction": 64,
            "hnsw_ef_search": 40,
            "hnsw_dist_method": "vector_cosine_ops",
        },
    )
    found = store.query(VectorStoreQuery(query_embedding=[0.1] * 64, similarity_top_k=3))
    assert len(found.ids) == 3
    store._engine.dispose()
    assert times_used(database_url, index.name) > 0
    with connect(database_url) as connection:
        assert [each.name for each in find_vector_indexes(connection, table)] == [index.name]


@pytest.mark.parametrize("concurrently", [False, True])
def test_a_rebuild_replaces_the_index_and_restores_the_tables_option(
    database_url: str, concurrently: bool
) -> None:
    table = make(database_url)
    options = IndexOptions(concurrently=concurrently, parallel_workers=1)
    with connect(database_url, autocommit=True) as connection:
        build_vector_index(database_url, table, options)
        assert reloptions(connection, table) == []
        connection.execute("ALTER TABLE t SET (parallel_workers = 3)")
        connection.execute(
            "CREATE INDEX theirs ON t USING hnsw ((embedding::halfvec(64)) halfvec_cosine_ops)"
        )
        connection.execute("CREATE INDEX other ON t USING hnsw (embedding vector_l2_ops)")
        build_vector_index(database_url, table, options)
        assert reloptions(connection, table) == ["parallel_workers=3"]
        names = {index.name for index in find_vector_indexes(connection, table)}
    assert names == {"t_embedding_hnsw", "other"}


def test_what_an_interrupted_build_left_is_removed(database_url: str) -> None:
    table = make(database_url)
    with connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE INDEX broken ON t USING hnsw (embedding vector_cosine_ops)")
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass"
        )
        assert [index.valid for index in find_vector_indexes(connection, table)] == [False]
        build_vector_index(database_url, table, IndexOptions())
        found = find_vector_indexes(connection, table)
    assert [(index.name, index.valid) for index in found] == [("t_embedding_hnsw", True)]


def test_a_name_in_use_gets_a_number(database_url: str) -> None:
    table = make(database_url)
    with connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE t_embedding_hnsw ()")
    assert build_vector_index(database_url, table, IndexOptions()).name == "t_embedding_hnsw_1"
    assert build_vector_index(database_url, table, IndexOptions()).name == "t_embedding_hnsw_1"


def test_long_and_quoted_names_work(database_url: str) -> None:
    name = '"Größe ' + "x" * 50 + '"'
    table = make(database_url, name=name)
    index = build_vector_index(database_url, table, IndexOptions())
    assert index.name.endswith("_embedding_hnsw")
    assert len(index.name.encode()) == 63


def test_progress_is_reported_and_workers_are_used(database_url: str) -> None:
    table = make(database_url, dimensions=512, rows=SLOW_ROWS)
    seen: list[IndexProgress] = []
    with connect(database_url, autocommit=True) as connection:

        def watch(progress: IndexProgress) -> None:
            """Interrupt the build once everything has been seen."""
            seen.append(progress)
            query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'"
            # At first PostgreSQL has set no totals, and started no worker.
            if progress.fraction is not None and connection.execute(query).fetchone() == (1,):
                assert index_progress(connection, table) is not None
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_vector_index(
                database_url, table, replace(SLOW, parallel_workers=1), on_progress=watch
            )
        assert index_progress(connection, table) is None
    phases = {each.phase for each in seen} - {"initializing"}
    assert all("building index" in phase for phase in phases)
    fractions = [each.fraction for each in seen if each.fraction is not None]
    assert all(0 <= fraction <= 1 for fraction in fractions)


@pytest.mark.parametrize("concurrently", [False, True])
def test_an_interrupt_leaves_the_table_as_it_was(database_url: str, concurrently: bool) -> None:
    table = make(database_url, dimensions=512, rows=SLOW_ROWS)

    def interrupt(_: IndexProgress) -> None:
        raise KeyboardInterrupt

    options = replace(SLOW, concurrently=concurrently)
    with pytest.raises(KeyboardInterrupt):
        build_vector_index(database_url, table, options, on_progress=interrupt)
    with connect(database_url, autocommit=True) as connection:
        assert find_vector_indexes(connection, table) == []
        assert reloptions(connection, table) == []
        assert index_progress(connection, table) is None


def test_a_lost_connection_leaves_a_table_that_can_be_built_again(database_url: str) -> None:
    table = make(database_url, dimensions=256, rows=SLOW_ROWS)

    def lose(progress: IndexProgress) -> None:
        if progress.phase == "initializing":  # the index does not exist yet
            return
        with connect(database_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index")

    options = replace(SLOW, concurrently=True)
    with pytest.raises(psycopg.OperationalError):
        build_vector_index(database_url, table, options, on_progress=lose)
    with connect(database_url) as connection:
        assert [index.valid for index in find_vector_indexes(connection, table)] == [False]
    wait_until_alone(database_url)  # the session's last message comes before its end
    assert build_vector_index(database_url, table, IndexOptions()).valid
    with connect(database_url) as connection:
        assert [index.valid for index in find_vector_indexes(connection, table)] == [True]


def test_too_little_memory_is_reported_with_what_to_do(database_url: str) -> None:
    table = make(database_url, dimensions=1024, rows=1000)
    notices: list[str] = []
    build_vector_index(
        database_url,
        table,
        IndexOptions(maintenance_work_mem="1MB", halfvec=False),
        on_notice=notices.append,
    )
    assert len(notices) == 1
    assert "`maintenance_work_mem` of 1 MB held" in notices[0]
    assert "--maintenance-work-mem" in notices[0]


def test_what_pgvector_cannot_do_is_refused_with_the_ways_out(database_url: str) -> None:
    table = Table("public", "t", make(database_url, rows=0).layout, 2560)
    with pytest.raises(TableError, match=r"2560 dimensions.* at most 2000: index half precision"):
        build_vector_index(database_url, table, IndexOptions(halfvec=False))
    with pytest.raises(TableError, match=r"at most 4000: embed with at most 4000"):
        build_vector_index(database_url, replace(table, dimensions=5000), IndexOptions())
    for options, message in (
        (IndexOptions(m=1), r"`m` is 1; it must be from 2 to 100"),
        (IndexOptions(ef_construction=8), r"`ef_construction` is 8; with `m` = 16 it must be 32"),
        (IndexOptions(parallel_workers=-1), r"`parallel_workers` is -1"),
        (IndexOptions(maintenance_work_mem="lots"), r"`maintenance_work_mem` is 'lots'.*'2GB'"),
    ):
        with pytest.raises(ValueError, match=message):
            build_vector_index(database_url, replace(table, dimensions=64), options)


def test_another_users_table_is_refused(database_url: str) -> None:
    table = make(database_url)
    role = f"reader_{uuid.uuid4().hex[:8]}"
    with connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        connection.execute(f"GRANT SELECT ON t TO {role}")
        info = connection.info
        theirs = f"postgresql://{role}:secret@{info.host}:{info.port}/{info.dbname}"
        try:
            with pytest.raises(TableError, match=rf"`{role}` may not build an index on public\.t"):
                build_vector_index(theirs, table, IndexOptions())
        finally:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")


def test_dropping_waits_for_a_long_search_without_blocking_others(database_url: str) -> None:
    table = make(database_url)
    build_vector_index(database_url, table, IndexOptions())
    with connect(database_url) as reader, connect(database_url, autocommit=True) as other:
        reader.execute("SELECT count(*) FROM t")  # its lock stays until the transaction ends
        other.execute("SET statement_timeout = '60s'")

        def drop() -> None:
            with connect(database_url, autocommit=True) as connection:
                drop_vector_indexes(connection, table)

        thread = threading.Thread(target=drop)
        thread.start()
        try:
            for _ in range(3):
                wait_for(lambda: is_exclusive_lock_awaited(other, "t"), "it waits for the reader")
                other.execute("SELECT count(*) FROM t")  # behind it in the queue, and served first
            assert thread.is_alive()
        finally:
            reader.rollback()
            thread.join()
        assert find_vector_indexes(other, table) == []


@pytest.mark.stack
def test_with_too_little_shared_memory_the_index_is_built_without_workers(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root, to give a server a small /dev/shm")
    script = tmp_path / "small_shm.py"
    script.write_text(
        textwrap.dedent("""
        import subprocess, sys
        sys.path[:0] = sys.argv[1:]
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", "/dev/shm"], check=True)
        from demo.embedded_postgres import embedded_postgres
        from test_index import make, build_vector_index, IndexOptions
        notices = []
        with embedded_postgres(0) as url:
            table = make(url, rows=300)
            options = IndexOptions(parallel_workers=1, maintenance_work_mem="128MB")
            index = build_vector_index(url, table, options, on_notice=notices.append)
        assert index.valid
        assert len(notices) == 1 and "--shm-size" in notices[0], notices
        print("reported and built")
        """)
    )
    paths = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, str(script), *paths],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "mount" in done.stderr and "CalledProcessError" in done.stderr:
        pytest.skip("may not mount here")
    assert done.stdout == "reported and built\n", done.stderr[-3000:]


def test_a_build_by_another_session_is_refused(database_url: str) -> None:
    table = make(database_url, dimensions=256, rows=SLOW_ROWS)

    def build_again(progress: IndexProgress) -> None:
        if progress.phase == "initializing":  # the index does not exist yet
            return
        with pytest.raises(
            BusyError, match=r"Another session \(server process \d+\) is building an index"
        ):
            build_vector_index(database_url, table, IndexOptions())
        raise KeyboardInterrupt

    options = replace(SLOW, concurrently=True)
    with pytest.raises(KeyboardInterrupt):
        build_vector_index(database_url, table, options, on_progress=build_again)


@pytest.mark.parametrize(
    ("policy", "before", "added", "exists", "plan"),
    [
        ("none", 0, 100_000, False, "keep"),
        ("none", 0, 100_000, True, "keep"),
        ("keep", 1000, 1_000_000, True, "keep"),
        ("keep", 1000, 10, False, "build after"),
        ("rebuild", 1000, 0, True, "drop and rebuild"),
        ("rebuild", 1000, 0, False, "build after"),
        ("auto", 0, 1, False, "build after"),
        ("auto", 0, 4_999, True, "keep"),
        ("auto", 0, 5_000, True, "drop and rebuild"),
        ("auto", 100_000, 29_000, True, "keep"),
        ("auto", 100_000, 31_000, True, "drop and rebuild"),
    ],
)
def test_the_plan_follows_the_measured_rule(
    policy: Any, before: int, added: int, exists: bool, plan: str
) -> None:
    assert decide(policy, rows_before=before, rows_added=added, index_exists=exists) == plan


def test_memory_holds_the_rows_within_bounds() -> None:
    def memory(rows: int, width: int, limit: int = 8 << 30) -> int:
        return build_memory_bytes(
            rows, dimensions=1024, bytes_per_dimension=width, m=16, limit=limit
        )

    assert memory(0, 4) == 64 << 20
    assert 4800 <= memory(1_000_000, 4) / 1_000_000 <= 6000  # measured: 4.8 KB a row
    assert 2700 <= memory(1_000_000, 2) / 1_000_000 <= 3355  # measured: 20,000 rows in 64 MB
    assert memory(10_000_000, 4) == 8 << 30
    assert memory(10_000_000, 4, limit=1 << 30) == 1 << 30
