"""LlamaIndex's `BaseNodePostprocessor` interface for the gateway's reranker."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage] - documented, but not in __all__
)
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import Field

from qwen3_triton_client import MAX_TEXTS_PER_REQUEST, ClientSettings, RerankResult

from .base import GatewayComponent

_dispatcher = get_dispatcher(__name__)


class Qwen3TritonRerank(GatewayComponent, BaseNodePostprocessor):
    """LlamaIndex reranking with Qwen3-Reranker on NVIDIA Triton.

    Returns the most relevant nodes, the best first, with scores from 0 to 1. The reranker reads the
    text that is embedded, with its metadata. Blank nodes come last, with a score of 0. No telemetry
    is sent.

    Attributes:
        top_n: Number of nodes to return; None returns all.
        base_url: Address of the gateway. Default: `QWEN3_TRITON_URL`, else
            `http://localhost:8101`.
        api_key: Key to send. Default: `QWEN3_TRITON_API_KEY`, else none. It is pickled, but never
            serialized.
        model: Name of the reranker to request. The gateway refuses any other than the one it
            serves.
        instruction: What makes a node relevant, as one English sentence. Default: the gateway's,
            which is web search.
        truncate: Whether the end of a text that is too long is cut (True) or the call refused
            (False). Default: the gateway's.
        batch_size: Maximum number of nodes per request; no more than 100 are sent.
        max_concurrency: Maximum number of requests in flight, over all threads or over all tasks
            of an event loop.
        timeout: Seconds for one try.
        max_retries: Retries after the first try.
        http_client: Your own HTTP client for synchronous calls; not pickled.
        http_async_client: Your own HTTP client for asynchronous calls; not pickled.

    Examples:
        ```python
        from llama_index.embeddings.qwen3_triton import Qwen3TritonRerank

        engine = index.as_query_engine(
            similarity_top_k=50, node_postprocessors=[Qwen3TritonRerank(top_n=5)]
        )
        ```
    """

    top_n: int | None = Field(default=5, ge=1)
    model: str | None = None
    instruction: str | None = None
    truncate: bool | None = None
    batch_size: int = Field(
        default=ClientSettings.batch_size, ge=1, le=MAX_TEXTS_PER_REQUEST, exclude=True
    )

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the component is serialized."""
        return "Qwen3TritonRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = _query(query_bundle), _texts(nodes)
        with self._reported(nodes, query) as report:
            return report(self.clients()[0].rerank(query.query_str, texts, **self._options()))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = _query(query_bundle), _texts(nodes)
        with self._reported(nodes, query) as report:
            client = self.clients()[1]
            return report(await client.rerank(query.query_str, texts, **self._options()))

    @contextmanager
    def _reported(
        self, nodes: list[NodeWithScore], query: QueryBundle
    ) -> Generator[Callable[[RerankResult], list[NodeWithScore]]]:
        """Report the start of a call to observers, and its end; the base class reports neither."""
        top_n, model = self.top_n or len(nodes), self.model or ""
        _dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:

            def report(result: RerankResult) -> list[NodeWithScore]:
                ranked = _ranked(nodes, result)
                event.on_end(payload={EventPayload.NODES: ranked})
                _dispatcher.event(ReRankEndEvent(nodes=ranked))
                return ranked

            yield report

    def _options(self) -> dict[str, Any]:
        return {
            "top_n": self.top_n,
            "model": self.model,
            "instruction": self.instruction,
            "truncate": self.truncate,
            "on_blank": "last",
        }

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "batch_size": self.batch_size}


def _query(bundle: QueryBundle | None) -> QueryBundle:
    if bundle is None:
        msg = "Reranking needs the query. Pass `query_str` or `query_bundle`."
        raise ValueError(msg)
    return bundle


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _ranked(nodes: list[NodeWithScore], result: RerankResult) -> list[NodeWithScore]:
    """Return new records, so that the caller's keep the scores of the retrieval."""
    return [
        NodeWithScore(node=nodes[ranked.index].node, score=ranked.score)
        for ranked in result.documents
    ]
