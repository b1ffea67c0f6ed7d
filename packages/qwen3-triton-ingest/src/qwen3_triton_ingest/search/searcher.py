"""Search of a table, from threads and from event loops."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Self, TypeAlias, Unpack

import psycopg

from qwen3_triton_client import (
    AsyncEmbeddingClient,
    EmbeddingClient,
    EmbeddingResult,
    RerankResult,
)

from ..config import GatewayOptions
from ..database import Connection
from ..embedding import open_client
from ..layouts import LayoutName, Table
from .connections import AsyncConnections, Connections, OneConnection, afetch, fetch
from .options import Hit, SearchKeywords, SearchOptions
from .queries import search_sql
from .reranking import Rerank
from .steps import (
    Embed,
    Fetch,
    Fetched,
    LookUp,
    Question,
    Step,
    Steps,
    advance,
    search_steps,
    translated,
)
from .target import Target, look_up
from .text_indexes import TextBackendChoice

_LOOK_UP_SECONDS = 60.0  # how long a new index may stay unnoticed
_OPEN = ("_connections", "_async_connections", "_targets")  # not pickled

_Result: TypeAlias = Target | EmbeddingResult | Fetched | RerankResult  # of a step


class Searcher:
    """Searches one table, from any number of threads and event loops.

    Close it with `close()` or a `with` block; in an event loop, with `aclose()` or `async with`.

    Examples:
        >>> with Searcher("postgresql://localhost/rag", "manuals") as searcher:
        ...     hits = searcher.search("How do I reset the pump?", k=5, filter={"lang": "en"})
    """

    def __init__(
        self,
        database: str | Connection,
        table: str,
        *,
        layout: LayoutName | None = None,
        client: EmbeddingClient | None = None,
        gateway: GatewayOptions | None = None,
        text_backend: TextBackendChoice = "auto",
        text_config: str | None = None,
        collection: str | None = None,
    ) -> None:
        """Create a searcher. It connects to nothing before the first search.

        Args:
            database: DSN; or an open connection, for one thread at a time and not for `asearch`.
            table: `table` or `schema.table`; for LlamaIndex without `data_`.
            layout: Layout of the table; None infers it from the columns.
            client: For the gateway that made the table's vectors; it is not closed.
            gateway: How to reach that gateway, if there is no `client`.
            text_backend: Text search to use; `auto` takes BM25 if the table has an index for it.
            text_config: Text search configuration of `tsvector`; None takes the index's.
            collection: Name of a collection of LangChain's old `PGVector`; None takes the only one.

        Raises:
            ValueError: An option of the gateway is out of range.
        """
        self._database = database
        self._connect()
        self._table = table
        self._layout: LayoutName | None = layout
        self._instruction = gateway.instruction if gateway else None
        self._owns_client = client is None
        self._client = client or open_client(gateway or GatewayOptions())
        self._async_client = self._client.as_async()
        self._text_backend: TextBackendChoice = text_backend
        self._text_config = text_config
        self._collection = collection

    def search(
        self,
        question: str,
        *,
        embed_texts: Sequence[str] | None = None,
        vector: Sequence[float] | None = None,
        **options: Unpack[SearchKeywords],
    ) -> list[Hit]:
        """Return the chunks that best answer a question, best first.

        Args:
            question: In plain language; a text matches if it has any of its words. Chunks are
                reranked by it, whatever vector is searched for.
            embed_texts: Embedded instead of the question, such as answers that a language model
                made up (HyDE); the mean of their vectors is searched for.
            vector: Searched for instead of the question's vector. It must be of the same embedding
                space as the table's vectors, which cannot be checked.
            **options: The fields of `SearchOptions`: `mode`, `k`, `filter` and so on.

        Raises:
            FingerprintError: The gateway serves another model than the one of the table's vectors.
            FilterError: The filter is not valid.
            TableError: The table cannot be searched like that.
            DatabaseError: PostgreSQL cannot be reached.
            EmbeddingError: The gateway returns no vector or no scores. It is a
                `ModelNotFoundError` if `rerank` is set and no reranker is served.
            ValueError: An option is out of range, or the vector has not the table's length.
        """
        wanted = SearchOptions(**options)
        asked = Question(question, embed_texts, vector)
        return self._drive(search_steps(asked, wanted, instruction=self._instruction), wanted)

    async def asearch(
        self,
        question: str,
        *,
        embed_texts: Sequence[str] | None = None,
        vector: Sequence[float] | None = None,
        **options: Unpack[SearchKeywords],
    ) -> list[Hit]:
        """Return the chunks that best answer a question; like `search`, without blocking."""
        wanted = SearchOptions(**options)
        asked = Question(question, embed_texts, vector)
        steps = search_steps(asked, wanted, instruction=self._instruction)
        return await self._adrive(steps, wanted)

    def sql(self, **options: Unpack[SearchKeywords]) -> str:
        """Return the SQL of a search with these options, with named placeholders.

        Raises:
            FilterError: The filter is not valid.
            TableError: The table cannot be searched like that.
            DatabaseError: PostgreSQL cannot be reached.
        """
        wanted = SearchOptions(**options)
        target = self._target(wanted, fresh=True)
        return search_sql(target.table, wanted, vectors=target.vectors, texts=target.texts)

    @property
    def table(self) -> Table:
        """The table as it is in the database."""
        return self._target(SearchOptions(mode="vector"), fresh=False).table

    def close(self) -> None:
        """Close the connections for threads; a later search opens new ones."""
        self._connections.close()
        if self._owns_client:
            self._client.close()

    async def aclose(self) -> None:
        """Close the connections for this event loop, and those for threads."""
        if self._async_connections:
            await self._async_connections.aclose()
        await self._async_client.aclose()
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._database, psycopg.Connection):
            msg = (
                "A searcher with an open connection can be neither pickled nor copied; create it "
                "with a DSN."
            )
            raise TypeError(msg)
        return {name: value for name, value in vars(self).items() if name not in _OPEN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()

    def _connect(self) -> None:
        """Prepare for connections, which belong to this object and this process."""
        database = self._database
        if isinstance(database, psycopg.Connection):
            self._connections, self._async_connections = OneConnection(database), None
        else:
            self._connections = Connections(database)
            self._async_connections = AsyncConnections(database)
        self._targets: dict[bool, tuple[float, Target]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _drive(self, steps: Steps, options: SearchOptions) -> list[Hit]:
        step = advance(steps.__next__)
        while not isinstance(step, list):
            try:
                resume = partial(steps.send, self._carry_out(step, options))
            except Exception as error:
                resume = partial(steps.throw, error)
            step = advance(resume)
        return step

    async def _adrive(self, steps: Steps, options: SearchOptions) -> list[Hit]:
        step = advance(steps.__next__)
        while not isinstance(step, list):
            try:
                resume = partial(steps.send, await self._acarry_out(step, options))
            except Exception as error:
                resume = partial(steps.throw, error)
            step = advance(resume)
        return step

    def _carry_out(self, step: Step, options: SearchOptions) -> _Result:
        if isinstance(step, LookUp):
            return self._look_up(options, fresh=step.fresh)
        if isinstance(step, Fetch):
            return self._connections.run(lambda connection: fetch(connection, step))
        if isinstance(step, Rerank):
            return self._client.rerank(step.query, step.texts, **_rerank_keywords(step))
        return self._clients(step)[0].embed(step.texts, **_keywords(step))

    async def _acarry_out(self, step: Step, options: SearchOptions) -> _Result:
        if self._async_connections is None:
            msg = (
                "`asearch` needs a searcher with a DSN; one with an open connection is for threads."
            )
            raise TypeError(msg)
        if isinstance(step, LookUp):
            return await asyncio.to_thread(self._look_up, options, fresh=step.fresh)
        if isinstance(step, Fetch):
            return await self._async_connections.run(lambda connection: afetch(connection, step))
        if isinstance(step, Rerank):
            return await self._async_client.rerank(step.query, step.texts, **_rerank_keywords(step))
        return await self._clients(step)[1].embed(step.texts, **_keywords(step))

    def _clients(self, step: Embed) -> tuple[EmbeddingClient, AsyncEmbeddingClient]:
        if step.renew:  # a copy does not remember the model that was served before
            self._client = copy.deepcopy(self._client)
            self._async_client = self._client.as_async()
        return self._client, self._async_client

    def _target(self, options: SearchOptions, *, fresh: bool) -> Target:
        try:
            return self._look_up(options, fresh=fresh)
        except psycopg.Error as error:
            raise translated(error) from error

    def _look_up(self, options: SearchOptions, *, fresh: bool) -> Target:
        with_texts = options.mode != "vector"
        cached = self._targets.get(with_texts)
        if cached and not fresh and time.monotonic() - cached[0] < _LOOK_UP_SECONDS:
            return cached[1]
        now = time.monotonic()
        target = self._connections.run(
            lambda connection: look_up(
                connection,
                self._table,
                layout=self._layout,
                text_backend=self._text_backend if with_texts else None,
                text_config=self._text_config,
                collection=self._collection,
            )
        )
        self._targets[with_texts] = (now, target)
        return target


def _keywords(step: Embed) -> dict[str, Any]:
    return {
        "input_type": "query",
        "instruction": step.instruction,
        "dimensions": step.dimensions,
        "truncate": step.truncate,
    }


def _rerank_keywords(step: Rerank) -> dict[str, Any]:
    # The client refuses what is too long, as a load does; here one chunk would fail the search.
    return {"instruction": step.instruction, "truncate": True}


def search(
    database: str | Connection,
    table: str,
    question: str,
    *,
    layout: LayoutName | None = None,
    client: EmbeddingClient | None = None,
    gateway: GatewayOptions | None = None,
    text_backend: TextBackendChoice = "auto",
    text_config: str | None = None,
    collection: str | None = None,
    **options: Unpack[SearchKeywords],
) -> list[Hit]:
    """Return the chunks that best answer one question.

    Arguments and errors are those of `Searcher` and `Searcher.search`.
    """
    with Searcher(
        database,
        table,
        layout=layout,
        client=client,
        gateway=gateway,
        text_backend=text_backend,
        text_config=text_config,
        collection=collection,
    ) as searcher:
        return searcher.search(question, **options)
