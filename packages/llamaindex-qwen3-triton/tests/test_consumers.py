"""LlamaIndex's own consumers of an embedding: stores in PostgreSQL, incremental runs, observers."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import psycopg
import pytest
from fake_gateway import DIMENSIONS, FakeGateway, Fault, busy, expected_vector
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage] - documented, but not in __all__
)
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index.vector_stores.postgres import PGVectorStore
from psycopg.sql import SQL, Identifier

from llama_index.embeddings.qwen3_triton import Qwen3TritonEmbedding
from qwen3_triton_client import EmbeddingClient, InvalidRequestError

TABLE = "passages"
TEXTS = [f"text {i}" + ", again" * (i % 7) for i in range(30)]
# Questions in other words than the answers.
ANSWERS = {
    "What animal barks?": "A dog is a domesticated animal that guards the house.",
    "What do citizens pay to the state?": "Income tax is a levy on the earnings of persons.",
    "Which instrument has strings?": "A violin is a musical instrument played with a bow.",
}
MIN_COSINE = 0.99999  # float32, summed in another order where other texts share the batch


@pytest.fixture
def model(fake: FakeGateway) -> Qwen3TritonEmbedding:
    return Qwen3TritonEmbedding(base_url=fake.url, embed_batch_size=4, max_concurrency=2)


@pytest.fixture
def real_model(gateway_url: str) -> Qwen3TritonEmbedding:
    return Qwen3TritonEmbedding(base_url=gateway_url, embed_batch_size=4)


@asynccontextmanager
async def open_store(database_url: str, **options: Any) -> AsyncIterator[PGVectorStore]:
    """Open a store, and close it in the event loop that used it."""
    store = PGVectorStore(
        connection_string=database_url.replace("://", "+psycopg2://", 1),
        async_connection_string=database_url.replace("://", "+asyncpg://", 1),
        table_name=TABLE,
        initialization_fail_on_error=True,
        **{"embed_dim": DIMENSIONS, **options},
    )
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PGVectorStore]:
    async with open_store(database_url) as store:
        yield store


@pytest.fixture
async def real_store(database_url: str) -> AsyncIterator[PGVectorStore]:
    """Create a hybrid store for the vectors of the nano model."""
    options = {"embed_dim": 1024, "hybrid_search": True, "text_search_config": "english"}
    async with open_store(database_url, **options) as store:
        yield store


def documents_of(texts: Sequence[str]) -> list[Document]:
    return [Document(id_=str(i), text=text) for i, text in enumerate(texts)]


def expected_rows(texts: Sequence[str]) -> list[tuple[str, list[float]]]:
    return sorted((text, expected_vector(text)) for text in texts)


def rows(database_url: str) -> list[tuple[str, list[float]]]:
    """Read the table without the store."""
    with psycopg.connect(database_url) as connection:
        query = SQL("SELECT text, embedding::text FROM {}").format(Identifier(f"data_{TABLE}"))
        found = connection.execute(query).fetchall()
    vectors = [np.fromstring(vector[1:-1], dtype="f", sep=",").tolist() for _, vector in found]
    return sorted((text, vector) for (text, _), vector in zip(found, vectors, strict=True))


# Indices over PostgreSQL


def test_an_index_writes_each_nodes_own_vector(
    model: Qwen3TritonEmbedding, store: PGVectorStore, database_url: str
) -> None:
    context = StorageContext.from_defaults(vector_store=store)
    nodes = [TextNode(text=text) for text in TEXTS]
    VectorStoreIndex(nodes, storage_context=context, embed_model=model, insert_batch_size=7)
    assert rows(database_url) == expected_rows(TEXTS)


async def test_an_index_writes_the_same_asynchronously(
    model: Qwen3TritonEmbedding, store: PGVectorStore, database_url: str
) -> None:
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex([], storage_context=context, embed_model=model, insert_batch_size=7)
    await index.ainsert_nodes([TextNode(text=text) for text in TEXTS])
    assert rows(database_url) == expected_rows(TEXTS)


async def test_questions_find_their_answers_with_the_default_model_of_the_settings(
    real_model: Qwen3TritonEmbedding, real_store: PGVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_embed_model", real_model)
    context = StorageContext.from_defaults(vector_store=real_store)
    index = VectorStoreIndex([], storage_context=context)
    await index.ainsert_nodes([TextNode(text=text) for text in ANSWERS.values()])
    retriever = index.as_retriever(similarity_top_k=1)
    hits = [(await retriever.aretrieve(question))[0].text for question in ANSWERS]
    assert hits == list(ANSWERS.values())


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_hybrid_search_finds_by_meaning_and_by_word(
    real_model: Qwen3TritonEmbedding, real_store: PGVectorStore, asynchronous: bool
) -> None:
    index = VectorStoreIndex.from_vector_store(real_store, embed_model=real_model)
    named = "Error XK-4711 is a paper jam."
    await index.ainsert_nodes([TextNode(text=text) for text in [*ANSWERS.values(), named]])
    retriever = index.as_retriever(
        vector_store_query_mode=VectorStoreQueryMode.HYBRID, similarity_top_k=1, sparse_top_k=1
    )
    question = "Which barking beasts watch over their home, not XK-4711?"
    found = await retriever.aretrieve(question) if asynchronous else retriever.retrieve(question)
    assert {hit.text for hit in found} == {ANSWERS["What animal barks?"], named}


# Incremental runs

Run = Callable[[list[Document]], list[str]]


@pytest.fixture(params=["sync", "async"])
def run_of(
    request: pytest.FixtureRequest, model: Qwen3TritonEmbedding, database_url: str
) -> Callable[[DocstoreStrategy], Run]:
    """Return a function that updates the table and returns the texts that it embedded."""

    def make(strategy: DocstoreStrategy) -> Run:
        docstore = SimpleDocumentStore()
        # A node without a source would not be found again. The default looks for sentences with
        # a file that may not be at hand.
        splitter = SentenceSplitter(tokenizer=str.split, chunking_tokenizer_fn=str.splitlines)

        async def run(documents: list[Document]) -> list[str]:
            async with open_store(database_url) as store:
                pipeline = IngestionPipeline(
                    transformations=[splitter, model],
                    docstore=docstore,
                    vector_store=store,
                    docstore_strategy=strategy,
                    disable_cache=True,
                )
                if request.param == "sync":
                    nodes = await asyncio.to_thread(pipeline.run, documents=documents)
                else:
                    nodes = await pipeline.arun(documents=documents)
            return sorted(node.get_content(MetadataMode.EMBED) for node in nodes)

        return lambda documents: asyncio.run(run(documents))

    return make


@pytest.mark.parametrize("strategy", DocstoreStrategy)
def test_a_second_run_over_the_same_documents_embeds_nothing(
    run_of: Callable[[DocstoreStrategy], Run],
    fake: FakeGateway,
    database_url: str,
    strategy: DocstoreStrategy,
) -> None:
    run = run_of(strategy)
    assert run(documents_of(TEXTS)) == sorted(TEXTS)
    count = len(fake.requests)
    assert run(documents_of(TEXTS)) == []
    assert len(fake.requests) == count
    assert rows(database_url) == expected_rows(TEXTS)


def test_an_upsert_embeds_changed_documents_and_replaces_their_rows(
    run_of: Callable[[DocstoreStrategy], Run], fake: FakeGateway, database_url: str
) -> None:
    run = run_of(DocstoreStrategy.UPSERTS)
    run(documents_of(TEXTS))
    fake.requests.clear()
    changed = ["text 0, changed", *TEXTS[1:5]]
    assert run(documents_of(changed)) == changed[:1]
    assert [request.texts for request in fake.requests] == [changed[:1]]
    assert rows(database_url) == expected_rows([*changed, *TEXTS[5:]])


def test_an_upsert_with_deletes_removes_the_rows_of_deleted_documents(
    run_of: Callable[[DocstoreStrategy], Run], fake: FakeGateway, database_url: str
) -> None:
    run = run_of(DocstoreStrategy.UPSERTS_AND_DELETE)
    run(documents_of(TEXTS))
    count = len(fake.requests)
    assert run(documents_of(TEXTS[:12])) == []
    assert len(fake.requests) == count
    assert rows(database_url) == expected_rows(TEXTS[:12])


def test_the_next_run_completes_a_failed_one(
    model: Qwen3TritonEmbedding, fake: FakeGateway, store: PGVectorStore, database_url: str
) -> None:
    pipeline = IngestionPipeline(
        transformations=[model], docstore=SimpleDocumentStore(), vector_store=store
    )
    fake.rule = lambda request: Fault(status=400) if TEXTS[9] in request.texts else None
    with pytest.raises(InvalidRequestError, match="answered 400"):
        pipeline.run(documents=documents_of(TEXTS))
    fake.rule = lambda _: None
    pipeline.run(documents=documents_of(TEXTS))
    assert rows(database_url) == expected_rows(TEXTS)


# Processes and copies


def assert_same_vectors(nodes: Sequence[BaseNode], gateway_url: str) -> None:
    texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
    with EmbeddingClient(gateway_url, batch_size=5) as client:
        expected = client.embed(texts).to_numpy()
    found = np.array([node.get_embedding() for node in nodes], dtype=np.float32)
    assert (found * expected).sum(axis=1).min() >= MIN_COSINE


def test_a_pipeline_in_two_processes_fills_a_table_from_a_real_gateway(
    real_model: Qwen3TritonEmbedding,
    gateway_url: str,
    real_store: PGVectorStore,
    database_url: str,
) -> None:
    pipeline = IngestionPipeline(
        transformations=[real_model], vector_store=real_store, disable_cache=True
    )
    nodes = pipeline.run(documents=documents_of(TEXTS), num_workers=2)
    assert [text for text, _ in rows(database_url)] == sorted(TEXTS)
    assert_same_vectors(nodes, gateway_url)


@pytest.mark.parametrize("how", ["dump", "pickle"])
def test_a_copy_returns_the_same_vectors(gateway_url: str, how: str) -> None:
    model = Qwen3TritonEmbedding(base_url=gateway_url, dimensions=256, instruction="Find twins")
    vector = model.get_query_embedding("x")
    if how == "dump":
        again = Qwen3TritonEmbedding.from_dict(model.to_dict())
    else:
        again = pickle.loads(pickle.dumps(model))
    assert again.get_query_embedding("x") == pytest.approx(vector, abs=1e-6)


# Observers


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    handler = SimpleSpanHandler()
    dispatcher = get_dispatcher()
    dispatcher.add_span_handler(handler)
    yield handler
    dispatcher.span_handlers.remove(handler)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_pipeline_reports_every_batch_once(
    model: Qwen3TritonEmbedding, events: list[BaseEvent], asynchronous: bool
) -> None:
    pipeline = IngestionPipeline(transformations=[model], disable_cache=True)
    if asynchronous:
        await pipeline.arun(documents=documents_of(TEXTS))
    else:
        pipeline.run(documents=documents_of(TEXTS))
    ends = [event for event in events if isinstance(event, EmbeddingEndEvent)]
    assert len(events) == 2 * len(ends) == 16
    assert sorted(text for end in ends for text in end.chunks) == sorted(TEXTS)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_retrieval_reports_the_question_with_its_vector(
    model: Qwen3TritonEmbedding, events: list[BaseEvent], asynchronous: bool
) -> None:
    index = VectorStoreIndex([TextNode(text="x")], embed_model=model)
    retriever = index.as_retriever()
    events.clear()
    if asynchronous:
        await retriever.aretrieve("why?")
    else:
        retriever.retrieve("why?")
    [start, end] = events
    assert isinstance(start, EmbeddingStartEvent)
    assert isinstance(end, EmbeddingEndEvent)
    assert end.chunks == ["why?"]
    assert end.embeddings == [expected_vector("why?", input_type="query")]


async def test_a_retried_batch_is_reported_once(
    model: Qwen3TritonEmbedding, fake: FakeGateway, events: list[BaseEvent]
) -> None:
    fake.then(busy(), busy(429))
    await model.aget_text_embedding_batch(TEXTS[:4])
    assert [type(event) for event in events] == [EmbeddingStartEvent, EmbeddingEndEvent]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_after_an_error_every_callback_has_ended(fake: FakeGateway, asynchronous: bool) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    model = Qwen3TritonEmbedding(
        base_url=fake.url, embed_batch_size=4, callback_manager=CallbackManager([handler])
    )
    fake.rule = lambda request: Fault(status=400) if TEXTS[9] in request.texts else None

    def call() -> object:
        if asynchronous:
            return asyncio.run(model.aget_text_embedding_batch(TEXTS))
        return model.get_text_embedding_batch(TEXTS)

    with pytest.raises(InvalidRequestError, match="answered 400"):
        call()
    pairs = handler.get_event_pairs(CBEventType.EMBEDDING)
    assert pairs
    assert {len(pair) for pair in pairs} == {2}


async def test_every_call_is_a_span_that_ends_or_is_dropped(
    model: Qwen3TritonEmbedding, fake: FakeGateway, spans: SimpleSpanHandler
) -> None:
    model.get_text_embedding_batch(TEXTS)
    await model.aget_query_embedding("x")
    fake.rule = lambda _: Fault(status=400)
    with pytest.raises(InvalidRequestError, match="answered 400"):
        await model.aget_text_embedding_batch(TEXTS)
    names = ("get_text_embedding_batch", "aget_query_embedding", "aget_text_embedding_batch")
    assert spans.open_spans == {}
    done = [span.id_.split("-")[0] for span in spans.completed_spans]
    assert done == [f"Qwen3TritonEmbedding.{name}" for name in names[:2]]
    assert [span.id_.split("-")[0] for span in spans.dropped_spans] == [
        f"Qwen3TritonEmbedding.{names[2]}"
    ]
