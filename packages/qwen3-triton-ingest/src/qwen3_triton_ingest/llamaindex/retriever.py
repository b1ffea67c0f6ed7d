"""A retriever for LlamaIndex over pgvector and ParadeDB, by meaning, by words or by both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from llama_index.core.callbacks import CallbackManager
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import (
    BaseNode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.utils import (
    metadata_dict_to_node,  # pyright: ignore[reportUnknownVariableType] - a bare `dict`
)

from ..config import GatewayOptions
from ..layouts import LayoutName
from ..search import Hit, Searcher, SearchOptions, TextBackendChoice
from ..search.options import SearchKeywords

__all__ = ["PostgresRetriever"]


class PostgresRetriever(BaseRetriever):
    """Find nodes in a table that `load` or LlamaIndex' `PGVectorStore` filled.

    The table may be of any layout. By default words are searched by BM25 where the table has an
    index of ParadeDB's pg_search or of pg_textsearch, else by PostgreSQL's own text search; both
    ranks are fused.

    Examples:
        >>> retriever = PostgresRetriever("postgresql://localhost/rag", "manuals", k=4)
        >>> nodes = retriever.retrieve("How do I reset the pump?")
    """

    def __init__(
        self,
        dsn: str,
        table: str,
        *,
        layout: LayoutName | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        instruction: str | None = None,
        text_backend: TextBackendChoice = "auto",
        text_config: str | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
        **options: Unpack[SearchKeywords],
    ) -> None:
        """Make a retriever. Nothing is connected to before the first question.

        Args:
            dsn: PostgreSQL's libpq URI.
            table: `table` or `schema.table`; for LlamaIndex' own without `data_`.
            layout: Whose table; default told by its columns.
            base_url: Of the gateway; default `QWEN3_TRITON_URL`.
            api_key: Of the gateway; default `QWEN3_TRITON_API_KEY`.
            instruction: What questions are for; default the gateway's.
            text_backend: By which words are found; default BM25 where there is an index for it.
            text_config: Text search configuration of `tsvector`; default the index's.
            callback_manager: LlamaIndex' own.
            verbose: LlamaIndex' own.
            **options: The fields of `SearchOptions`: `mode`, `k`, `filter` and so on.

        Raises:
            ValueError: An option is out of range.
        """
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - a bare `Dict`
            callback_manager=callback_manager, verbose=verbose
        )
        SearchOptions(**options)
        self._options = options
        self._searcher = Searcher(
            dsn,
            table,
            layout=layout,
            gateway=GatewayOptions(url=base_url, api_key=api_key, instruction=instruction),
            text_backend=text_backend,
            text_config=text_config,
        )

    def close(self) -> None:
        """Close the connections of synchronous calls; a later call opens new ones."""
        self._searcher.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and those of synchronous calls."""
        await self._searcher.aclose()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self._searcher.search(query_bundle.query_str, **self._options)
        return [_scored(hit) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = await self._searcher.asearch(query_bundle.query_str, **self._options)
        return [_scored(hit) for hit in hits]


def _scored(hit: Hit) -> NodeWithScore:
    return NodeWithScore(node=_node(hit, hit.stored_metadata), score=hit.score)


def _node(hit: Hit, stored: Mapping[str, Any]) -> BaseNode:
    if "_node_content" in stored:  # the whole node, with all its relationships
        return metadata_dict_to_node(dict(stored), text=hit.text)
    source = RelatedNodeInfo(node_id=hit.doc_id or hit.id)
    return TextNode(
        id_=hit.id,
        text=hit.text,
        metadata=dict(hit.metadata),
        relationships={NodeRelationship.SOURCE: source},
    )
