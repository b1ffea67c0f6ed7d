"""LangChain's own consumers of embeddings: caches, stores, indexing, splitters and chains."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import psycopg
import pytest
from fake_gateway import DIMENSIONS, FakeGateway, expected_vector, expected_vectors
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document
from langchain_core.indexing import aindex, index
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_postgres import Column, PGEngine, PGVectorStore
from psycopg.sql import SQL, Identifier
from sqlalchemy.ext.asyncio import create_async_engine

from langchain_qwen3_triton import Qwen3TritonEmbeddings

TABLE = "passages"
TEXTS = [f"text {i} " * (i % 7 + 1) for i in range(30)]
# Questions in other words than the answers.
ANSWERS = {
    "What animal barks?": "A dog is a domesticated animal that guards the house.",
    "What do citizens pay to the state?": "Income tax is a levy on the earnings of persons.",
    "Which instrument has strings?": "A violin is a musical instrument played with a bow.",
}


@pytest.fixture
def embeddings(fake: FakeGateway) -> Qwen3TritonEmbeddings:
    return Qwen3TritonEmbeddings(base_url=fake.url, batch_size=4, max_concurrency=2)


def documents_of(texts: list[str]) -> list[Document]:
    return [Document(text, metadata={"source": f"file {i}"}) for i, text in enumerate(texts)]


# The cache


def cached(embeddings: Qwen3TritonEmbeddings, store: InMemoryByteStore) -> CacheBackedEmbeddings:
    return CacheBackedEmbeddings.from_bytes_store(
        embeddings, store, namespace=embeddings.fingerprint(), key_encoder="blake2b"
    )


def test_a_cache_stores_documents_and_embeds_only_new_ones(
    embeddings: Qwen3TritonEmbeddings, fake: FakeGateway
) -> None:
    cache = cached(embeddings, InMemoryByteStore())
    assert cache.embed_documents(TEXTS[:20]) == expected_vectors(TEXTS[:20])
    fake.requests.clear()
    assert cache.embed_documents(TEXTS) == expected_vectors(TEXTS)
    assert sorted(text for request in fake.requests for text in request.texts) == sorted(TEXTS[20:])


async def test_an_asynchronous_cache_stores_documents(
    embeddings: Qwen3TritonEmbeddings, fake: FakeGateway
) -> None:
    cache = cached(embeddings, InMemoryByteStore())
    assert await cache.aembed_documents(TEXTS) == expected_vectors(TEXTS)
    count = len(fake.requests)
    assert await cache.aembed_documents(TEXTS) == expected_vectors(TEXTS)
    assert len(fake.requests) == count


def test_a_query_with_the_text_of_a_cached_document_is_embedded_as_a_query(
    embeddings: Qwen3TritonEmbeddings,
) -> None:
    cache = cached(embeddings, InMemoryByteStore())
    cache.embed_documents(["x"])
    assert cache.embed_query("x") == expected_vector("x", input_type="query")
    assert asyncio.run(cache.aembed_query("x")) == expected_vector("x", input_type="query")
    assert cache.embed_documents(["x"]) == [expected_vector("x")]


def test_each_embedding_space_has_its_own_entries_in_a_store(
    fake: FakeGateway,
) -> None:
    store = InMemoryByteStore()
    cached(Qwen3TritonEmbeddings(base_url=fake.url), store).embed_documents(["x"])
    fake.fingerprint = "fake-16"
    smaller = Qwen3TritonEmbeddings(base_url=fake.url, dimensions=16)
    assert cached(smaller, store).embed_documents(["x"]) == [expected_vector("x", dimensions=16)]
    assert len(list(store.yield_keys())) == 2


# PGVectorStore on a real PostgreSQL

TEXT_ID = Column("langchain_id", "TEXT", nullable=False)


def asyncpg_url(database_url: str) -> str:
    return database_url.replace("postgresql://", "postgresql+asyncpg://", 1)


@pytest.fixture
def engine(database_url: str) -> Iterator[PGEngine]:
    engine = PGEngine.from_connection_string(asyncpg_url(database_url))
    engine.init_vectorstore_table(TABLE, DIMENSIONS, id_column=TEXT_ID)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture
async def async_engine(database_url: str) -> AsyncIterator[PGEngine]:
    """Create an engine for the running event loop; it has no synchronous methods."""
    engine = PGEngine.from_engine(create_async_engine(asyncpg_url(database_url)))
    await engine.ainit_vectorstore_table(TABLE, DIMENSIONS, id_column=TEXT_ID)
    yield engine
    await engine.close()


def stored(database_url: str) -> dict[str, list[float]]:
    """Read the table without the store, and check that each text occurs once."""
    with psycopg.connect(database_url) as connection:
        query = SQL("SELECT content, embedding::text FROM {}").format(Identifier(TABLE))
        rows = connection.execute(query).fetchall()
    vectors = [np.fromstring(vector[1:-1], dtype="f", sep=",").tolist() for _, vector in rows]
    found = {text: vector for (text, _), vector in zip(rows, vectors, strict=True)}
    assert len(found) == len(rows)
    return found


def test_a_table_holds_each_documents_own_vector(
    embeddings: Qwen3TritonEmbeddings, engine: PGEngine, database_url: str
) -> None:
    store = PGVectorStore.create_sync(engine, embeddings, TABLE)
    store.add_documents(documents_of(TEXTS))
    assert stored(database_url) == {text: expected_vector(text) for text in TEXTS}


async def test_a_table_filled_asynchronously_holds_the_same(
    embeddings: Qwen3TritonEmbeddings, async_engine: PGEngine, database_url: str
) -> None:
    store = await PGVectorStore.create(async_engine, embeddings, TABLE)
    await store.aadd_documents(documents_of(TEXTS))
    assert stored(database_url) == {text: expected_vector(text) for text in TEXTS}


def test_a_table_is_searched_by_the_vector_of_a_query(
    embeddings: Qwen3TritonEmbeddings, engine: PGEngine
) -> None:
    store = PGVectorStore.create_sync(engine, embeddings, TABLE)
    vector = expected_vector("x", input_type="query")
    store.add_embeddings(["the answer", "x"], [vector, expected_vector("x")])
    [(hit, distance)] = store.similarity_search_with_score("x", k=1)
    assert (hit.page_content, distance) == ("the answer", pytest.approx(0, abs=1e-6))


async def test_questions_find_their_answers_in_a_table(gateway_url: str, database_url: str) -> None:
    engine = PGEngine.from_engine(create_async_engine(asyncpg_url(database_url)))
    await engine.ainit_vectorstore_table(TABLE, 1024)
    embeddings = Qwen3TritonEmbeddings(base_url=gateway_url)
    store = await PGVectorStore.create(engine, embeddings, TABLE)
    await store.aadd_texts(list(ANSWERS.values()))
    hits = [await store.asimilarity_search(question, k=1) for question in ANSWERS]
    assert [hit.page_content for [hit] in hits] == list(ANSWERS.values())
    await engine.close()


# index() with a record manager

Cleanup = Literal["incremental", "full", "scoped_full"]
RunIndex = Callable[[list[Document], Cleanup], dict[str, int]]
NOTHING = {"num_added": 0, "num_updated": 0, "num_skipped": 0, "num_deleted": 0}


@pytest.fixture(params=["sync", "async"])
def run_index(
    request: pytest.FixtureRequest,
    embeddings: Qwen3TritonEmbeddings,
    engine: PGEngine,
    database_url: str,
) -> Iterator[RunIndex]:
    """Update the table synchronously or asynchronously, with a record manager."""
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    store = PGVectorStore.create_sync(engine, embeddings, TABLE)
    options: dict[str, Any] = {"source_id_key": "source", "key_encoder": "blake2b"}
    records = SQLRecordManager(TABLE, db_url=url)
    records.create_schema()

    def run(documents: list[Document], cleanup: Cleanup) -> dict[str, int]:
        return dict(index(documents, records, store, cleanup=cleanup, batch_size=7, **options))

    async def arun(documents: list[Document], cleanup: Cleanup) -> dict[str, int]:
        arecords = SQLRecordManager(TABLE, db_url=url, async_mode=True)
        done = await aindex(documents, arecords, store, cleanup=cleanup, batch_size=7, **options)
        await arecords.engine.dispose()
        return dict(done)

    is_sync = request.param == "sync"
    yield run if is_sync else lambda *arguments: asyncio.run(arun(*arguments))
    records.engine.dispose()


@pytest.mark.parametrize("cleanup", ["incremental", "full", "scoped_full"])
def test_indexing_unchanged_documents_again_embeds_nothing(
    run_index: RunIndex, fake: FakeGateway, cleanup: Cleanup, database_url: str
) -> None:
    assert run_index(documents_of(TEXTS), cleanup) == NOTHING | {"num_added": 30}
    count = len(fake.requests)
    assert run_index(documents_of(TEXTS), cleanup) == NOTHING | {"num_skipped": 30}
    assert len(fake.requests) == count
    assert stored(database_url) == {text: expected_vector(text) for text in TEXTS}


def test_incremental_indexing_embeds_and_replaces_changed_documents(
    run_index: RunIndex, fake: FakeGateway, database_url: str
) -> None:
    run_index(documents_of(TEXTS), "incremental")
    fake.requests.clear()
    changed = ["text 0, changed", *TEXTS[1:5]]
    done = run_index(documents_of(changed), "incremental")
    assert done == NOTHING | {"num_added": 1, "num_skipped": 4, "num_deleted": 1}
    assert [request.texts for request in fake.requests] == [changed[:1]]
    expected = {text: expected_vector(text) for text in [*changed, *TEXTS[5:]]}
    assert stored(database_url) == expected


def test_full_indexing_removes_deleted_documents(
    run_index: RunIndex, fake: FakeGateway, database_url: str
) -> None:
    run_index(documents_of(TEXTS), "full")
    count = len(fake.requests)
    done = run_index(documents_of(TEXTS[:12]), "full")
    assert done == NOTHING | {"num_skipped": 12, "num_deleted": 18}
    assert len(fake.requests) == count
    assert stored(database_url) == {text: expected_vector(text) for text in TEXTS[:12]}


# Splitting where the meaning changes

DOGS = "Dogs bark at strangers. A puppy learns to obey its owner. Hounds hunt by smell."
TAXES = "Income tax is paid every year. Firms pay a tax on profit. The treasury collects duties."
SENTENCE_END = re.compile(r"(?<=[.?!])\s+")


def split_by_meaning(text: str, embeddings: Qwen3TritonEmbeddings) -> list[str]:
    """Split like `SemanticChunker` of langchain-experimental, at the widest gap."""
    sentences = SENTENCE_END.split(text)
    combined = [" ".join(sentences[max(0, i - 1) : i + 2]) for i in range(len(sentences))]
    vectors = np.array(embeddings.embed_documents(combined))
    distances = [1 - left @ right for left, right in pairwise(vectors)]
    cut = int(np.argmax(distances)) + 1
    return [" ".join(sentences[:cut]), " ".join(sentences[cut:])]


def test_a_text_is_split_where_its_topic_changes(gateway_url: str) -> None:
    embeddings = Qwen3TritonEmbeddings(base_url=gateway_url, batch_size=2)
    assert split_by_meaning(f"{DOGS} {TAXES}", embeddings) == [DOGS, TAXES]


# A retriever in a chain


def chain_of(embeddings: Qwen3TritonEmbeddings) -> Runnable[str, str]:
    """Build a chain whose answer is the passage that it found."""
    store = InMemoryVectorStore.from_texts(list(ANSWERS.values()), embeddings)
    prompt = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{question}")])
    return (
        {
            "context": store.as_retriever(search_kwargs={"k": 1})
            | RunnableLambda(lambda hits: hits[0].page_content),
            "question": RunnablePassthrough(),
        }
        | prompt
        | RunnableLambda(lambda messages: str(messages.to_messages()[0].content))
    )


async def test_a_chain_answers_however_it_is_called(gateway_url: str) -> None:
    chain = chain_of(Qwen3TritonEmbeddings(base_url=gateway_url))
    questions, answers = list(ANSWERS), list(ANSWERS.values())
    assert [chain.invoke(question) for question in questions] == answers
    assert [await chain.ainvoke(question) for question in questions] == answers
    assert chain.batch(questions) == answers
    assert await chain.abatch(questions) == answers
    assert ["".join(chain.stream(question)) for question in questions] == answers


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_batch_of_questions_stays_within_the_concurrency_limit(
    embeddings: Qwen3TritonEmbeddings, fake: FakeGateway, asynchronous: bool
) -> None:
    chain = chain_of(embeddings)
    fake.answer_in_reverse(2)
    questions = [f"question {i}" for i in range(20)]
    answers = asyncio.run(chain.abatch(questions)) if asynchronous else chain.batch(questions)
    assert len(answers) == 20
    assert fake.most_in_flight == 2
    asked = [request for request in fake.requests if request.body["input_type"] == "query"]
    assert sorted(text for request in asked for text in request.texts) == sorted(questions)
