"""Our store writes the same rows as LangChain's own, and keeps what that one loses."""

import datetime
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_postgres import Column, PGEngine, PGVectorStore
from langchain_postgres.v2.hybrid_search_config import HybridSearchConfig
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from gateway_process import GatewayProcess
from langchain_qwen3_triton import Qwen3TritonEmbeddings
from qwen3_triton_ingest.langchain import BulkPGVectorStore
from qwen3_triton_ingest.langchain import store as langchain_store
from qwen3_triton_ingest.langchain.store import (
    CHECKED_RELEASE,
    PRIVATE_ENGINE,
    PRIVATE_RUN_AS_ASYNC,
    PRIVATE_RUN_AS_SYNC,
    PRIVATE_STORE,
)

DIMENSIONS = 24
EMBEDDING = DeterministicFakeEmbedding(size=DIMENSIONS)
COLUMNS = [
    Column("lang", "TEXT"),
    Column("year", "INTEGER"),
    Column("score", "DOUBLE PRECISION"),
    Column("seen", "DATE"),
    Column("at", "TIMESTAMPTZ"),
    Column("pages", "INTEGER[]"),
    Column("more", "TEXT"),
    Column("draft", "BOOLEAN"),
]
IDS = [str(UUID(int=number)) for number in range(1, 6)]
TEXTS = ["", "running shoes", "你好 \U0001f600\n\t\\N", 'it\'s "quoted" %s :name {}', "x" * 5000]
METADATAS: list[dict[str, Any]] = [
    {},
    {"lang": "en", "year": 2024, "score": math.inf, "seen": datetime.date(2024, 2, 29)},
    {"lang": None, "pages": [1, 2], "tags": ["a", {"b": None}], "draft": False},
    {"more": {"a": "ü", "b": [1, 2]}, "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)},
    {"título": "ünï", "score": 0.1},
]
PLAIN_METADATAS: list[dict[str, Any]] = [
    {},
    {"lang": "en", "n": 1},
    {"tags": ["a", {"b": None}]},
    {"título": "ünï"},
    {"score": 0.1},
]


@dataclass(frozen=True)
class Configuration:
    name: str
    table: dict[str, Any] = field(default_factory=dict[str, Any])
    store: dict[str, Any] = field(default_factory=dict[str, Any])
    metadatas: list[dict[str, Any]] = field(default_factory=lambda: PLAIN_METADATAS)
    hybrid: bool = False
    change: str = "SELECT 1"
    driver: str = "asyncpg"


CUSTOM = {
    "schema_name": "My docs",
    "content_column": "Body",
    "embedding_column": "the vector",
    "metadata_json_column": "100%s",
}
NAMES = [column.name for column in COLUMNS]
CONFIGURATIONS = [
    Configuration("defaults"),
    Configuration("psycopg", driver="psycopg"),
    Configuration(
        "custom names",
        table={**CUSTOM, "id_column": Column("key", "TEXT", nullable=False)},
        store={**CUSTOM, "id_column": "key"},
    ),
    Configuration(
        "custom names, psycopg",
        table={**CUSTOM, "id_column": Column("key", "TEXT", nullable=False)},
        store={**CUSTOM, "id_column": "key"},
        driver="psycopg",
    ),
    Configuration(
        "metadata columns",
        table={"metadata_columns": COLUMNS},
        store={"metadata_columns": NAMES},
        metadatas=METADATAS,
    ),
    Configuration(
        "metadata columns, no JSON, psycopg",
        table={"metadata_columns": COLUMNS, "store_metadata": False},
        store={"metadata_columns": NAMES},
        metadatas=METADATAS,
        driver="psycopg",
    ),
    Configuration("hybrid", hybrid=True),
    Configuration(
        "jsonb and half precision",
        change="ALTER TABLE {} ALTER COLUMN langchain_metadata TYPE jsonb, "
        "ALTER COLUMN embedding TYPE halfvec(24)",
    ),
]


class Pair:
    """Our store and LangChain's, each with its own table of the same kind."""

    def __init__(self, database_url: str, engine: PGEngine, how: Configuration) -> None:
        self.how = how
        self._url = database_url
        schema = how.table.get("schema_name", "public")
        with psycopg.connect(database_url) as connection:
            connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'.encode())
        for name in ("ours", "theirs"):
            hybrid = HybridSearchConfig(tsv_column="Words") if how.hybrid else None
            engine.init_vectorstore_table(
                name, DIMENSIONS, hybrid_search_config=hybrid, **how.table
            )
            with psycopg.connect(database_url) as connection:
                connection.execute(how.change.format(f'"{schema}".{name}').encode())
        self.ours = self._store(BulkPGVectorStore, engine, "ours")
        self.theirs = self._store(PGVectorStore, engine, "theirs")

    def _store(self, kind: type[PGVectorStore], engine: PGEngine, name: str) -> PGVectorStore:
        hybrid = HybridSearchConfig(tsv_column="Words") if self.how.hybrid else None
        return kind.create_sync(
            engine, EMBEDDING, name, hybrid_search_config=hybrid, **self.how.store
        )

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        """Return all columns as PostgreSQL writes them, in the order of the ids."""
        schema = self.how.table.get("schema_name", "public")
        with psycopg.connect(self._url) as connection:
            query = f'SELECT * FROM "{schema}".{name}'
            cursor = connection.execute(query.encode())
            assert cursor.description is not None
            names = [column.name for column in cursor.description]
            casts = ", ".join(f'"{column}"::text'.replace("%", "%") for column in names)
            rows = connection.execute(f'SELECT {casts} FROM "{schema}".{name}'.encode())
            return sorted(rows.fetchall())

    def assert_equal(self, count: int) -> None:
        ours = self.rows("ours")
        assert len(ours) == count
        assert ours == self.rows("theirs")


@pytest.fixture(name="pair", params=CONFIGURATIONS, ids=lambda each: each.name)
def _pair(request: pytest.FixtureRequest, database_url: str) -> Iterator[Pair]:
    how: Configuration = request.param
    url = database_url.replace("postgresql://", f"postgresql+{how.driver}://")
    engine = PGEngine.from_connection_string(url)
    yield Pair(database_url, engine, how)
    engine._run_as_sync(engine.close())


@pytest.fixture(name="engine")
def _engine(database_url: str) -> Iterator[PGEngine]:
    url = database_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = PGEngine.from_connection_string(url)
    engine.init_vectorstore_table("docs", DIMENSIONS)
    yield engine
    engine._run_as_sync(engine.close())


@pytest.fixture(name="store")
def _store(engine: PGEngine) -> BulkPGVectorStore:
    store = BulkPGVectorStore.create_sync(engine, EMBEDDING, "docs")
    assert isinstance(store, BulkPGVectorStore)
    return store


def stored(database_url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url) as connection:
        query = "SELECT langchain_id::text, content, langchain_metadata FROM docs ORDER BY content"
        return connection.execute(query).fetchall()


def test_the_private_names_of_langchain_exist(store: BulkPGVectorStore) -> None:
    engine = getattr(store, PRIVATE_ENGINE, None)
    missing = [
        *(name for name in (PRIVATE_STORE, PRIVATE_ENGINE) if not hasattr(store, name)),
        *(n for n in (PRIVATE_RUN_AS_ASYNC, PRIVATE_RUN_AS_SYNC) if not hasattr(engine, n)),
    ]
    assert not missing, (
        f"langchain-postgres {version('langchain-postgres')} no longer has {missing}, which "
        f"langchain/store.py uses; {CHECKED_RELEASE} had them. Find what `PGVectorStore` uses "
        "instead, update the constants and `CHECKED_RELEASE` at the top of that file, and raise "
        "the lower bound in pyproject.toml. If nothing replaces them, cap the version there."
    )


def test_a_private_name_that_moved_is_an_error_that_says_what_to_install(
    store: BulkPGVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(langchain_store, "PRIVATE_STORE", "_moved")
    with pytest.raises(RuntimeError, match=rf"_moved`.*langchain-postgres {CHECKED_RELEASE}"):
        store.add_texts(["a text"])


def test_rows_equal_those_of_the_original_column_by_column(pair: Pair):
    vectors = EMBEDDING.embed_documents(TEXTS)
    for store in (pair.ours, pair.theirs):
        given = store.add_embeddings(TEXTS, vectors, pair.how.metadatas, IDS)
        assert given == IDS
    pair.assert_equal(5)


def test_upserted_rows_equal_those_of_the_original(pair: Pair):
    vectors = EMBEDDING.embed_documents(TEXTS)
    again = [IDS[1], IDS[3], str(UUID(int=99)), IDS[1]]
    for store in (pair.ours, pair.theirs):
        store.add_embeddings(TEXTS, vectors, pair.how.metadatas, IDS)
        store.add_embeddings(
            ["new", "two", "three", "last"], vectors[:4], pair.how.metadatas[1:], again
        )
    pair.assert_equal(6)


def test_documents_and_texts_equal_those_of_the_original(pair: Pair):
    documents = [
        Document(id=each, page_content=text, metadata=metadata)
        for each, text, metadata in zip(IDS, TEXTS, pair.how.metadatas, strict=True)
    ]
    for store in (pair.ours, pair.theirs):
        assert store.add_documents(documents[:2]) == IDS[:2]
        assert store.add_texts(TEXTS[2:], pair.how.metadatas[2:], ids=IDS[2:]) == IDS[2:]
    pair.assert_equal(5)


def test_the_search_of_the_original_finds_what_ours_stored(pair: Pair):
    pair.ours.add_texts(TEXTS[1:], pair.how.metadatas[1:], ids=IDS[1:])
    pair.theirs.add_texts(TEXTS[1:], pair.how.metadatas[1:], ids=IDS[1:])
    for text in TEXTS[1:]:
        ours, theirs = (store.similarity_search(text, k=3) for store in (pair.ours, pair.theirs))
        assert ours == theirs
        assert len(ours) == 3
        assert pair.how.hybrid or ours[0].page_content == text


def test_the_metadata_of_the_caller_is_not_changed(pair: Pair):
    given = [dict(each) for each in pair.how.metadatas]
    pair.ours.add_texts(TEXTS, given, ids=IDS)
    assert given == pair.how.metadatas


async def test_asynchronous_calls_run_in_the_loop_of_the_caller(database_url: str):
    url = database_url.replace("postgresql://", "postgresql+asyncpg://")
    pool = create_async_engine(url)
    engine = PGEngine.from_engine(pool)
    await engine.ainit_vectorstore_table("docs", DIMENSIONS)
    store = await BulkPGVectorStore.create(engine, EMBEDDING, "docs")
    assert await store.aadd_texts(["a"], ids=[IDS[0]]) == [IDS[0]]
    assert await store.aadd_documents([Document(id=IDS[1], page_content="b")]) == [IDS[1]]
    vectors = await EMBEDDING.aembed_documents(["c"])
    assert await store.aadd_embeddings(["c"], vectors, ids=[IDS[2]]) == [IDS[2]]
    found = await store.asimilarity_search("b", k=1)
    assert [document.id for document in found] == [IDS[1]]
    more = await BulkPGVectorStore.afrom_texts(["d"], EMBEDDING, engine, "docs", ids=[IDS[3]])
    assert isinstance(more, BulkPGVectorStore)
    assert [row[1] for row in stored(database_url)] == ["a", "b", "c", "d"]
    await pool.dispose()


def test_stores_created_from_texts_and_documents_are_ours(engine: PGEngine, database_url: str):
    one = BulkPGVectorStore.from_texts(["a"], EMBEDDING, engine, "docs", ids=[IDS[0]])
    two = BulkPGVectorStore.from_documents([Document("b", id=IDS[1])], EMBEDDING, engine, "docs")
    assert isinstance(one, BulkPGVectorStore)
    assert isinstance(two, BulkPGVectorStore)
    assert [row[:2] for row in stored(database_url)] == [(IDS[0], "a"), (IDS[1], "b")]


def test_missing_ids_are_created(store: BulkPGVectorStore, database_url: str):
    given = store.add_texts(["a", "b", "c"], ids=[None, IDS[0], uuid4()])
    assert given[1] == IDS[0]
    assert [row[0] for row in stored(database_url)] == given
    made = store.add_texts(["d"])
    assert stored(database_url)[3][0] == made[0] == str(UUID(made[0]))


def test_generators_of_texts_are_stored(store: BulkPGVectorStore, database_url: str):
    assert len(store.add_texts(f"text {number}" for number in range(3))) == 3
    vectors = [array("f", [float(number)] * DIMENSIONS) for number in range(1, 3)]
    assert len(store.add_embeddings(iter(["x", "y"]), vectors)) == 2
    assert [row[1] for row in stored(database_url)] == ["text 0", "text 1", "text 2", "x", "y"]


class Forgetful(Embeddings):
    """Returns one vector too few."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return EMBEDDING.embed_documents(texts[1:])

    def embed_query(self, text: str) -> list[float]:
        return EMBEDDING.embed_query(text)


def test_fewer_vectors_than_texts_store_nothing(engine: PGEngine, database_url: str):
    store = BulkPGVectorStore.create_sync(engine, Forgetful(), "docs")
    with pytest.raises(ValueError, match=r"`embeddings` has 2 items for 3 texts\. Nothing"):
        store.add_texts(["a", "b", "c"])
    assert stored(database_url) == []


@pytest.mark.parametrize("other", ["metadatas", "ids"])
def test_lists_of_different_lengths_store_nothing(
    store: BulkPGVectorStore, database_url: str, other: str
):
    values: list[Any] = [{}] if other == "metadatas" else [IDS[0]]
    with pytest.raises(ValueError, match=rf"`{other}` has 1 items for 2 texts\. Nothing"):
        store.add_texts(["a", "b"], **{other: values})
    assert stored(database_url) == []


def test_one_bad_row_stores_nothing(store: BulkPGVectorStore, database_url: str):
    texts = [f"text {number}" for number in range(1500)]
    vectors = [[1.0] * DIMENSIONS for _ in texts]
    with pytest.raises(DBAPIError):
        store.add_embeddings(texts, [*vectors[:-1], [1.0] * 8])
    with pytest.raises(DBAPIError):
        store.add_embeddings(texts, vectors, ids=[*(None for _ in texts[1:]), "no uuid"])
    assert stored(database_url) == []
    assert len(store.add_embeddings(texts, vectors)) == 1500
    assert len(stored(database_url)) == 1500


def test_an_engine_that_commits_each_statement_still_stores_all_or_nothing(database_url: str):
    url = database_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = PGEngine.from_connection_string(url, isolation_level="AUTOCOMMIT")
    engine.init_vectorstore_table("docs", DIMENSIONS)
    store = BulkPGVectorStore.create_sync(engine, EMBEDDING, "docs")
    assert store.add_texts(["a"], ids=[IDS[0]]) == [IDS[0]]
    with pytest.raises(DBAPIError):
        store.add_texts(["b", "c"], ids=[IDS[1], "no uuid"])
    engine._run_as_sync(engine.close())
    assert [row[1] for row in stored(database_url)] == ["a"]


def test_no_texts_store_nothing(store: BulkPGVectorStore, database_url: str):
    assert store.add_texts([]) == []
    assert store.add_documents([]) == []
    assert store.add_embeddings([], []) == []
    assert stored(database_url) == []


def test_our_embeddings_are_stored_without_python_floats(
    database_url: str, in_process_gateway: GatewayProcess, monkeypatch: pytest.MonkeyPatch
):
    """The same bits as from `embed_documents`, which is not even called."""
    embeddings = Qwen3TritonEmbeddings(base_url=in_process_gateway.url)
    texts = ["Basalt is a volcanic rock.", "Ice is frozen water."]
    expected = embeddings.embed_documents(texts)
    called: list[Any] = []
    monkeypatch.setattr(Qwen3TritonEmbeddings, "aembed_documents", called.append)
    engine = PGEngine.from_connection_string(
        database_url.replace("postgresql://", "postgresql+asyncpg://")
    )
    engine.init_vectorstore_table("docs", 1024)
    BulkPGVectorStore.from_texts(texts, embeddings, engine, "docs", ids=IDS[:2])
    engine._run_as_sync(engine.close())
    assert called == []
    with psycopg.connect(database_url) as connection:
        query = "SELECT embedding = %s::vector FROM docs WHERE langchain_id = %s"
        for vector, each in zip(expected, IDS, strict=False):
            assert connection.execute(query, [str(vector), each]).fetchone() == (True,)


class TestLangChainsOwnSuite(VectorStoreIntegrationTests):
    """LangChain's tests for every vector store."""

    @pytest.fixture
    def vectorstore(self, database_url: str) -> Iterator[VectorStore]:
        url = database_url.replace("postgresql://", "postgresql+asyncpg://")
        engine = PGEngine.from_connection_string(url)
        # The suite's ids are "1" and "2".
        engine.init_vectorstore_table("docs", 6, id_column=Column("langchain_id", "TEXT"))
        yield BulkPGVectorStore.create_sync(engine, self.get_embeddings(), "docs")
        engine._run_as_sync(engine.close())
