"""LangChain's and LlamaIndex's own stores open a loaded table, and find the nearest texts."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from langchain_postgres import PGEngine, PGVectorStore
from llama_index.core.vector_stores import VectorStoreQuery
from llama_index.vector_stores.postgres import PGVectorStore as LlamaIndexStore

import demo
from gateway_process import GatewayProcess, running_gateway
from ingest_corpus import SENTENCES
from ingest_loading import TABLE, Loading, quick_loading, write_jsonl
from langchain_qwen3_triton import Qwen3TritonEmbeddings
from qwen3_triton_client import EmbeddingClient
from qwen3_triton_ingest.config import IndexOptions
from qwen3_triton_ingest.layouts import LAYOUTS, LayoutName

K, QUERIES, RECALL = 10, 40, 0.95
MARKDOWN = Path(demo.__path__[0]).parents[1] / "docs"
CACHE_BYTES = 64_000_000


@pytest.fixture(name="caching_gateway", scope="module")
def _caching_gateway() -> Generator[GatewayProcess]:
    """Embeds the texts once for all layouts."""
    with running_gateway("--cache-bytes", str(CACHE_BYTES)) as gateway:
        yield gateway


@pytest.fixture(name="loading")
def _loading(database_url: str, caching_gateway: GatewayProcess) -> Loading:
    return quick_loading(database_url, caching_gateway)


@pytest.fixture(name="sources")
def _sources(tmp_path: Path) -> list[Path]:
    """Real text: short articles, our own guides, Python's manual."""
    topics = sorted(pydoc_data.topics.topics.items())[:12]
    records = [{"id": name, "text": text, "kind": "manual"} for name, text in topics]
    articles = Path(demo.__path__[0]) / "documents.jsonl"
    guides = [MARKDOWN / name for name in ("http.md", "ingest.md", "models.md")]
    return [articles, *guides, write_jsonl(tmp_path / "manual.jsonl", records)]


@pytest.fixture(name="questions")
def _questions(caching_gateway: GatewayProcess) -> list[list[float]]:
    with EmbeddingClient(caching_gateway.url) as client:
        texts = SENTENCES[:: len(SENTENCES) // QUERIES][:QUERIES]
        return [list(vector) for vector in client.embed(texts, input_type="query").vectors]


def load_all(loading: Loading, sources: list[Path], layout: LayoutName) -> None:
    split = replace(loading.options.split, chunk_tokens=64)
    report = loading(*sources, layout=layout, split=split, index=IndexOptions(text="none"))
    assert report.counts.failed == 0
    assert report.counts.chunks_written > 500
    assert report.index == "built"


def exact(loading: Loading, layout: LayoutName, questions: list[list[float]]) -> list[set[str]]:
    """Return the texts nearest to each question, comparing every row."""
    known = LAYOUTS[layout]
    query = (
        f"SELECT {known.content} FROM {known.table_prefix}{TABLE} "
        "ORDER BY embedding <=> %s::vector LIMIT %s"
    )
    with psycopg.connect(loading.dsn) as connection:
        connection.execute("SET enable_indexscan = off")
        return [
            {row[0] for row in connection.execute(query.encode(), (str(question), K))}
            for question in questions
        ]


def recall(found: list[set[str]], wanted: list[set[str]]) -> float:
    return sum(len(f & w) / len(w) for f, w in zip(found, wanted, strict=True)) / len(wanted)


def test_langchain_opens_the_table(
    loading: Loading, sources: list[Path], questions: list[list[float]]
) -> None:
    load_all(loading, sources, "langchain")
    engine = PGEngine.from_connection_string(
        loading.dsn.replace("postgresql://", "postgresql+asyncpg://")
    )
    try:
        store = PGVectorStore.create_sync(
            engine, Qwen3TritonEmbeddings(base_url=loading.gateway.url), TABLE
        )
        found = [
            {document.page_content for document in store.similarity_search_by_vector(each, k=K)}
            for each in questions
        ]
        (answer,) = store.similarity_search("Why does the Moon change its shape?", k=1)
        assert answer.metadata["subject"] == "astronomy"
        assert answer.metadata["doc_id"].startswith("astronomy")
    finally:
        engine._run_as_sync(engine.close())
    assert recall(found, exact(loading, "langchain", questions)) >= RECALL


def test_llamaindex_opens_the_table(
    loading: Loading, sources: list[Path], questions: list[list[float]]
) -> None:
    load_all(loading, sources, "llamaindex")
    store = LlamaIndexStore.from_params(
        connection_string=loading.dsn.replace("postgresql://", "postgresql+psycopg2://"),
        async_connection_string=loading.dsn.replace("postgresql://", "postgresql+asyncpg://"),
        table_name=TABLE,
        embed_dim=1024,
        use_jsonb=True,
    )
    try:
        found: list[set[str]] = []
        for each in questions:
            result = store.query(VectorStoreQuery(query_embedding=each, similarity_top_k=K))
            assert result.nodes is not None
            found.append({node.get_content() for node in result.nodes})
            assert all(node.ref_doc_id for node in result.nodes)
    finally:
        if store._engine is not None:
            store._engine.dispose()
    assert recall(found, exact(loading, "llamaindex", questions)) >= RECALL
