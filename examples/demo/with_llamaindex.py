"""LlamaIndex: `Qwen3TritonEmbedding`, `IngestionPipeline` and its `PGVectorStore`."""

import asyncio
from collections.abc import Sequence

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.vector_stores.postgres import PGVectorStore

from demo.documents import Document
from demo.search_index import DIMENSIONS, Hit

_TABLE = "demo_llamaindex"


class LlamaIndexIndex:
    """Documents in a table of llama-index-vector-stores-postgres.

    Args:
        embedding: Embeds texts and questions.
        postgres_uri: libpq URI, `postgresql://...`.
    """

    framework = "LlamaIndex"

    def __init__(self, embedding: BaseEmbedding, postgres_uri: str) -> None:
        self._store = PGVectorStore(
            connection_string=postgres_uri.replace("://", "+psycopg2://", 1),
            async_connection_string=postgres_uri.replace("://", "+asyncpg://", 1),
            table_name=_TABLE,
            embed_dim=DIMENSIONS,
            use_jsonb=True,
            # The store queries by cosine distance, so the index must use it too.
            hnsw_kwargs={
                "hnsw_m": 16,
                "hnsw_ef_construction": 64,
                "hnsw_ef_search": 100,
                "hnsw_dist_method": "vector_cosine_ops",
            },
            # Otherwise a failed setup is only logged, and the first query fails instead.
            initialization_fail_on_error=True,
        )
        self._pipeline = IngestionPipeline(
            transformations=[embedding], vector_store=self._store, disable_cache=True
        )
        index = VectorStoreIndex.from_vector_store(
            self._store, embed_model=embedding, transformations=[embedding]
        )
        self._index = index

    def add(self, documents: Sequence[Document]) -> None:
        self._pipeline.run(nodes=[_node(document) for document in documents])

    def finish(self) -> None:
        """Do nothing: this store creates its HNSW index with the table."""

    def search(self, question: str, count: int) -> list[Hit]:
        found = self._index.as_retriever(similarity_top_k=count).retrieve(question)
        return [
            Hit(result.node.node_id, str(result.node.metadata["title"]), result.get_score())
            for result in found
        ]

    def close(self) -> None:
        asyncio.run(self._store.close())


def _node(document: Document) -> TextNode:
    metadata = {"title": document.title, "subject": document.subject}
    # By default, LlamaIndex embeds the metadata in front of the text. Excluded here, so that both
    # frameworks store the same vectors.
    node = TextNode(
        id_=document.id,
        text=document.text,
        metadata=metadata,
        excluded_embed_metadata_keys=list(metadata),
    )
    assert node.get_content(MetadataMode.EMBED) == document.text
    return node
