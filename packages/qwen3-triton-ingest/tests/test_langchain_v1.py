"""Tables of LangChain's old `PGVector`: made by it, searched as they are."""

from __future__ import annotations

from collections.abc import Generator

import psycopg
import pytest
from langchain_core.documents import Document
from langchain_postgres import PGVector

from filled_tables import Library, times_used
from langchain_qwen3_triton import Qwen3TritonEmbeddings
from qwen3_triton_ingest import LoadOptions, ReadOptions, load
from qwen3_triton_ingest.config import GatewayOptions
from qwen3_triton_ingest.errors import TableError
from qwen3_triton_ingest.langchain import PostgresRetriever
from qwen3_triton_ingest.search import Searcher

TABLE = "langchain_pg_embedding"
COUNT = 40


@pytest.fixture(name="old")
def _old(database_url: str, library: Library) -> Generator[PGVector]:
    store = PGVector(
        Qwen3TritonEmbeddings(base_url=library.gateway_url),
        connection=database_url.replace("postgresql://", "postgresql+psycopg://"),
        collection_name="manuals",
    )
    documents = [
        Document(entry.text, metadata={**entry.metadata, "doc_id": entry.doc_id})
        for entry in library.entries[:COUNT]
    ]
    store.add_documents(documents, ids=[str(entry.id) for entry in library.entries[:COUNT]])
    yield store
    close(store)


def close(store: PGVector) -> None:
    if store._engine is not None:
        store._engine.dispose()


def searcher(dsn: str, library: Library, collection: str | None = None) -> Searcher:
    gateway = GatewayOptions(url=library.gateway_url)
    return Searcher(dsn, TABLE, gateway=gateway, collection=collection)


def test_a_collection_is_searched_as_it_is(
    old: PGVector, database_url: str, library: Library
) -> None:
    entry = library.entries[9]
    with searcher(database_url, library) as by_ours:
        nearest = by_ours.search(entry.question, mode="vector", k=4)
        expected = [document.id for document in old.similarity_search(entry.question, k=4)]
        assert [hit.id for hit in nearest] == expected
        hit = by_ours.search(str(entry.metadata["title"]), k=1)[0]
        assert (hit.id, hit.doc_id, hit.text) == (str(entry.id), entry.doc_id, entry.text)
        assert hit.metadata == entry.metadata
        given = {"subject": entry.metadata["subject"]}
        filtered = by_ours.search("light", mode="text", filter=given, k=COUNT)
        assert {hit.metadata["subject"] for hit in filtered} <= {entry.metadata["subject"]}
    retriever = PostgresRetriever(
        dsn=database_url,  # pyright: ignore[reportArgumentType] - pydantic turns it into a secret
        table=TABLE,
        base_url=library.gateway_url,
        collection="manuals",
    )
    assert retriever.invoke(entry.question)
    retriever.close()


def test_collections_are_told_apart(old: PGVector, database_url: str, library: Library) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO langchain_pg_collection (uuid, name) VALUES (gen_random_uuid(), 'other');"
            "INSERT INTO langchain_pg_embedding (id, collection_id, embedding, document, cmetadata)"
            " SELECT 'x', uuid, '[1, 0]', 'lava', '{}' FROM langchain_pg_collection"
            " WHERE name = 'other'"
        )
    with searcher(database_url, library, "manuals") as by_ours:
        assert len(by_ours.search("lava", mode="vector", k=100)) == COUNT
        assert "x" not in {hit.id for hit in by_ours.search("lava", mode="text", k=100)}
    with searcher(database_url, library, "other") as by_ours:
        assert [hit.id for hit in by_ours.search("lava", vector=[0.5, 0.5])] == ["x"]
    for name, message in (
        (None, "several collections. Name one with `collection`: manuals, other"),
        ("missing", "no collection 'missing'"),
    ):
        with (
            searcher(database_url, library, name) as by_ours,
            pytest.raises(TableError, match=message),
        ):
            by_ours.search("lava")
    with (
        Searcher(library.dsn, library.tables["own"], collection="manuals") as by_ours,
        pytest.raises(TableError, match="has no collections"),
    ):
        by_ours.search("lava", mode="text")


def test_the_older_layout_and_an_index_on_a_cast_are_used(
    old: PGVector, database_url: str, library: Library
) -> None:
    question = library.entries[3].question
    with searcher(database_url, library) as by_ours:
        expected = [hit.text for hit in by_ours.search(question, k=5)]
    with psycopg.connect(database_url, autocommit=True) as connection:
        # As `langchain_community` created it.
        connection.execute(
            "DROP INDEX ix_cmetadata_gin;"
            "ALTER TABLE langchain_pg_embedding DROP CONSTRAINT langchain_pg_embedding_pkey;"
            "ALTER TABLE langchain_pg_embedding RENAME id TO custom_id;"
            "ALTER TABLE langchain_pg_embedding ADD uuid uuid PRIMARY KEY"
            " DEFAULT gen_random_uuid();"
            "ALTER TABLE langchain_pg_embedding ALTER cmetadata TYPE json;"
            "CREATE INDEX by_cast ON langchain_pg_embedding"
            " USING hnsw ((embedding::vector(1024)) vector_cosine_ops)"
        )
    dsn = f"{database_url}?options=-c%20enable_seqscan%3Doff"
    with searcher(dsn, library) as by_ours:
        assert [hit.text for hit in by_ours.search(question, k=5)] == expected
    close(old)
    assert times_used(database_url, "by_cast") > 0


def test_a_collection_is_taken_over_without_embedding_it_again(
    old: PGVector, database_url: str, library: Library
) -> None:
    query = (
        "SELECT e.id, document AS text, embedding::text, e.cmetadata->>'subject' AS subject "
        "FROM langchain_pg_embedding e JOIN langchain_pg_collection c ON c.uuid = collection_id "
        "WHERE c.name = 'manuals'"
    )
    options = LoadOptions(
        layout="langchain",
        read=ReadOptions(query=query, vector_column="embedding"),
        gateway=GatewayOptions(url="http://127.0.0.1:9", dimensions=1024),  # nobody is there
        fingerprint=library.corpus.space.fingerprint,
    )
    assert load(["sql"], dsn=database_url, table="manuals", options=options).counts.failed == 0
    question = library.entries[3].question
    with searcher(database_url, library) as before:
        expected = [hit.text for hit in before.search(question, mode="vector")]
    gateway = GatewayOptions(url=library.gateway_url)
    with Searcher(database_url, "manuals", gateway=gateway) as after:
        hits = after.search(question, mode="vector")
    assert [hit.text for hit in hits] == expected
    assert {hit.doc_id for hit in hits} <= {str(entry.id) for entry in library.entries}
    assert "subject" in hits[0].metadata
