"""Searches with vector indexes: which one is used, its recall, and the effect of filters."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import psycopg
import pytest

from filled_tables import Corpus, create_database, times_used
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest.config import GatewayOptions
from qwen3_triton_ingest.index.catalog import find_vector_indexes
from qwen3_triton_ingest.rows.binary import BinaryDumper, BinaryValue, pack_vector
from qwen3_triton_ingest.search import Searcher
from qwen3_triton_ingest.search.connections import fetch
from qwen3_triton_ingest.search.options import SearchOptions
from qwen3_triton_ingest.search.queries import (
    search_statement,
    settings_statement,
    vector_access,
)
from qwen3_triton_ingest.search.steps import Fetch
from qwen3_triton_ingest.tables.preparation import find_table

# Questions about Python that are not in the table.
QUESTIONS = (
    "How do I catch several kinds of exceptions at once?",
    "What does the walrus operator do?",
    "When is a generator finalized?",
    "How are keyword-only arguments declared?",
    "What is the order in which operands are evaluated?",
    "How can a class customize attribute access?",
    "What happens when a name is not found in any scope?",
    "How does slicing work with negative steps?",
)


@pytest.fixture(name="dsn", scope="module")
def _dsn(postgres_uri: str, paragraphs: Corpus) -> Generator[str]:
    for dsn in create_database(postgres_uri):
        paragraphs.fill(dsn, "topics")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "CREATE INDEX ON topics USING hnsw ((embedding::halfvec(1024)) halfvec_cosine_ops)"
            )
        # The table is so small that the planner would read all of it.
        yield f"{dsn}?options=-c%20enable_seqscan%3Doff"


@pytest.fixture(name="searcher")
def _searcher(dsn: str, paragraphs: Corpus) -> Generator[Searcher]:
    gateway = GatewayOptions(url=paragraphs.gateway_url)
    with Searcher(dsn, "topics", gateway=gateway) as searcher:
        yield searcher


def _recall(searcher: Searcher, given: Mapping[str, Any] | None, k: int) -> float:
    found = wanted = 0
    for question in QUESTIONS:
        hits = searcher.search(question, mode="vector", k=k, filter=given)
        exact = searcher.search(question, mode="vector", k=k, filter=given, exact=True)
        assert len(hits) == len(exact)
        found += len({hit.id for hit in hits} & {hit.id for hit in exact})
        wanted += len(exact)
    return found / wanted


def test_the_table_is_large_enough(paragraphs: Corpus) -> None:
    assert len(paragraphs.entries) == 3_000


def test_the_index_finds_almost_all_of_the_nearest_rows(searcher: Searcher) -> None:
    assert _recall(searcher, None, 10) >= 0.95


@pytest.mark.parametrize(
    ("given", "k"),
    [
        ({"number": {"$gte": 1500}}, 10),
        ({"one_in_100": 7}, 10),
        ({"one_in_1000": 3}, 3),
        ({"$or": [{"one_in_1000": 3}, {"one_in_1000": 4}]}, 6),
    ],
)
def test_a_selective_filter_returns_every_matching_row(
    searcher: Searcher, paragraphs: Corpus, given: dict[str, Any], k: int
) -> None:
    for question in QUESTIONS:
        hits = searcher.search(question, mode="vector", k=k, filter=given)
        assert len(hits) == k
        hybrid = searcher.search(question, k=k, filter=given)
        assert len(hybrid) == k
    assert _recall(searcher, given, k) >= 0.95


def test_all_rows_are_read_if_the_index_gives_up(dsn: str, paragraphs: Corpus) -> None:
    """An iterative scan of 100 rows cannot find 3 of 3,000."""
    impatient = f"{dsn}%20-c%20hnsw.max_scan_tuples%3D100"
    gateway = GatewayOptions(url=paragraphs.gateway_url)
    with Searcher(impatient, "topics", gateway=gateway) as searcher:
        assert _recall(searcher, {"one_in_1000": 3}, 3) == 1.0
        for question in QUESTIONS:
            assert len(searcher.search(question, k=3, filter={"one_in_1000": 3})) == 3


def test_settings_end_with_the_search(dsn: str, paragraphs: Corpus) -> None:
    with psycopg.connect(dsn) as connection, EmbeddingClient(paragraphs.gateway_url) as client:
        connection.execute("SELECT '[1]'::vector")  # loads pgvector, which defines the settings
        connection.commit()
        before = connection.execute("SHOW hnsw.ef_search").fetchone()
        connection.commit()
        searcher = Searcher(connection, "topics", client=client)
        assert searcher.search(QUESTIONS[0], ef_search=321)
        assert connection.execute("SHOW hnsw.ef_search").fetchone() == before


def _plan(dsn: str, paragraphs: Corpus, options: SearchOptions) -> str:
    """Explain a search as `fetch` runs it."""
    with psycopg.connect(dsn) as connection, EmbeddingClient(paragraphs.gateway_url) as client:
        table = find_table(connection, "topics")
        vectors = vector_access(table, find_vector_indexes(connection, table))
        statement = search_statement(table, options, vectors=vectors, texts=None)
        vector = client.embed([QUESTIONS[0]], input_type="query").vectors[0]
        statement.parameters["vector"] = BinaryValue(pack_vector(vector))
        connection.adapters.register_dumper(BinaryValue, BinaryDumper)
        settings = settings_statement(options, vectors)
        if settings:
            connection.execute(settings.query)
        explain = psycopg.sql.SQL("EXPLAIN ") + statement.query
        return "\n".join(row[0] for row in connection.execute(explain, statement.parameters))


def test_the_index_is_used_but_its_order_is_not_trusted(dsn: str, paragraphs: Corpus) -> None:
    plan = _plan(dsn, paragraphs, SearchOptions(mode="vector"))
    assert "Index Scan using topics_embedding_idx" in plan
    # Between the scan for candidates and their ranking.
    above, _, _ = plan.partition("CTE Scan on nearest")
    assert "Sort" in above.rpartition("WindowAgg")[2]


def test_exact_uses_no_vector_index(dsn: str, paragraphs: Corpus) -> None:
    plan = _plan(dsn, paragraphs, SearchOptions(mode="vector", exact=True))
    assert "topics_embedding_idx" not in plan


@pytest.mark.parametrize(
    ("index", "used"),
    [
        ("hnsw (embedding vector_cosine_ops)", True),
        ("hnsw (embedding vector_ip_ops)", True),
        ("hnsw (embedding vector_l2_ops)", True),
        ("hnsw ((embedding::halfvec(1024)) halfvec_l2_ops)", True),
        ("ivfflat (embedding vector_cosine_ops) WITH (lists = 1)", True),
        ("hnsw ((binary_quantize(embedding)::bit(1024)) bit_hamming_ops)", False),
    ],
)
def test_any_index_of_the_vectors_is_used(
    database_url: str, corpus: Corpus, index: str, used: bool
) -> None:
    corpus.fill(database_url, "manuals")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE INDEX theirs ON manuals USING {index}".encode())
        table = find_table(connection, "manuals")
        vectors = vector_access(table, find_vector_indexes(connection, table))
    assert (vectors.method is not None) == used
    dsn = f"{database_url}?options=-c%20enable_seqscan%3Doff"
    with Searcher(dsn, "manuals", gateway=GatewayOptions(url=corpus.gateway_url)) as searcher:
        found = wanted = 0
        for entry in corpus.entries[::20]:
            hits = searcher.search(entry.question, mode="vector", k=5)
            exact = searcher.search(entry.question, mode="vector", k=5, exact=True)
            found += len({hit.id for hit in hits} & {hit.id for hit in exact})
            wanted += len(exact)
            assert [hit.distance for hit in hits] == sorted(hit.distance or 0 for hit in hits)
    assert found / wanted >= 0.95
    assert (times_used(database_url, "theirs") > 0) == used


def test_halfvec_columns_are_searched_at_their_own_precision(
    database_url: str, corpus: Corpus
) -> None:
    corpus.fill(database_url, "manuals")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE manuals ALTER COLUMN embedding TYPE halfvec(1024)")
        connection.execute("CREATE INDEX ON manuals USING hnsw (embedding halfvec_cosine_ops)")
    dsn = f"{database_url}?options=-c%20enable_seqscan%3Doff"
    with Searcher(dsn, "manuals", gateway=GatewayOptions(url=corpus.gateway_url)) as searcher:
        for entry in corpus.entries[::50]:
            hits = searcher.search(entry.question, mode="vector", k=5)
            exact = searcher.search(entry.question, mode="vector", k=5, exact=True)
            assert [hit.id for hit in hits] == [hit.id for hit in exact]


def test_rows_without_a_usable_vector_are_skipped(database_url: str, corpus: Corpus) -> None:
    corpus.fill(database_url, "manuals", "llamaindex")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE data_manuals SET embedding = NULL WHERE id % 3 = 0")
        zeros = str([0.0] * 1024)
        connection.execute("UPDATE data_manuals SET embedding = %s WHERE id %% 3 = 1", (zeros,))
    gateway = GatewayOptions(url=corpus.gateway_url)
    with Searcher(database_url, "manuals", gateway=gateway) as searcher:
        hits = searcher.search("Why is the sky blue?", mode="vector", k=500)
    assert len(hits) == sum(number % 3 == 2 for number in range(1, len(corpus.entries) + 1))
    assert all(0 <= (hit.distance or 0) <= 2 for hit in hits)


def test_one_search_is_one_transaction_with_its_fingerprint(dsn: str, paragraphs: Corpus) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = find_table(connection, "topics")
        vectors = vector_access(table, find_vector_indexes(connection, table))
        options = SearchOptions(mode="vector", k=2)
        statement = search_statement(table, options, vectors=vectors, texts=None)
        statement.parameters["vector"] = BinaryValue(pack_vector(paragraphs.chunks[0].vector))
        fetched = fetch(connection, Fetch([], statement, None))
    assert fetched.fingerprint is None
    assert fetched.rows[0][0] == str(paragraphs.entries[0].id)
