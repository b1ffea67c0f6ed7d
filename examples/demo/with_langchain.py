"""LangChain: `Qwen3TritonEmbeddings` and the `PGVectorStore` of langchain-postgres."""

import asyncio
from collections.abc import Sequence

from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_postgres import Column, PGEngine, PGVectorStore
from langchain_postgres.v2.indexes import DistanceStrategy, HNSWIndex, HNSWQueryOptions

from demo.documents import Document
from demo.search_index import DIMENSIONS, Hit

_TABLE = "demo_langchain"


class LangChainIndex:
    """Documents in a table of langchain-postgres, with columns for title and subject.

    Args:
        embeddings: Embeds texts and questions.
        postgres_uri: libpq URI, `postgresql://...`.
    """

    framework = "LangChain"

    def __init__(self, embeddings: Embeddings, postgres_uri: str) -> None:
        url = postgres_uri.replace("postgresql://", "postgresql+asyncpg://", 1)
        self._engine = PGEngine.from_connection_string(url)
        # An id column of type TEXT accepts our ids; the default is UUID.
        self._engine.init_vectorstore_table(
            _TABLE,
            DIMENSIONS,
            id_column=Column("id", "TEXT", nullable=False),
            metadata_columns=[Column("title", "TEXT"), Column("subject", "TEXT")],
        )
        self._store = PGVectorStore.create_sync(
            self._engine,
            embeddings,
            _TABLE,
            id_column="id",
            metadata_columns=["title", "subject"],
            distance_strategy=DistanceStrategy.COSINE_DISTANCE,
            index_query_options=HNSWQueryOptions(ef_search=100),
        )

    def add(self, documents: Sequence[Document]) -> None:
        self._store.add_documents(  # pyright: ignore[reportUnknownMemberType]
            [
                LangChainDocument(
                    id=document.id,
                    page_content=document.text,
                    metadata={"title": document.title, "subject": document.subject},
                )
                for document in documents
            ]
        )

    def finish(self) -> None:
        # Building the graph over a full table is several times faster than growing it row by row.
        self._store.apply_vector_index(HNSWIndex(m=16, ef_construction=64))

    def search(self, question: str, count: int) -> list[Hit]:
        found = self._store.similarity_search_with_score(  # pyright: ignore[reportUnknownMemberType]
            question, k=count
        )
        # This store's "score" is pgvector's cosine distance: 0 for the same direction.
        return [
            Hit(str(document.id), str(document.metadata["title"]), 1 - distance)
            for document, distance in found
        ]

    def close(self) -> None:
        asyncio.run(self._engine.close())
