"""A LangChain retriever for pgvector and ParadeDB: vector, text and hybrid search."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.utils import secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from ..config import GatewayOptions, option_of
from ..layouts import LayoutName
from ..search import Hit, Searcher, SearchMode, SearchOptions, TextBackendChoice


def _help(name: str) -> str:
    return option_of(SearchOptions, name).help


class PostgresRetriever(BaseRetriever):
    """Finds documents in a table that `load` or LangChain's `PGVectorStore` filled.

    The table can have any layout. By default, vector and text search are combined by rank. Text
    search uses BM25 if the table has an index of ParadeDB's pg_search, else PostgreSQL's own
    full-text search. `invoke` takes `mode`, `k`, `filter` and other options for one call, and
    `embed_texts` or `vector` to search for something else than the question's vector.

    Each document has the hit's `score`, `distance`, `doc_id` and `seq` in its metadata. In hybrid
    mode `score` is a sum of ranks; `1 - distance` is the cosine similarity. With `rerank` there are
    also `relevance_score`, from 0 to 1, which orders the documents, and `rerank_truncated`.

    Setup:
        .. code-block:: bash

            pip install 'qwen3-triton-ingest[langchain]'
            export DATABASE_URL="postgresql://user:password@localhost:5432/rag"
            export QWEN3_TRITON_URL="http://localhost:8101"

    Instantiate:
        .. code-block:: python

            from qwen3_triton_ingest.langchain import PostgresRetriever

            retriever = PostgresRetriever(table="manuals", k=4, filter={"lang": "en"})

    Usage:
        .. code-block:: python

            documents = retriever.invoke("How do I reset the pump?")
            documents = await retriever.ainvoke("How do I reset the pump?", k=8)
    """

    # A validation error would show its input, including the password.
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", hide_input_in_errors=True)

    dsn: SecretStr = Field(
        default_factory=secret_from_env("DATABASE_URL"), description="PostgreSQL's libpq URI."
    )
    table: str = Field(description="TABLE or SCHEMA.TABLE; for LlamaIndex without `data_`.")
    layout: LayoutName | None = Field(
        default=None, description="Layout of the table. Default: inferred from its columns."
    )
    mode: SearchMode = Field(default="hybrid", description=_help("mode"))
    k: int = Field(default=4, ge=1, description=_help("k"))
    filter: dict[str, Any] | None = Field(
        default=None, description="Filter on the metadata, as for LangChain's PGVectorStore."
    )
    weights: tuple[float, float] = Field(default=(1.0, 1.0), description=_help("weights"))
    candidates: int | None = Field(default=None, description=_help("candidates"))
    ef_search: int | None = Field(default=None, description=_help("ef_search"))
    exact: bool = Field(default=False, description=_help("exact"))
    truncate: bool = Field(
        default=True, description="Truncate a question that is too long; else it is refused."
    )
    rerank: bool = Field(default=False, description=_help("rerank"))
    fetch_k: int | None = Field(default=None, description=_help("fetch_k"))
    rerank_instruction: str | None = Field(default=None, description=_help("rerank_instruction"))
    text_backend: TextBackendChoice = Field(
        default="auto", description="Text search to use; `auto` takes BM25 if there is an index."
    )
    text_config: str | None = Field(
        default=None, description="Text search configuration. Default: the index's."
    )
    collection: str | None = Field(
        default=None,
        description="Collection of LangChain's old `PGVector`. Default: the only one.",
    )
    base_url: str | None = Field(
        default=None, description="URL of the gateway. Default: QWEN3_TRITON_URL."
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key of the gateway. Default: QWEN3_TRITON_API_KEY."
    )
    instruction: str | None = Field(
        default=None, description="What questions are for. Default: the gateway's instruction."
    )

    _kept: tuple[tuple[object, ...], Searcher] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        SearchOptions(**self._options({}))
        self._searcher()
        return self

    def close(self) -> None:
        """Close the connections of synchronous calls; a later call opens new ones."""
        self._searcher().close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and those of synchronous calls."""
        await self._searcher().aclose()

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        hits = self._searcher().search(query, **self._options(kwargs))
        return [_document(hit) for hit in hits]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        hits = await self._searcher().asearch(query, **self._options(kwargs))
        return [_document(hit) for hit in hits]

    def _searcher(self) -> Searcher:
        """Return the searcher for the current fields, which may be assigned or copied changed."""
        gateway = GatewayOptions(
            url=self.base_url,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            instruction=self.instruction,
        )
        create = partial(
            Searcher,
            self.dsn.get_secret_value(),
            self.table,
            layout=self.layout,
            gateway=gateway,
            text_backend=self.text_backend,
            text_config=self.text_config,
            collection=self.collection,
        )
        settings = (*create.args, *create.keywords.values())
        kept = self._kept
        if kept is None or kept[0] != settings:
            self._kept = kept = (settings, create())
        return kept[1]

    def _options(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a call: the current fields, and what the call overrides."""
        return {
            "mode": self.mode,
            "k": self.k,
            "filter": self.filter,
            "weights": self.weights,
            "candidates": self.candidates,
            "ef_search": self.ef_search,
            "exact": self.exact,
            "truncate": self.truncate,
            "rerank": self.rerank,
            "fetch_k": self.fetch_k,
            "rerank_instruction": self.rerank_instruction,
            **overrides,
        }


def _document(hit: Hit) -> Document:
    # The search's own values win over metadata of the same names, or `score` would be anything.
    own: dict[str, Any] = {
        "score": hit.score,
        "distance": hit.distance,
        "doc_id": hit.doc_id,
        "seq": hit.seq,
    }
    if hit.search_rank is not None:  # reranked: the name that LangChain's rerankers use
        own |= {"relevance_score": hit.rerank_score, "rerank_truncated": hit.rerank_truncated}
    return Document(id=hit.id, page_content=hit.text, metadata={**hit.metadata, **own})
