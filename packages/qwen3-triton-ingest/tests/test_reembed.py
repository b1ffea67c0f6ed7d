"""Moving a table to another model: searches see no mixture, nothing is lost, kills are resumed."""

from __future__ import annotations

import json
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import psycopg
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from psycopg.types.json import Jsonb

import qwen3_nano
from demo.embedded_postgres import embedded_postgres
from filled_tables import is_exclusive_lock_awaited
from gateway_process import GatewayProcess, running_gateway
from polling import wait_for
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest.cli import main
from qwen3_triton_ingest.config import GatewayOptions, IndexOptions, LoadOptions
from qwen3_triton_ingest.database import Connection, connect
from qwen3_triton_ingest.documents import Chunk, EmbeddedChunk
from qwen3_triton_ingest.errors import BusyError, TableError
from qwen3_triton_ingest.index.build import build_vector_index
from qwen3_triton_ingest.index.catalog import find_vector_indexes
from qwen3_triton_ingest.layouts import LayoutName, Table
from qwen3_triton_ingest.ledger.schema import prepare_ledger
from qwen3_triton_ingest.ledger.tables import (
    Space,
    TableHold,
    TableRecord,
    claim_table,
    find_record,
)
from qwen3_triton_ingest.reembed import ReembedProgress, abandon_reembed, reembed
from qwen3_triton_ingest.rows.chunks import copy_chunks
from qwen3_triton_ingest.tables.preparation import find_table, prepare_table

ROWS = 240
DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo" / "documents.jsonl"
SERIAL = IndexOptions(parallel_workers=0)


@pytest.fixture(name="other_gateway", scope="module")
def _other_gateway(tmp_path_factory: pytest.TempPathFactory) -> Generator[GatewayProcess]:
    """A gateway that serves another model: nano, with half of its final values negated."""
    folder = tmp_path_factory.mktemp("other-model")
    for path in qwen3_nano.model_dir().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = onnx.load(str(folder / "model.onnx"))
    norm = next(each for each in model.graph.initializer if each.name == "norm")
    values = numpy_helper.to_array(norm).copy()
    values[::2] *= -1
    norm.CopyFrom(numpy_helper.from_array(values, "norm"))
    onnx.save(model, str(folder / "model.onnx"))
    with running_gateway("--model-dir", str(folder)) as gateway:
        yield gateway


def texts(count: int = ROWS) -> list[str]:
    lines = DEMO.read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in lines).split()
    return [" ".join(words[at * 11 : at * 11 + 16]) for at in range(count)]


def chunks_of(found: list[str]) -> list[Chunk]:
    return [
        Chunk(uuid.uuid5(uuid.NAMESPACE_OID, str(at)), f"doc {at}", 0, text, {"number": at})
        for at, text in enumerate(found)
    ]


def load(
    url: str, gateway: str, layout: LayoutName = "own", *, rows: int = ROWS, name: str = "t"
) -> Table:
    """Fill a table as a load does, ledger and index included."""
    with EmbeddingClient(gateway) as client, connect(url, autocommit=True) as connection:
        found = chunks_of(texts(rows))
        answer = client.embed([chunk.text for chunk in found])
        prepare_ledger(connection)
        table = prepare_table(connection, name, layout, answer.dimensions)
        space = Space(answer.fingerprint, answer.model, answer.dimensions)
        claim_table(connection, table, space)
        with connection.transaction():
            embedded = [EmbeddedChunk(*pair) for pair in zip(found, answer.vectors, strict=True)]
            copy_chunks(connection, table, embedded)
    build_vector_index(url, table, SERIAL)
    return table


def interrupt_indexing(progress: ReembedProgress) -> None:
    """Interrupt a re-embedding once all rows are in its new table."""
    if progress.phase == "index":
        raise KeyboardInterrupt


def options_for(gateway: str, layout: LayoutName = "own", **given: Any) -> LoadOptions:
    return LoadOptions(
        layout=layout,
        gateway=GatewayOptions(url=gateway, **given),
        index=SERIAL,
        retry_seconds=30,
    )


def vectors_of(gateway: str, found: list[str], **given: Any) -> npt.NDArray[np.float32]:
    with EmbeddingClient(gateway) as client:
        return client.embed(found, **given).to_numpy()


def rows_of(connection: Connection, table: Table) -> dict[str, npt.NDArray[np.float32]]:
    """Return each text with its vector, as one query sees them."""
    content, embedding = table.layout.content, table.layout.embedding
    query = f"SELECT {content}, {embedding}::text FROM {table}"
    return {
        row[0]: np.asarray(json.loads(row[1]), dtype=np.float32)
        for row in connection.execute(query)
    }


def assert_space(url: str, table: Table, gateway: str, expected: list[str], **given: Any) -> None:
    """Check that the table has exactly these texts, each with this gateway's vector."""
    with connect(url) as connection:
        found = rows_of(connection, table)
    assert sorted(found) == sorted(expected)
    wanted = vectors_of(gateway, expected, **given)
    cosines = [float(found[text] @ vector) for text, vector in zip(expected, wanted, strict=True)]
    assert min(cosines) > 0.9999


def record_of(url: str, table: Table) -> TableRecord:
    with connect(url) as connection:
        record = find_record(connection, table)
    assert record is not None
    return record


def leftovers(url: str) -> list[str]:
    with connect(url) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relname LIKE '%\\_\\_reembed%' "
            "UNION ALL SELECT tgname FROM pg_trigger WHERE tgname LIKE 'qwen3%' "
            "UNION ALL SELECT 'state' FROM qwen3_ingest.reembeds "
            "UNION ALL SELECT 'change' FROM qwen3_ingest.reembed_changes"
        )
        return [row[0] for row in rows]


@pytest.mark.parametrize(
    "layout",
    [
        "own",
        pytest.param("langchain", marks=pytest.mark.campaign),
        pytest.param("llamaindex", marks=pytest.mark.campaign),
    ],
)
def test_searches_see_all_old_or_all_new_vectors_and_nothing_is_lost(
    database_url: str,
    in_process_gateway: GatewayProcess,
    other_gateway: GatewayProcess,
    layout: LayoutName,
) -> None:
    table = load(database_url, in_process_gateway.url, layout)
    found = texts()
    old = dict(zip(found, vectors_of(in_process_gateway.url, found), strict=True))
    new = dict(zip(found, vectors_of(other_gateway.url, found), strict=True))
    with connect(database_url) as connection:
        before = everything_but_vectors(connection, table)
        index = find_vector_indexes(connection, table)
    done, spaces = threading.Event(), list[str]()

    def search() -> None:
        with connect(database_url, autocommit=True) as connection:
            is_last = False
            while not is_last:
                is_last = done.is_set()  # one more, which sees the new vectors
                seen = rows_of(connection, table)
                assert len(seen) == ROWS
                kinds = {
                    "old"
                    if vector @ old[text] > 0.9999
                    else "new"
                    if vector @ new[text] > 0.9999
                    else "?"
                    for text, vector in seen.items()
                }
                spaces.append("+".join(kinds))

    with failing_thread(search, done):
        wait_for(lambda: bool(spaces), "a search of the old vectors")
        report = reembed(database_url, "t", options_for(other_gateway.url, layout))
    assert (report.swapped, report.rows, report.embedded) == (True, ROWS, ROWS)
    assert set(spaces) == {"old", "new"}
    assert spaces.index("new") == spaces.count("old")  # and never back
    assert_space(database_url, table, other_gateway.url, found)
    assert record_of(database_url, table).space.fingerprint == report.fingerprint
    with connect(database_url) as connection:
        assert everything_but_vectors(connection, table) == before
        names = [(each.name, each.definition) for each in find_vector_indexes(connection, table)]
    assert names == [(each.name, each.definition) for each in index]
    assert leftovers(database_url) == []


def everything_but_vectors(connection: Connection, table: Table) -> list[Any]:
    rows = connection.execute(
        f"SELECT to_jsonb(t) - '{table.layout.embedding}' FROM {table} t"
    ).fetchall()
    return sorted(json.dumps(row[0], sort_keys=True) for row in rows)


@contextmanager
def failing_thread(work: Any, done: threading.Event) -> Generator[None]:
    """Run work in a thread during a block, and fail the test if it fails."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]


def test_a_table_of_the_gateways_space_needs_nothing(
    database_url: str, in_process_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=20)
    report = reembed(database_url, "t", options_for(in_process_gateway.url))
    assert (report.swapped, report.rows, report.embedded) == (False, 20, 0)
    assert_space(database_url, table, in_process_gateway.url, texts(20))


def test_other_dimensions_change_the_column_and_the_index(
    database_url: str, in_process_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=40)
    report = reembed(database_url, "t", options_for(in_process_gateway.url, dimensions=256))
    assert (report.swapped, report.dimensions) == (True, 256)
    with connect(database_url) as connection:
        assert find_table(connection, "t").dimensions == 256
        (index,) = find_vector_indexes(connection, table)
    assert "halfvec(256)" in index.expression
    assert record_of(database_url, table).space.dimensions == 256
    assert_space(database_url, table, in_process_gateway.url, texts(40), dimensions=256)


def test_another_instruction_is_another_space(
    database_url: str, in_process_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=20)
    instruction = "Find texts of the same topic"
    report = reembed(
        database_url, "t", options_for(in_process_gateway.url, instruction=instruction)
    )
    assert report.swapped
    assert record_of(database_url, table).space.instruction == instruction
    assert_space(
        *(database_url, table, in_process_gateway.url, texts(20)),
        input_type="query",
        instruction=instruction,
    )


def test_everything_that_known_tables_have_survives(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    role = f"role_{secrets.token_hex(4)}"
    with connect(database_url, autocommit=True) as connection:
        connection.execute(_RICH_TABLE.replace("SOMEBODY", role))
        for at, text in enumerate(texts(30)):
            connection.execute(
                "INSERT INTO t (langchain_id, content, embedding, langchain_metadata, place) "
                "VALUES (%s, %s, %s::vector, %s, point(1, 2))",
                (uuid.uuid4(), text, str([0.1] * 1024), Jsonb({"at": at})),
            )
        before = description(connection)
        report = reembed(database_url, "t", options_for(other_gateway.url, "langchain"))
        assert report.former_fingerprint == "unknown"
        assert description(connection) == before
        table = find_table(connection, "t")
        # The sequence continues where it was, and belongs to the table.
        inserted = connection.execute(
            "INSERT INTO t (langchain_id, content, embedding) VALUES "
            "(gen_random_uuid(), 'new', %s::vector) RETURNING serial",
            (str([0.1] * 1024),),
        ).fetchone()
        assert inserted == (31,)
        connection.execute("DELETE FROM t WHERE content = 'new'")
        assert_space(database_url, table, other_gateway.url, texts(30))
        connection.execute("DROP TABLE t")
        row = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relname LIKE 't\\_%'"
        ).fetchone()
        assert row == (0,)
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


_RICH_TABLE = """
CREATE EXTENSION vector;
CREATE ROLE SOMEBODY;
CREATE TABLE t (
    langchain_id uuid PRIMARY KEY,
    content text NOT NULL CHECK (length(content) > 0),
    embedding vector(1024) NOT NULL,
    langchain_metadata json,
    dropped int,
    serial bigserial,
    place point,
    length int GENERATED ALWAYS AS (length(content)) STORED,
    touched int NOT NULL DEFAULT 0,
    CONSTRAINT t_content_unique UNIQUE (content)
);
ALTER TABLE t DROP COLUMN dropped;
ALTER TABLE t SET (fillfactor = 90, toast.autovacuum_enabled = false);
CREATE INDEX t_words ON t USING gin (to_tsvector('english', content));
CREATE INDEX "Some index" ON t (touched) WHERE touched > 0;
COMMENT ON TABLE t IS 'Ours';
COMMENT ON COLUMN t.content IS 'Text';
COMMENT ON INDEX t_words IS 'For words';
CREATE INDEX t_vectors ON t USING hnsw (embedding vector_ip_ops) WITH (m = 8);
CREATE INDEX t_bits ON t USING hnsw ((binary_quantize(embedding)::bit(1024)) bit_hamming_ops);
GRANT SELECT, INSERT ON t TO SOMEBODY WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT DELETE ON TABLES TO SOMEBODY;
"""


def description(connection: Connection) -> list[Any]:
    """Describe the table as psql's \\d+ does, in PostgreSQL's own words."""
    queries = [
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, "
        "attstorage, attacl::text, col_description(attrelid, attnum) FROM pg_attribute "
        "WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        "SELECT adsrc FROM (SELECT pg_get_expr(adbin, adrelid) adsrc FROM pg_attrdef "
        "WHERE adrelid = 't'::regclass) d ORDER BY 1",
        "SELECT pg_get_indexdef(indexrelid), obj_description(indexrelid) FROM pg_index "
        "WHERE indrelid = 't'::regclass ORDER BY 1",
        "SELECT conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint "
        "WHERE conrelid = 't'::regclass ORDER BY 1",
        "SELECT relacl::text, reloptions, obj_description(oid), pg_get_userbyid(relowner) "
        "FROM pg_class WHERE oid = 't'::regclass",
        "SELECT reloptions FROM pg_class WHERE oid = (SELECT reltoastrelid FROM pg_class "
        "WHERE oid = 't'::regclass)",
        "SELECT sequencename, start_value, last_value FROM pg_sequences "
        "WHERE schemaname = 'public' ORDER BY 1",
    ]
    return [connection.execute(query).fetchall() for query in queries]


_TOUCH = "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE VIEW v AS SELECT id FROM t", r"view v"),
        ("CREATE MATERIALIZED VIEW v AS SELECT id FROM t", r"materialized view v"),
        ("CREATE TABLE child (id uuid REFERENCES t)", r"child_id_fkey on table child"),
        (
            "CREATE TABLE topics (id int PRIMARY KEY); "
            "ALTER TABLE t ADD topic int REFERENCES topics",
            r"t_topic_fkey on table t",
        ),
        (
            f"{_TOUCH}; CREATE TRIGGER touched BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION "
            "touch()",
            r"trigger touched on table t",
        ),
        ("CREATE POLICY mine ON t USING (seq = 0)", r"policy mine on table t"),
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", r"row level security"),
        ("ALTER TABLE t FORCE ROW LEVEL SECURITY", r"row level security"),
        ("CREATE TABLE child () INHERITS (t)", r"table child"),
        ("CREATE TABLE parent (seq int); ALTER TABLE t INHERIT parent", r"inheritance from parent"),
        ("CREATE TABLE child (whole t)", r"column whole of table child"),
        ("CREATE PUBLICATION p FOR TABLE t", r"publication p"),
        (
            "CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM t; END",
            r"function f",
        ),
        ("CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING", r"rule r on table t"),
        ("CREATE STATISTICS s ON doc_id, seq FROM t", r"statistics object s"),
        (
            "ALTER TABLE t ALTER doc_id SET STATISTICS 500",
            r"the statistics target of column doc_id",
        ),
        ("ALTER TABLE t ADD number int GENERATED ALWAYS AS IDENTITY", r"identity of column number"),
        ("GRANT UPDATE (content) ON t TO PUBLIC", r"grants of column content"),
        ("ALTER TABLE t REPLICA IDENTITY FULL", r"a replica identity"),
        ("ALTER TABLE t SET UNLOGGED", r"being unlogged"),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", r"needs a primary key of one column"),
    ],
)
def test_what_would_be_lost_is_named_before_anything_is_changed(
    database_url: str,
    in_process_gateway: GatewayProcess,
    other_gateway: GatewayProcess,
    statement: str,
    named: str,
) -> None:
    load(database_url, in_process_gateway.url, rows=3)
    with connect(database_url, autocommit=True) as connection:
        connection.execute(statement)
    with pytest.raises(TableError, match=named):
        reembed(database_url, "t", options_for(other_gateway.url))
    assert leftovers(database_url) == []


def test_partitions_are_refused(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=3)
    with connect(database_url, autocommit=True) as connection:
        connection.execute("DROP TABLE t")
        connection.execute(
            "CREATE TABLE t (id uuid PRIMARY KEY, doc_id text NOT NULL, seq int NOT NULL, "
            "content text NOT NULL, metadata jsonb, embedding vector(1024)) PARTITION BY HASH (id)"
        )
        connection.execute(
            "CREATE TABLE part PARTITION OF t FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        )
    with pytest.raises(
        TableError, match=r"would lose: partitions; table part\. Save the definitions"
    ):
        reembed(database_url, str(table), options_for(other_gateway.url))


def test_a_view_created_while_it_runs_stops_the_swap_and_is_named(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=3)

    def add(progress: ReembedProgress) -> None:
        if progress.phase == "swap":
            with connect(database_url, autocommit=True) as connection:
                connection.execute("CREATE OR REPLACE VIEW v AS SELECT id FROM t")

    options = options_for(other_gateway.url)
    with pytest.raises(TableError, match=r"would lose: rule _RETURN on view v"):
        reembed(database_url, "t", options, on_progress=add)
    assert_space(database_url, table, in_process_gateway.url, texts(3))
    with connect(database_url, autocommit=True) as connection:
        connection.execute("DROP VIEW v")
    assert reembed(database_url, "t", options).embedded == 0


def test_what_others_write_while_it_runs_is_embedded_too(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url)
    expected = texts()
    steps = iter(
        [
            "UPDATE t SET content = 'changed text' WHERE content = %(text)s",
            "DELETE FROM t WHERE content = %(text)s",
            "INSERT INTO t SELECT gen_random_uuid(), 'new', 0, 'new text', '{}', embedding FROM t "
            "WHERE content = %(text)s",
            "UPDATE t SET id = gen_random_uuid(), metadata = '{\"moved\": true}' "
            "WHERE content = %(text)s",
        ]
    )
    left = {"embed": 1, "index": 1, "swap": 2}

    def write(progress: ReembedProgress) -> None:
        if left.get(progress.phase, 0) and progress.rows_done:
            left[progress.phase] -= 1
            at = sum(left.values())
            with connect(database_url, autocommit=True) as connection:
                done = connection.execute(next(steps), {"text": texts()[at]})
                assert done.rowcount == 1

    reembed(database_url, "t", options_for(other_gateway.url), on_progress=write)
    assert not any(left.values())
    expected[3] = "changed text"
    del expected[2]
    assert_space(database_url, table, other_gateway.url, [*expected, "new text"])
    assert leftovers(database_url) == []


def test_constant_writes_do_not_keep_it_from_finishing(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=60)
    done, written = threading.Event(), list[str]()

    def write() -> None:
        with connect(database_url, autocommit=True) as connection:
            while not done.is_set():
                text = f"written while it runs {len(written)}"
                try:
                    connection.execute(
                        "INSERT INTO t SELECT gen_random_uuid(), 'new', 0, %s, '{}', embedding "
                        "FROM t LIMIT 1",
                        (text,),
                    )
                except psycopg.Error:
                    return
                written.append(text)
                time.sleep(0.03)

    with failing_thread(write, done):
        reembed(database_url, "t", options_for(other_gateway.url))
        done.set()
    # Those after the swap copied a new vector, of another text.
    with connect(database_url) as connection:
        found = rows_of(connection, table)
    assert sorted(found) == sorted([*texts(60), *written])


def test_an_emptied_table_starts_from_scratch(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=30)
    emptied: list[bool] = []

    def empty(progress: ReembedProgress) -> None:
        if progress.phase == "changes" and not emptied:
            emptied.append(True)
            with connect(database_url, autocommit=True) as connection:
                connection.execute("CREATE TABLE kept AS TABLE t")
                connection.execute("TRUNCATE t")
                connection.execute("INSERT INTO t SELECT * FROM kept LIMIT 7")

    reembed(database_url, "t", options_for(other_gateway.url), on_progress=empty)
    with connect(database_url) as connection:
        left = list(rows_of(connection, table))
    assert len(left) == 7
    assert_space(database_url, table, other_gateway.url, left)


def test_a_column_and_an_index_added_while_it_runs_are_not_lost(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=30)
    added: list[bool] = []

    def add(progress: ReembedProgress) -> None:
        if progress.phase == "swap" and not added:
            added.append(True)
            with connect(database_url, autocommit=True) as connection:
                connection.execute("ALTER TABLE t ADD COLUMN language text DEFAULT 'en'")
                connection.execute("CREATE INDEX late ON t (language)")

    reembed(database_url, "t", options_for(other_gateway.url), on_progress=add)
    with connect(database_url) as connection:
        rows = connection.execute("SELECT DISTINCT language FROM t").fetchall()
        assert rows == [("en",)]
        assert connection.execute("SELECT 'late'::regclass").fetchone() is not None
    assert_space(database_url, table, other_gateway.url, texts(30))


def test_a_refused_text_stops_the_swap_and_is_named(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=30)
    with connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE t SET content = '' WHERE content = ANY(%s)", (texts(2),))
        rows = connection.execute("SELECT id::text FROM t WHERE content = ''").fetchall()
        options = options_for(other_gateway.url)
        with pytest.raises(TableError, match=r"2 rows of public\.t cannot be embedded") as caught:
            reembed(database_url, "t", options)
        assert all(row[0] in str(caught.value) for row in rows)
        assert record_of(database_url, table).space.fingerprint != "unknown"
        with pytest.raises(TableError, match=r"2 rows of public\.t cannot be embedded"):
            reembed(database_url, "t", options)
        connection.execute(
            "UPDATE t SET content = 'corrected' WHERE content = '' AND id = %s", rows[0]
        )
        connection.execute("DELETE FROM t WHERE content = ''")
        report = reembed(database_url, "t", options)
    assert (report.rows, report.embedded) == (29, 1)
    assert_space(database_url, table, other_gateway.url, [*texts(30)[2:], "corrected"])


def test_loads_and_re_embeddings_exclude_each_other(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=10)
    record = record_of(database_url, table)
    with (
        TableHold(database_url, record, table, retry_seconds=1),
        pytest.raises(BusyError, match="Another load is running"),
    ):
        reembed(database_url, "t", options_for(other_gateway.url))

    def load_meanwhile(_: ReembedProgress) -> None:
        with pytest.raises(BusyError):
            TableHold(database_url, record, table, retry_seconds=1)

    reembed(database_url, "t", options_for(other_gateway.url), on_progress=load_meanwhile)


def test_a_re_embedding_can_be_abandoned(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=30)

    with pytest.raises(KeyboardInterrupt):
        reembed(database_url, "t", options_for(other_gateway.url), on_progress=interrupt_indexing)
    assert "t__reembed" in leftovers(database_url)
    assert abandon_reembed(database_url, "t")
    assert leftovers(database_url) == []
    assert not abandon_reembed(database_url, "t")
    assert_space(database_url, table, in_process_gateway.url, texts(30))


def test_the_command_gives_up_a_re_embedding(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=30)
    options = options_for(other_gateway.url)
    with pytest.raises(KeyboardInterrupt):
        reembed(database_url, "t", options, on_progress=interrupt_indexing)
    arguments = ["load", "--dsn", database_url, "--table", "t", "--abandon-reembed"]
    first, second = (CliRunner().invoke(main, arguments) for _ in range(2))
    assert first.output == "t: the re-embedding was given up. The table is as it was.\n"
    assert second.output == "t: there is no re-embedding to give up.\n"
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert leftovers(database_url) == []
    assert_space(database_url, table, in_process_gateway.url, texts(30))


def test_another_target_starts_from_scratch(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=30)

    with pytest.raises(KeyboardInterrupt):
        reembed(database_url, "t", options_for(other_gateway.url), on_progress=interrupt_indexing)
    options = options_for(in_process_gateway.url, dimensions=128)
    assert reembed(database_url, "t", options).embedded == 30
    assert_space(database_url, table, in_process_gateway.url, texts(30), dimensions=128)


def test_a_table_that_only_has_a_successors_name_is_not_dropped(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    load(database_url, in_process_gateway.url, rows=3)
    with connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE t__reembed (precious int)")
        with pytest.raises(
            TableError, match=r"t__reembed, which another table has\. Rename that one"
        ):
            reembed(database_url, "t", options_for(other_gateway.url))
        connection.execute("SELECT precious FROM t__reembed")


def test_only_the_owner_can_re_embed(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    load(database_url, in_process_gateway.url, rows=3)
    role = f"role_{secrets.token_hex(4)}"
    with connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        connection.execute(f"GRANT ALL ON t TO {role}")
        connection.execute(f"GRANT ALL ON SCHEMA qwen3_ingest TO {role}")
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA qwen3_ingest TO {role}")
        info = connection.info
        theirs = f"postgresql://{role}:secret@{info.host}:{info.port}/{info.dbname}"
        try:
            with pytest.raises(TableError, match=rf"only its owner can replace it, not `{role}`"):
                reembed(theirs, "t", options_for(other_gateway.url))
        finally:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")


# Continues after each report when it is told to, or when nobody tells it anything.
_SCRIPT = """
import sys
from qwen3_triton_ingest.config import GatewayOptions, IndexOptions, LoadOptions
from qwen3_triton_ingest.reembed import filling, reembed
filling.BATCH_ROWS = 40
url, gateway = sys.argv[1:]
options = LoadOptions(gateway=GatewayOptions(url=gateway), index=IndexOptions(parallel_workers=0))

def tell(progress):
    print(progress.phase, progress.rows_done, flush=True)
    sys.stdin.readline()

print(reembed(url, "t", options, on_progress=tell).embedded, flush=True)
"""


def has_come(line: str, moment: str | int) -> bool:
    """Return whether a phase was reached, or so many rows."""
    phase, _, rows = line.partition(" ")
    return phase == moment if isinstance(moment, str) else int(rows or 0) >= moment


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param((40, "index", "swap"), id="3-kills"),
        pytest.param(
            (1, 40, 80, 120, "changes", "index", "index", "swap"),
            id="8-kills",
            marks=pytest.mark.campaign,
        ),
    ],
)
def test_kills_at_any_moment_are_resumed(
    database_url: str,
    in_process_gateway: GatewayProcess,
    other_gateway: GatewayProcess,
    moments: tuple[str | int, ...],
) -> None:
    table = load(database_url, in_process_gateway.url)
    command = [sys.executable, "-c", _SCRIPT, database_url, other_gateway.url]
    pauses = random.Random(7)
    for moment in moments:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            while not has_come(process.stdout.readline(), moment):
                print(file=process.stdin, flush=True)
            # It gets as far as its next report at most.
            print(file=process.stdin, flush=True)
            time.sleep(pauses.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(ended.stdout.split()[-1]) == 0  # every row was done before
    assert_space(database_url, table, other_gateway.url, texts())
    assert leftovers(database_url) == []


def test_it_survives_restarts_of_the_server(
    in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    with embedded_postgres(0) as url:
        table = load(url, in_process_gateway.url, rows=60)
        cut: list[str] = []

        def cut_off(progress: ReembedProgress) -> None:
            if progress.phase not in cut:
                cut.append(progress.phase)
                with connect(url, autocommit=True) as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                    )

        report = reembed(url, "t", options_for(other_gateway.url), on_progress=cut_off)
        assert report.swapped
        assert {"embed", "changes", "index", "swap"} <= set(cut)
        assert_space(url, table, other_gateway.url, texts(60))
        assert leftovers(url) == []


def test_a_long_search_delays_only_the_swap(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    table = load(database_url, in_process_gateway.url, rows=30)
    reader = connect(database_url)
    reader.execute("SELECT count(*) FROM t")
    ended, searches = threading.Event(), list[int]()

    def search() -> None:
        try:
            with connect(database_url, autocommit=True) as connection:
                connection.execute("SET statement_timeout = '60s'")
                while len(searches) < 3 and not ended.is_set():
                    if is_exclusive_lock_awaited(connection, "t"):
                        # Behind the swap in the queue, and served before it.
                        searches.append(connection.execute("SELECT FROM t").rowcount)
        finally:
            reader.close()

    with failing_thread(search, ended):
        reembed(database_url, "t", options_for(other_gateway.url))
    assert searches == [30] * 3
    assert_space(database_url, table, other_gateway.url, texts(30))


def test_vectors_too_long_for_an_index_are_refused_before_anything_is_embedded(
    database_url: str, in_process_gateway: GatewayProcess, other_gateway: GatewayProcess
) -> None:
    load(database_url, in_process_gateway.url, rows=3)
    with connect(database_url, autocommit=True) as connection:
        table = replace(find_table(connection, "t"), dimensions=1024)
        from qwen3_triton_ingest.reembed.old_table import examine

        connection.execute("CREATE INDEX plain ON t USING hnsw (embedding vector_cosine_ops)")
        with pytest.raises(TableError, match=r"index plain .*at most 2000.* have 2560"):
            examine(connection, table, 2560)
