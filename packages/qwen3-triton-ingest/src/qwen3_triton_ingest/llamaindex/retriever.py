"""A LlamaIndex retriever for pgvector and ParadeDB: vector, text and hybrid search."""

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
from llama_index.core.vector_stores import MetadataFilters
from llama_index.core.vector_stores.utils import (
    metadata_dict_to_node,  # pyright: ignore[reportUnknownVariableType] - a bare `dict`
)

from ..config import GatewayOptions
from ..layouts import NODE_CONTENT, LayoutName
from ..search import Hit, Searcher, SearchOptions, TextBackendChoice
from ..search.options import SearchKeywords
from .filters import translate_filters


class PostgresRetriever(BaseRetriever):
    """Finds nodes in a table that `load` or LlamaIndex's `PGVectorStore` filled.

    The table can have any layout. By default, vector and text search are combined by rank. Text
    search uses BM25 if the table has an index of ParadeDB's pg_search, else PostgreSQL's own
    full-text search. A `QueryBundle` may have an `embedding` or `custom_embedding_strs`, which are
    then searched for instead of the question's vector.

    The score of a node is its cosine similarity, in hybrid mode too, so that a cut-off of
    `SimilarityPostprocessor` means the same for every question; the order is that of the ranks.
    In mode `text` it is the text index's score. With `rerank` it is the reranker's score, from 0 to
    1, which orders the nodes; the other one is in the metadata as `retrieval_score`, and
    `rerank_truncated` says whether the reranker read only the beginning of the text. Neither is
    shown to a language model.

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
        collection: str | None = None,
        similarity_top_k: int | None = None,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
        **options: Unpack[SearchKeywords],
    ) -> None:
        """Create a retriever. It connects to nothing before the first question.

        Args:
            dsn: PostgreSQL's libpq URI.
            table: `table` or `schema.table`; for LlamaIndex's own tables without `data_`.
            layout: Layout of the table; None infers it from the columns.
            base_url: URL of the gateway; None takes `QWEN3_TRITON_URL`.
            api_key: API key of the gateway; None takes `QWEN3_TRITON_API_KEY`.
            instruction: What questions are for; None takes the gateway's instruction.
            text_backend: Text search to use; `auto` takes BM25 if the table has an index for it.
            text_config: Text search configuration of `tsvector`; None takes the index's.
            collection: Collection of LangChain's old `PGVector`; None takes the only one.
            similarity_top_k: LlamaIndex's name for `k`.
            filters: LlamaIndex's form of `filter`.
            callback_manager: As in LlamaIndex.
            verbose: As in LlamaIndex.
            **options: The fields of `SearchOptions`: `mode`, `k`, `filter` and so on.

        Raises:
            FilterError: A filter is not valid.
            ValueError: An option is out of range, or given under both of its names.
        """
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - a bare `Dict`
            callback_manager=callback_manager, verbose=verbose
        )
        for ours, theirs, value in (
            ("k", "similarity_top_k", similarity_top_k),
            ("filter", "filters", filters),
        ):
            if value is not None and options.get(ours) is not None:
                msg = f"Pass `{ours}` or `{theirs}`, not both."
                raise ValueError(msg)
        if filters is not None:
            options["filter"] = translate_filters(filters)
        if similarity_top_k is not None:
            options["k"] = similarity_top_k
        SearchOptions(**options)
        self._options = options
        self._searcher = Searcher(
            dsn,
            table,
            layout=layout,
            gateway=GatewayOptions(url=base_url, api_key=api_key, instruction=instruction),
            text_backend=text_backend,
            text_config=text_config,
            collection=collection,
        )

    @property
    def similarity_top_k(self) -> int:
        """Number of nodes to return; it can be assigned, as in LlamaIndex's own retrievers."""
        return SearchOptions(**self._options).k

    @similarity_top_k.setter
    def similarity_top_k(self, value: int) -> None:
        changed: SearchKeywords = {**self._options, "k": value}
        SearchOptions(**changed)
        self._options = changed

    def close(self) -> None:
        """Close the connections of synchronous calls; a later call opens new ones."""
        self._searcher.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and those of synchronous calls."""
        await self._searcher.aclose()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self._searcher.search(
            query_bundle.query_str,
            embed_texts=query_bundle.custom_embedding_strs or None,
            vector=query_bundle.embedding,
            **self._options,
        )
        return [_scored(hit) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = await self._searcher.asearch(
            query_bundle.query_str,
            embed_texts=query_bundle.custom_embedding_strs or None,
            vector=query_bundle.embedding,
            **self._options,
        )
        return [_scored(hit) for hit in hits]


def _scored(hit: Hit) -> NodeWithScore:
    node = _node(hit, hit.stored_metadata)
    score = hit.score if hit.similarity is None else hit.similarity
    if hit.search_rank is None:
        return NodeWithScore(node=node, score=score)
    # The name is that of LlamaIndex's own rerankers, with `keep_retrieval_score`.
    own = {"retrieval_score": score, "rerank_truncated": hit.rerank_truncated}
    node.metadata = {**node.metadata, **own}
    node.excluded_llm_metadata_keys = [*node.excluded_llm_metadata_keys, *own]
    node.excluded_embed_metadata_keys = [*node.excluded_embed_metadata_keys, *own]
    return NodeWithScore(node=node, score=hit.rerank_score)


def _node(hit: Hit, stored: Mapping[str, Any]) -> BaseNode:
    if NODE_CONTENT in stored:  # the whole node, with all its relationships
        return metadata_dict_to_node(dict(stored), text=hit.text)
    source = RelatedNodeInfo(node_id=hit.doc_id or hit.id)
    return TextNode(
        id_=hit.id,
        text=hit.text,
        metadata=dict(hit.metadata),
        relationships={NodeRelationship.SOURCE: source},
    )
