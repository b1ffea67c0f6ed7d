"""The ways of writing rows that `ingest_rates.py` compares, and the rows."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_postgres import PGEngine, PGVectorStore
from llama_index.core.schema import TextNode
from llama_index.vector_stores.postgres import PGVectorStore as LlamaIndexStore

from gateway_process import running_gateway
from qwen3_triton_client import EmbeddingClient, Vector
from qwen3_triton_ingest.database import Connection
from qwen3_triton_ingest.documents import Chunk, EmbeddedChunk
from qwen3_triton_ingest.langchain import BulkPGVectorStore as BulkLangChain
from qwen3_triton_ingest.layouts import LayoutName, Table
from qwen3_triton_ingest.llamaindex import BulkPGVectorStore as BulkLlamaIndex
from qwen3_triton_ingest.rows.chunks import copy_chunks, upsert_chunks
from qwen3_triton_ingest.tables.preparation import prepare_table
from qwen3_triton_tools.tune.texts import mixed_texts

DIMENSIONS = 1024
TEXT_BYTES = 1024
EMBEDDED_WORDS = 12
LAYOUTS: tuple[LayoutName, ...] = ("own", "langchain", "llamaindex")
LANGCHAIN, LLAMAINDEX = "LangChain PGVectorStore", "LlamaIndex PGVectorStore"
OUR_LANGCHAIN, OUR_LLAMAINDEX = "our store for LangChain", "our store for LlamaIndex"


@dataclass(frozen=True, slots=True)
class Side:
    """One way of writing rows."""

    name: str
    table: str
    prepare: Callable[[int], list[Any]]
    """Builds all rows with ids from this number, in the format that this side takes."""
    write: Callable[[list[Any]], object]
    """Writes rows and commits them."""
    overwrites: bool = True
    """Whether it can write existing rows."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts of 1 KB and their vectors, in every format that a side takes."""

    texts: list[str]
    vectors: list[Vector]
    lists: list[list[float]]
    metadatas: list[dict[str, Any]]

    def ids(self, number: int) -> list[uuid.UUID]:
        # Random, as in production: B-trees fill more slowly with random ids.
        return [uuid.uuid5(uuid.NAMESPACE_URL, f"{number}/{i}") for i in range(len(self.texts))]

    def chunks(self, number: int) -> list[EmbeddedChunk]:
        rows = zip(self.ids(number), self.texts, self.vectors, self.metadatas, strict=True)
        return [
            EmbeddedChunk(Chunk(each, f"doc-{i // 8}", i % 8, text, metadata), vector)
            for i, (each, text, vector, metadata) in enumerate(rows)
        ]

    def nodes(self, number: int) -> list[TextNode]:
        rows = zip(self.ids(number), self.texts, self.lists, self.metadatas, strict=True)
        return [
            TextNode(id_=str(each), text=text, embedding=vector, metadata=metadata)
            for each, text, vector, metadata in rows
        ]


def make_corpus(rows: int) -> Corpus:
    """Cut texts of 1 KB, and embed their first words with the nano model."""
    words = iter(" ".join(mixed_texts(rows * 4)).split())
    texts: list[str] = []
    for _ in range(rows):
        text = ""
        while len(text) < TEXT_BYTES:
            text += next(words) + " "
        texts.append(text)
    with running_gateway() as gateway, EmbeddingClient(gateway.url) as client:
        beginnings = [" ".join(text.split()[:EMBEDDED_WORDS]) for text in texts]
        vectors = client.embed(beginnings).vectors
    metadatas: list[dict[str, Any]] = [
        {"source": f"manual/{i // 100}.md", "lang": "en", "page": i % 100} for i in range(rows)
    ]
    return Corpus(texts, vectors, [vector.tolist() for vector in vectors], metadatas)


def loader_sides(connection: Connection, corpus: Corpus) -> list[Side]:
    """Create the loader's two ways of writing, for each layout."""
    sides: list[Side] = []
    for layout in LAYOUTS:
        table = prepare_table(connection, f"loader_{layout}", layout, DIMENSIONS)
        for what, write in (("COPY", copy_chunks), ("upsert", upsert_chunks)):

            def commit(chunks: list[Any], table: Table = table, write: Any = write) -> None:
                write(connection, table, chunks)
                connection.commit()

            name = f"{what}, {layout} table"
            sides.append(Side(name, str(table), corpus.chunks, commit, what == "upsert"))
    connection.commit()
    return sides


def langchain_sides(engine: PGEngine, corpus: Corpus) -> list[Side]:
    """Create LangChain's store and ours, on the same kind of table."""

    def prepare(number: int) -> list[Any]:
        ids = [str(each) for each in corpus.ids(number)]
        return list(zip(corpus.texts, corpus.lists, corpus.metadatas, ids, strict=True))

    sides: list[Side] = []
    for name, kind in ((LANGCHAIN, PGVectorStore), (OUR_LANGCHAIN, BulkLangChain)):
        table = "lc_ours" if kind is BulkLangChain else "lc_theirs"
        engine.init_vectorstore_table(table, DIMENSIONS)
        store: Any = kind.create_sync(engine, DeterministicFakeEmbedding(size=DIMENSIONS), table)

        def write(rows: list[Any], store: Any = store) -> None:
            texts, vectors, metadatas, ids = map(list, zip(*rows, strict=True))
            store.add_embeddings(texts, vectors, metadatas, ids)

        sides.append(Side(name, table, prepare, write))
    return sides


def llamaindex_sides(uri: str, corpus: Corpus) -> list[Side]:
    """Create LlamaIndex's store and ours, on the same kind of table."""
    sides: list[Side] = []
    for name, kind in ((LLAMAINDEX, LlamaIndexStore), (OUR_LLAMAINDEX, BulkLlamaIndex)):
        table = "ours" if kind is BulkLlamaIndex else "theirs"
        store: Any = cast("Any", kind).from_params(
            connection_string=sqlalchemy_url(uri, "psycopg2"),
            async_connection_string=sqlalchemy_url(uri, "asyncpg"),
            table_name=table,
            embed_dim=DIMENSIONS,
            use_jsonb=True,
        )
        store.add([])
        sides.append(Side(name, f"data_{table}", corpus.nodes, store.add))
    return sides


def sqlalchemy_url(uri: str, driver: str) -> str:
    """Convert a libpq URI to SQLAlchemy's, for a driver."""
    return uri.replace("postgresql://", f"postgresql+{driver}://")
