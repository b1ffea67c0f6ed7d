"""The gateway is killed and restarted while a framework fills PostgreSQL through it.

Each test fills two tables at once, one through the framework's synchronous API and one through its
asynchronous API, and kills the gateway in the middle of both.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import psycopg
import pytest
from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document as LangChainDocument
from langchain_core.indexing import aindex, index
from langchain_postgres import Column, PGEngine, PGVectorStore
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.postgres import PGVectorStore as LlamaIndexStore
from psycopg.sql import SQL, Identifier
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from embed_call import cosines, embed
from fault_proxy import FaultProxy
from gateway_process import MortalGateway, triton_flags
from langchain_qwen3_triton import Qwen3TritonEmbeddings
from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding
from polling import wait_for
from qwen3_triton_tools.local_triton import LocalTriton
from tolerances import FLOAT32_COSINE

DIMENSIONS = 1024
TEXTS = [f"{'some words more ' * (7 * number % 19)}and number {number}" for number in range(200)]
PART = 50
BATCH = 5
LATER = frozenset(TEXTS[PART:])
# The defaults, except for few requests at a time, so that all end soon after the restart, and for
# more retries: with the default, one batch in 3,000 does not outlast a restart of 15 seconds.
CLIENT: dict[str, Any] = {"max_concurrency": 2, "max_retries": 30}
SYNC, ASYNC = "filled_sync", "filled_async"
# With a modern hash, `index()` creates ids that are longer than the default column's UUID.
TEXT_ID = Column("langchain_id", "TEXT", nullable=False)


class HoldingGateway(MortalGateway):
    """One behind a proxy, which holds the requests for later texts until the gateway is killed."""

    def __init__(self, *flags: str) -> None:
        super().__init__(*flags)
        self.proxy = FaultProxy(f"http://127.0.0.1:{self.port}")
        self.proxy.hold(lambda request: not LATER.isdisjoint(request.texts))

    @property
    def url(self) -> str:
        return self.proxy.url

    def kill(self) -> None:
        super().kill()
        self.proxy.release()

    def stop(self) -> None:
        self.proxy.close()
        super().stop()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWEN3_TRITON_API_KEY", raising=False)


@pytest.fixture(name="mortal")
def _mortal(triton: LocalTriton) -> Generator[HoldingGateway]:
    gateway = HoldingGateway(*triton_flags(triton.http_url))
    try:
        gateway.wait_ready()
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture(name="expected", scope="module")
def _expected(gateway_url: str) -> dict[str, np.ndarray]:
    """The vectors of another gateway in front of the same Triton, which is never killed."""
    return dict(zip(TEXTS, embed(gateway_url, TEXTS), strict=True))


def rows_of(database_url: str, table: str) -> int:
    with psycopg.connect(database_url) as connection:
        query = SQL("SELECT count(*) FROM {}").format(Identifier(table))
        return connection.execute(query).fetchone()[0]  # pyright: ignore[reportOptionalSubscript]


def assert_each_text_once(
    database_url: str, table: str, column: str, expected: dict[str, np.ndarray]
) -> None:
    with psycopg.connect(database_url) as connection:
        names = Identifier(column), Identifier(table)
        query = SQL("SELECT {}, embedding::text FROM {} ORDER BY 1").format(*names)
        texts, vectors = zip(*connection.execute(query).fetchall(), strict=True)
    assert sorted(texts) == sorted(TEXTS)
    stored = np.array([[float(value) for value in row[1:-1].split(",")] for row in vectors])
    assert cosines(stored, np.stack([expected[text] for text in texts])).min() >= FLOAT32_COSINE


def run_through_a_restart(
    mortal: HoldingGateway,
    fill: Callable[[], object],
    afill: Callable[[], Awaitable[object]],
    in_the_middle: Callable[[], bool],
) -> None:
    """Run both, kill the gateway in the middle of both, restart it, and wait for both to end."""

    async def run_afill() -> None:
        await afill()

    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(fill), pool.submit(asyncio.run, run_afill())]
        wait_for(
            lambda: in_the_middle() or any(p.done() for p in pending), "both are in the middle"
        )
        still_running = [not future.done() for future in pending]
        mortal.kill()
        mortal.restart()
        for future in pending:
            future.result()
    assert still_running == [True, True]


# LangChain


@pytest.fixture(name="engine")
def _engine(database_url: str) -> Generator[PGEngine]:
    """An engine whose event loop ends with the test, unlike the default's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    engine = PGEngine.from_engine(create_async_engine(asyncpg_url(database_url)), loop)
    try:
        for table in (SYNC, ASYNC):
            engine.init_vectorstore_table(table, DIMENSIONS, id_column=TEXT_ID)
        yield engine
    finally:
        asyncio.run(engine.close())
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@asynccontextmanager
async def running_engine(database_url: str) -> AsyncGenerator[PGEngine]:
    """Yield an engine for the running event loop."""
    engine = PGEngine.from_engine(create_async_engine(asyncpg_url(database_url)))
    try:
        yield engine
    finally:
        await engine.close()


def asyncpg_url(database_url: str) -> str:
    return database_url.replace("postgresql://", "postgresql+asyncpg://", 1)


def parts_of(texts: Sequence[str]) -> list[list[LangChainDocument]]:
    documents = [LangChainDocument(page_content=text, metadata={"source": text}) for text in texts]
    return [documents[start : start + PART] for start in range(0, len(documents), PART)]


def test_documents_that_langchain_adds_survive_a_restart(
    mortal: HoldingGateway, engine: PGEngine, database_url: str, expected: dict[str, np.ndarray]
) -> None:
    def embeddings() -> Qwen3TritonEmbeddings:
        return Qwen3TritonEmbeddings(base_url=mortal.url, batch_size=BATCH, **CLIENT)

    def fill() -> None:
        store = PGVectorStore.create_sync(engine, embeddings(), SYNC)
        for part in parts_of(TEXTS):
            store.add_documents(part)

    async def afill() -> None:
        async with running_engine(database_url) as own_engine:
            store = await PGVectorStore.create(own_engine, embeddings(), ASYNC)
            for part in parts_of(TEXTS):
                await store.aadd_documents(part)

    def in_the_middle() -> bool:
        return all(rows_of(database_url, table) >= PART for table in (SYNC, ASYNC))

    run_through_a_restart(mortal, fill, afill, in_the_middle)
    assert_each_text_once(database_url, SYNC, "content", expected)
    assert_each_text_once(database_url, ASYNC, "content", expected)


def test_documents_that_langchain_indexes_survive_a_restart(
    mortal: HoldingGateway, engine: PGEngine, database_url: str, expected: dict[str, np.ndarray]
) -> None:
    embeddings = Qwen3TritonEmbeddings(base_url=mortal.url, batch_size=BATCH, **CLIENT)
    documents = [document for part in parts_of(TEXTS) for document in part]
    options: dict[str, Any] = {
        "cleanup": "incremental",
        "source_id_key": "source",
        "key_encoder": "sha256",
    }
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    records = SQLRecordManager("sync", db_url=url)
    records.create_schema()

    def fill() -> None:
        store = PGVectorStore.create_sync(engine, embeddings, SYNC)
        assert index(documents, records, store, batch_size=PART, **options)["num_added"] == len(
            TEXTS
        )
        assert index(documents, records, store, batch_size=PART, **options)["num_skipped"] == len(
            TEXTS
        )
        records.engine.dispose()

    async def afill() -> None:
        arecords = SQLRecordManager("async", db_url=url, async_mode=True)
        async with running_engine(database_url) as own_engine:
            store = await PGVectorStore.create(own_engine, embeddings, ASYNC)
            done = await aindex(documents, arecords, store, batch_size=PART, **options)
        assert done["num_added"] == len(TEXTS)
        assert isinstance(arecords.engine, AsyncEngine)
        await arecords.engine.dispose()

    def in_the_middle() -> bool:
        return all(rows_of(database_url, table) >= PART for table in (SYNC, ASYNC))

    run_through_a_restart(mortal, fill, afill, in_the_middle)
    assert_each_text_once(database_url, SYNC, "content", expected)
    assert_each_text_once(database_url, ASYNC, "content", expected)


# LlamaIndex


@pytest.fixture(name="stores")
def _stores(database_url: str) -> Generator[dict[str, LlamaIndexStore]]:
    stores = {
        table: LlamaIndexStore(
            connection_string=database_url.replace("://", "+psycopg2://", 1),
            async_connection_string=database_url.replace("://", "+asyncpg://", 1),
            table_name=table,
            embed_dim=DIMENSIONS,
            initialization_fail_on_error=True,
        )
        for table in (SYNC, ASYNC)
    }
    for store in stores.values():
        store.get_nodes([])  # creates the table; two at once would conflict
    yield stores
    asyncio.run(stores[SYNC].close())


@asynccontextmanager
async def closed_in_its_loop(store: LlamaIndexStore) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await store.close()


def make_documents() -> list[Document]:
    return [Document(id_=str(number), text=text) for number, text in enumerate(TEXTS)]


def test_a_pipeline_of_llamaindex_survives_a_restart(
    mortal: HoldingGateway,
    stores: dict[str, LlamaIndexStore],
    database_url: str,
    expected: dict[str, np.ndarray],
) -> None:
    pipelines = {
        table: IngestionPipeline(
            transformations=[
                Qwen3TritonEmbedding(base_url=mortal.url, embed_batch_size=BATCH, **CLIENT)
            ],
            vector_store=store,
            docstore=SimpleDocumentStore(),
        )
        for table, store in stores.items()
    }

    # All texts are embedded at once, in the order of their lengths.
    mortal.proxy.hold(lambda request: request not in mortal.proxy.requests[: 2 * PART // BATCH])

    async def arun() -> None:
        async with closed_in_its_loop(stores[ASYNC]):
            await pipelines[ASYNC].arun(documents=make_documents())

    run_through_a_restart(
        mortal,
        lambda: pipelines[SYNC].run(documents=make_documents()),
        arun,
        lambda: mortal.texts >= 2 * PART,
    )
    for table, pipeline in pipelines.items():
        assert_each_text_once(database_url, f"data_{table}", "text", expected)
        assert len(pipeline.docstore.docs) == len(TEXTS)  # pyright: ignore[reportOptionalMemberAccess]


def test_an_index_of_llamaindex_survives_a_restart(
    mortal: HoldingGateway,
    stores: dict[str, LlamaIndexStore],
    database_url: str,
    expected: dict[str, np.ndarray],
) -> None:
    model = Qwen3TritonEmbedding(base_url=mortal.url, embed_batch_size=BATCH, **CLIENT)

    def empty_index(table: str) -> VectorStoreIndex:
        context = StorageContext.from_defaults(vector_store=stores[table])
        return VectorStoreIndex(
            [], storage_context=context, embed_model=model, insert_batch_size=PART
        )

    async def afill() -> None:
        async with closed_in_its_loop(stores[ASYNC]):
            await empty_index(ASYNC).ainsert_nodes(make_documents())

    def in_the_middle() -> bool:
        return all(rows_of(database_url, f"data_{table}") >= PART for table in (SYNC, ASYNC))

    run_through_a_restart(
        mortal,
        lambda: empty_index(SYNC).insert_nodes(make_documents()),
        afill,
        in_the_middle,
    )
    for table in stores:
        assert_each_text_once(database_url, f"data_{table}", "text", expected)
