"""The text backends: PostgreSQL's own, and ParadeDB's queries.

ParadeDB's queries run on a shim of its operators, which checks their syntax but not their ranking,
and on a real ParadeDB if PARADEDB_DSN is the URI of an empty database.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Any

import psycopg
import pytest
from paradedb.sqlalchemy import pdb
from paradedb.sqlalchemy.indexing import ParadeDBField
from paradedb.sqlalchemy.search import match_any
from paradedb.sqlalchemy.tokenizer import Tokenizer
from psycopg import sql
from sqlalchemy import Column, Index, MetaData, Text, bindparam, select
from sqlalchemy import Table as SQLAlchemyTable
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from filled_tables import LAYOUTS, Corpus, times_used
from qwen3_triton_ingest.config import GatewayOptions
from qwen3_triton_ingest.errors import TableError
from qwen3_triton_ingest.layouts import LAYOUTS as LAYOUT_TYPES
from qwen3_triton_ingest.layouts import LayoutName, Table
from qwen3_triton_ingest.search import Searcher, create_text_index, find_text_indexes
from qwen3_triton_ingest.search.filters import ROW
from qwen3_triton_ingest.search.text_access import TextAccess, find_text_access, text_arm
from qwen3_triton_ingest.search.text_indexes import (
    TextBackend,
    detect_text_backend,
    text_index_statement,
)
from qwen3_triton_ingest.tables.preparation import find_table

SHIM = Path(__file__).parents[3] / "tests" / "support" / "paradedb_shim.sql"


@pytest.fixture(name="paradedb_url")
def _paradedb_url(database_url: str) -> str:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(SHIM.read_bytes())
    return database_url


def _searcher(dsn: str, name: str, corpus: Corpus, backend: TextBackend | None = None) -> Searcher:
    gateway = GatewayOptions(url=corpus.gateway_url)
    return Searcher(dsn, name, gateway=gateway, text_backend=backend or "auto")


def _found(searcher: Searcher, corpus: Corpus) -> float:
    """Return the fraction of titles for which the text is among the first ten hits."""
    entries = corpus.entries[::4]
    found = 0
    for entry in entries:
        hits = searcher.search(str(entry.metadata["title"]), mode="text")
        found += entry.doc_id in {hit.doc_id for hit in hits}
    return found / len(entries)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_index_of_postgresql_is_created_found_and_used(
    database_url: str, corpus: Corpus, layout: LayoutName
) -> None:
    table = corpus.fill(database_url, "manuals", layout)
    dsn = f"{database_url}?options=-c%20enable_seqscan%3Doff"
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert find_text_indexes(connection, table) == []
        made = create_text_index(connection, table, config="english")
        assert (made.backend, made.config) == ("tsvector", "english")
        assert create_text_index(connection, table, config="german") == made  # not a second one
        assert detect_text_backend(connection, table) == "tsvector"
        assert find_text_access(connection, table).config == "english"
    with _searcher(dsn, "manuals", corpus) as searcher:
        assert _found(searcher, corpus) > 0.7  # with stemming; fewer without
        hits = searcher.search("volcanoes erupting", mode="text")
        assert any("volcan" in hit.text.lower() for hit in hits)
    assert times_used(database_url, made.name) > 0


def test_a_generated_tsvector_column_is_searched_with_its_configuration(
    database_url: str, corpus: Corpus
) -> None:
    table = corpus.fill(database_url, "manuals")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE manuals ADD words tsvector "
            "GENERATED ALWAYS AS (to_tsvector('english', content)) STORED"
        )
        made = create_text_index(connection, table, config="simple")
        assert made.keys == ("words",)
        assert made.config == "english"
    with _searcher(database_url, "manuals", corpus) as searcher:
        assert '"chunk"."words" @@' in searcher.sql(mode="text")
        assert '"content")' not in searcher.sql(mode="text")
        assert _found(searcher, corpus) > 0.7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_queries_for_paradedb_are_valid_sql(
    paradedb_url: str, corpus: Corpus, layout: LayoutName
) -> None:
    corpus.fill(paradedb_url, "manuals", layout)
    with _searcher(paradedb_url, "manuals", corpus, "paradedb") as searcher:
        hits = searcher.search("lava", mode="text", filter={"subject": "geography"})
        assert "lava" in hits[0].text.lower()
        entry = corpus.entries[7]
        both = searcher.search(entry.question, k=5, filter={"subject": entry.metadata["subject"]})
        assert entry.doc_id in [hit.doc_id for hit in both]
        shown = searcher.sql(mode="text")
    key = '"langchain_id"' if layout == "langchain" else '"id"'
    assert f'pdb.score("chunk".{key})' in shown
    assert f'ORDER BY pdb.score("chunk".{key}) DESC, "chunk".{key}' in shown
    assert "||| %(question)s::text" in shown


@pytest.mark.parametrize(
    ("layout", "version", "config", "statement"),
    [
        ("own", "0.20.4", "simple", 'bm25 ("id", "content") WITH (key_field = \'id\')'),
        ("own", "0.25.10", "simple", 'paradedb ("id", "content") WITH (key_field = \'id\')'),
        ("own", "0.26.2", "simple", 'paradedb ("id", "content")'),
        (
            *("own", "0.24.0", "english"),
            "bm25 (\"id\", (\"content\"::pdb.simple('stemmer=english'))) WITH (key_field = 'id')",
        ),
        (
            *("langchain", "0.25.0", "simple"),
            'paradedb ("langchain_id", "content") WITH (key_field = \'langchain_id\')',
        ),
        ("llamaindex", "0.25.0", "simple", 'paradedb ("id", "text") WITH (key_field = \'id\')'),
    ],
)
def test_the_index_statement_fits_the_release_of_paradedb(
    layout: LayoutName, version: str, config: str, statement: str
) -> None:
    table = Table("public", "t", LAYOUT_TYPES[layout], 1024)
    made = text_index_statement(table, "paradedb", config, version=version).as_string(None)
    assert made == f'CREATE INDEX "t_bm25" ON "public"."t" USING {statement}'


def _bare(statement: str) -> str:
    """Return a statement without quotes of names, redundant parentheses and layout."""
    plain = " ".join(statement.replace('"', "").split())
    return re.sub(r"\((\w+)\)::", r"\1::", plain)


@pytest.mark.parametrize("config", ["simple", "english", "german"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_index_statement_is_the_one_of_paradedbs_own_library(
    layout: LayoutName, config: str
) -> None:
    table = Table("public", "t", LAYOUT_TYPES[layout], 1024)
    made = text_index_statement(table, "paradedb", config, version="0.26.2").as_string(None)
    key, content = upstream_columns(table)
    stemmed = config != "simple"
    tokenizer = Tokenizer("simple", options={"stemmer": config}) if stemmed else None
    fields = [ParadeDBField(key), ParadeDBField(content, tokenizer=tokenizer)]
    theirs = CreateIndex(Index("t_bm25", *fields, postgresql_using="paradedb"))
    assert _bare(made) == _bare(str(theirs.compile(dialect=postgresql.dialect())))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_query_has_the_operators_of_paradedbs_own_library(layout: LayoutName) -> None:
    table = Table("public", "t", LAYOUT_TYPES[layout], 1024)
    key, content = upstream_columns(table)
    theirs = (
        select(key, pdb.score(key))
        .where(match_any(content, bindparam("question")))
        .order_by(pdb.score(key).desc(), key)
    )
    statement = _bare(str(theirs.compile(dialect=postgresql.dialect())))
    arm = text_arm(table, TextAccess("paradedb", ""))
    ours = {
        part: _bare(piece.as_string(None)).replace(f"{ROW}.", "public.t.")
        for part, piece in {**arm.pieces, "condition": arm.condition}.items()
    }
    assert f", {ours['score']} AS" in statement
    assert statement.endswith(f"ORDER BY {ours['order']}")
    condition = ours["condition"].removesuffix("::text")
    assert f"WHERE {condition} " in statement.replace("::VARCHAR", "").replace("::TEXT", "")


def upstream_columns(table: Table) -> tuple[Column[Any], Column[Any]]:
    """Return the key and the content of a table as columns of SQLAlchemy."""
    key, content = Column(table.layout.primary_key, Text), Column(table.layout.content, Text)
    SQLAlchemyTable(table.name, MetaData(), key, content, schema=table.schema)
    return key, content


def test_a_missing_extension_or_configuration_is_an_error_that_names_it(
    database_url: str, corpus: Corpus
) -> None:
    table = corpus.fill(database_url, "manuals")
    with psycopg.connect(database_url) as connection:
        with pytest.raises(TableError, match="CREATE EXTENSION pg_search"):
            create_text_index(connection, table, "paradedb")
        with pytest.raises(TableError, match="no text search configuration 'klingon'"):
            create_text_index(connection, table, "tsvector", "klingon")
        assert create_text_index(connection, table, "tsvector")  # the transaction continues
        # The index is there, but the name is still wrong.
        with pytest.raises(TableError, match="no text search configuration 'klingon'"):
            create_text_index(connection, table, "tsvector", "klingon")


def test_other_gin_and_partial_indexes_are_not_taken_for_text_indexes(
    database_url: str, corpus: Corpus
) -> None:
    table = corpus.fill(database_url, "manuals")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "CREATE INDEX ON manuals USING gin (metadata jsonb_path_ops);"
            "CREATE INDEX ON manuals USING gin (to_tsvector('english', doc_id));"
            "CREATE INDEX ON manuals USING gin (to_tsvector('english', content)) WHERE seq = 0"
        )
        assert find_text_indexes(connection, table) == []


@pytest.mark.skipif("PARADEDB_DSN" not in os.environ, reason="PARADEDB_DSN names no ParadeDB")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_real_paradedb_ranks_by_bm25(corpus: Corpus, layout: LayoutName) -> None:
    dsn, name = os.environ["PARADEDB_DSN"], f"bm25_{secrets.token_hex(4)}"
    corpus.fill(dsn, name, layout)
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = find_table(connection, name, layout)
        try:
            assert create_text_index(connection, table, config="english").backend == "paradedb"
            with _searcher(dsn, name, corpus) as searcher:
                assert _found(searcher, corpus) > 0.8
                hits = searcher.search("lava", filter={"subject": "geography"})
                assert {hit.metadata["subject"] for hit in hits} == {"geography"}
        finally:
            connection.execute(sql.SQL("DROP TABLE {}").format(table.identifier))
            connection.execute(
                "DELETE FROM qwen3_ingest.tables WHERE table_name = %s", (table.name,)
            )
