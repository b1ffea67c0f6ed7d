"""Rows read back from every kind of table as they were written, and only once."""

import json
import random
import struct
import uuid
from array import array
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_postgres import PGEngine, PGVectorStore
from llama_index.core.vector_stores.utils import metadata_dict_to_node
from psycopg.sql import SQL

from qwen3_triton_ingest.database import Connection
from qwen3_triton_ingest.documents import Chunk, EmbeddedChunk
from qwen3_triton_ingest.layouts import LayoutName, Table
from qwen3_triton_ingest.rows.binary import copy_stream, pack_vector
from qwen3_triton_ingest.rows.chunks import copy_chunks, delete_chunks, update_chunks, upsert_chunks
from qwen3_triton_ingest.tables.preparation import prepare_table

DIMENSIONS = 16
LAYOUT_NAMES: tuple[LayoutName, ...] = ("own", "langchain", "llamaindex")
METADATA: dict[str, Any] = {
    "lang": "zh",
    "título": 'ünï 你好 \U0001f600 "quoted" \\ back',
    "n": 3,
    "score": 0.5,
    "tags": ["a", None, {"deep": True}],
}
RICH = """
    CREATE TABLE "100%s rich" (langchain_id text PRIMARY KEY, content varchar NOT NULL,
        embedding halfvec(16) NOT NULL, content_tsv tsvector NOT NULL, lang text, n integer,
        tags jsonb, pages integer[], "odd "" name" double precision, langchain_metadata jsonb)"""


@pytest.fixture(name="connection")
def _connection(database_url: str):
    with psycopg.connect(database_url) as connection:
        yield connection


@pytest.fixture(name="table", params=[*LAYOUT_NAMES, "rich"])
def _table(request: pytest.FixtureRequest, connection: Connection) -> Table:
    """Each layout in turn, and a LangChain table with everything that one can have."""
    if request.param != "rich":
        return prepare_table(connection, "a % of", request.param, DIMENSIONS)
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute(RICH.encode())
    return prepare_table(connection, "100%s rich", "langchain", DIMENSIONS)


def chunk(number: int, text: str = "", metadata: dict[str, Any] | None = None) -> EmbeddedChunk:
    vector = array("f", [random.Random(number).gauss(0, 1) for _ in range(DIMENSIONS)])
    each = uuid.uuid5(uuid.NAMESPACE_URL, str(number))
    text = text or f"text {number}\n\t'你好' \U0001f600 \\N"
    return EmbeddedChunk(
        Chunk(each, f"doc/{number // 3} ü", number % 3, text, METADATA | (metadata or {})), vector
    )


def stored(connection: Connection, table: Table) -> dict[str, tuple[Any, ...]]:
    """Return (doc_id, seq, text, metadata, vector) by id."""
    layout = table.layout
    query = f"""
        SELECT "{layout.id}"::text, {layout.doc_id}, {layout.seq}, "{layout.content}",
            "{layout.metadata}"::json, embedding::text FROM %s"""
    rows = connection.execute((query % table.identifier.as_string(connection)).encode()).fetchall()
    found = {row[0]: (*row[1:5], json.loads(row[5])) for row in rows}
    assert len(found) == len(rows), "several rows have the same id"
    return found


def expected(table: Table, chunks: list[EmbeddedChunk]) -> dict[str, Any]:
    def vector(each: EmbeddedChunk) -> list[float]:
        if table.vector_type == "vector":
            return pytest.approx(each.vector.tolist(), rel=1e-6)
        halves = struct.unpack("16e", struct.pack("16e", *each.vector))
        return pytest.approx(list(halves), rel=1e-3)

    return {
        str(each.chunk.id): (each.chunk.doc_id, each.chunk.seq, each.chunk.text, vector(each))
        for each in chunks
    }


def without_metadata(rows: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    return {key: (*row[:3], row[4]) for key, row in rows.items()}


def user_metadata(table: Table, row: tuple[Any, ...]) -> dict[str, Any]:
    return {k: v for k, v in row[3].items() if k not in table.layout.own_metadata_keys}


def test_copied_rows_read_back_as_written(connection: Connection, table: Table):
    chunks = [chunk(number) for number in range(2500)]
    assert copy_chunks(connection, table, iter(chunks)) == 2500
    found = stored(connection, table)
    assert without_metadata(found) == expected(table, chunks)
    columns = table.metadata_columns
    kept = {key: value for key, value in METADATA.items() if key not in columns}
    assert all(user_metadata(table, row) == kept for row in found.values())


def test_upserted_rows_read_back_as_written_and_are_not_duplicated(
    connection: Connection, table: Table
):
    chunks = [chunk(number) for number in range(2100)]
    assert upsert_chunks(connection, table, iter(chunks[:1500])) == 1500
    assert upsert_chunks(connection, table, chunks[100:]) == 2000
    assert upsert_chunks(connection, table, chunks) == 2100
    assert without_metadata(stored(connection, table)) == expected(table, chunks)


def test_an_upsert_replaces_everything_but_the_id(connection: Connection, table: Table):
    upsert_chunks(connection, table, [chunk(1, "before", {"lang": "en"}), chunk(2)])
    after = EmbeddedChunk(chunk(1, "after").chunk, chunk(99).vector)
    upsert_chunks(connection, table, [after])
    assert without_metadata(stored(connection, table)) == expected(table, [after, chunk(2)])


def test_the_last_of_several_chunks_with_one_id_wins(connection: Connection, table: Table):
    chunks = [chunk(1, "first"), chunk(2), chunk(1, "second"), chunk(1, "third")]
    assert upsert_chunks(connection, table, chunks) == 2
    found = stored(connection, table)
    assert without_metadata(found) == expected(table, [chunk(2), chunk(1, "third")])


def test_copying_an_existing_id_is_a_unique_violation(connection: Connection, table: Table):
    copy_chunks(connection, table, [chunk(1)])
    with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
        copy_chunks(connection, table, [chunk(0), chunk(1)])
    assert without_metadata(stored(connection, table)) == expected(table, [chunk(1)])


def test_an_update_changes_only_metadata_and_place(connection: Connection, table: Table):
    chunks = [chunk(number) for number in range(6)]
    copy_chunks(connection, table, chunks)
    old = chunks[4].chunk
    moved = Chunk(old.id, old.doc_id, 17, "not written", {"lang": "fr", "new": [1]})
    update_chunks(connection, table, [moved])
    found = stored(connection, table)
    row = found.pop(str(old.id))
    assert row[:3] == (old.doc_id, 17, old.text)
    assert row[4] == expected(table, chunks)[str(old.id)][3]
    lang = {} if table.metadata_columns else {"lang": "fr"}
    assert user_metadata(table, row) == {"new": [1], **lang}
    assert without_metadata(found) == expected(table, chunks[:4] + chunks[5:])


def test_rows_are_deleted_by_id_and_counted(connection: Connection, table: Table):
    chunks = [chunk(number) for number in range(6)]
    copy_chunks(connection, table, chunks)
    ids = [each.chunk.id for each in chunks]
    assert delete_chunks(connection, table, [*ids[:2], uuid.uuid4()]) == 2
    assert delete_chunks(connection, table, []) == 0
    assert without_metadata(stored(connection, table)) == expected(table, chunks[2:])


def test_an_empty_stream_writes_nothing(connection: Connection, table: Table):
    assert copy_chunks(connection, table, []) == 0
    assert upsert_chunks(connection, table, []) == 0
    update_chunks(connection, table, [])
    assert stored(connection, table) == {}


def test_nothing_is_committed(connection: Connection, table: Table, database_url: str):
    connection.commit()
    copy_chunks(connection, table, [chunk(1)])
    upsert_chunks(connection, table, [chunk(2)])
    with psycopg.connect(database_url) as other:
        assert stored(other, table) == {}
    connection.rollback()
    assert stored(connection, table) == {}


@pytest.mark.parametrize("write", [copy_chunks, upsert_chunks])
def test_a_vector_of_another_length_is_refused_before_it_is_sent(
    connection: Connection, table: Table, write: Any
):
    short = EmbeddedChunk(chunk(1).chunk, array("f", [1.0] * 8))
    with (
        pytest.raises(ValueError, match=r"has 8 dimensions; .* holds vectors of 16"),
        connection.transaction(),
    ):
        write(connection, table, [chunk(0), short])
    assert stored(connection, table) == {}


@pytest.mark.parametrize("write", [copy_chunks, upsert_chunks])
def test_a_text_that_postgresql_cannot_hold_stores_nothing(
    connection: Connection, table: Table, write: Any
):
    with pytest.raises(psycopg.DataError), connection.transaction():
        write(connection, table, [chunk(0), chunk(1, "a\0b")])
    assert stored(connection, table) == {}


def test_metadata_columns_take_the_keys_of_their_names(connection: Connection):
    connection.execute("CREATE EXTENSION vector")
    connection.execute(RICH.encode())
    table = prepare_table(connection, "100%s rich", "langchain", DIMENSIONS)
    more: dict[str, Any] = {"pages": [1, 2], 'odd " name': 2.5, "lang": "it's"}
    for write in (copy_chunks, upsert_chunks):
        connection.execute('TRUNCATE "100%s rich"')
        write(connection, table, [chunk(1, "running shoes", more), chunk(2, "x")])
        query = """SELECT content_tsv::text, lang, n, tags, pages, "odd "" name",
            langchain_metadata FROM "100%s rich" ORDER BY content"""
        first, second = connection.execute(query.encode()).fetchall()
        assert first[:6] == ("'run':1 'shoe':2", "it's", 3, METADATA["tags"], [1, 2], 2.5)
        assert first[6] == {
            "título": METADATA["título"],
            "score": 0.5,
            "doc_id": "doc/0 ü",
            "seq": 1,
        }
        assert second[4:6] == (None, None)
    update_chunks(connection, table, [chunk(2, "x", {"pages": [7], "lang": "fr"}).chunk])
    query = """SELECT lang, pages FROM "100%s rich" WHERE content = 'x'"""
    assert connection.execute(query.encode()).fetchone() == ("fr", [7])


def test_llamaindex_reads_the_nodes_back(connection: Connection):
    table = prepare_table(connection, "docs", "llamaindex", DIMENSIONS)
    given = chunk(4)
    copy_chunks(connection, table, [given])
    row = connection.execute("SELECT text, metadata_, node_id FROM data_docs").fetchone()
    assert row is not None
    node: Any = metadata_dict_to_node(row[1], text=row[0])
    assert node.node_id == row[2] == str(given.chunk.id)
    assert node.text == given.chunk.text
    assert node.metadata == given.chunk.metadata
    assert node.ref_doc_id == given.chunk.doc_id
    assert node.source_node.node_type == "4"


def test_langchains_store_reads_the_documents_back(connection: Connection, database_url: str):
    table = prepare_table(connection, "docs", "langchain", DIMENSIONS)
    given = chunk(4)
    copy_chunks(connection, table, [given, chunk(5)])
    connection.commit()
    url = database_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = PGEngine.from_connection_string(url)
    store = PGVectorStore.create_sync(engine, DeterministicFakeEmbedding(size=DIMENSIONS), "docs")
    (document,) = store.similarity_search_by_vector(given.vector.tolist(), k=1)
    engine._run_as_sync(engine.close())
    assert document.id == str(given.chunk.id)
    assert document.page_content == given.chunk.text
    assert document.metadata == METADATA | {"doc_id": "doc/1 ü", "seq": 1}


def test_the_extension_may_be_in_a_schema_off_the_search_path(connection: Connection):
    connection.execute("CREATE SCHEMA extensions")
    connection.execute("CREATE EXTENSION vector SCHEMA extensions")
    table = prepare_table(connection, "chunks", "own", DIMENSIONS)
    assert copy_chunks(connection, table, [chunk(1)]) == 1
    assert upsert_chunks(connection, table, [chunk(1), chunk(2)]) == 2


def test_copying_reads_no_further_than_it_sends(connection: Connection):
    """So memory does not grow with the load."""
    table = prepare_table(connection, "chunks", "own", DIMENSIONS)
    taken = 0
    vector = array("f", [0.5] * DIMENSIONS)

    def many() -> Iterator[EmbeddedChunk]:
        nonlocal taken
        for number in range(20_000):
            taken += 1
            yield EmbeddedChunk(Chunk(uuid.UUID(int=number), "d", number, "x" * 200, {}), vector)

    from qwen3_triton_ingest.rows.binary import embedded_fields

    blocks = copy_stream(embedded_fields(table, each) for each in many())
    first = next(blocks)
    assert len(first) < 600_000
    assert taken < 2000
    assert copy_chunks(connection, table, many()) == 20_000


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=64))
def test_a_packed_vector_has_pgvectors_binary_format(values: list[float]):
    packed = pack_vector(array("f", values))
    assert packed == struct.pack(f"!hh{len(values)}f", len(values), 0, *values)


def test_packing_does_not_change_the_vector():
    vector = array("f", [1.0, 2.0])
    pack_vector(vector)
    assert vector == array("f", [1.0, 2.0])


def test_written_vectors_equal_those_written_as_text_to_the_last_bit(connection: Connection):
    table = prepare_table(connection, "chunks", "own", DIMENSIONS)
    given = [chunk(number) for number in range(50)]
    copy_chunks(connection, table, given)
    for each in given:
        query = SQL("SELECT embedding = %s::vector FROM chunks WHERE id = %s")
        row = connection.execute(query, [str(each.vector.tolist()), each.chunk.id]).fetchone()
        assert row == (True,)
