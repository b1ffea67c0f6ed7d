"""Searching a table, from threads and from event loops."""

from __future__ import annotations

import asyncio
import copy
import time
from functools import partial
from typing import Self, Unpack

import psycopg

from qwen3_triton_client import AsyncEmbeddingClient, EmbeddingClient

from ..config import GatewayOptions
from ..database import Connection
from ..embedding import open_client
from ..layouts import LayoutName, Table
from .connections import AsyncConnections, Connections, OneConnection
from .fetching import afetch, fetch
from .hits import Hit
from .options import SearchKeywords, SearchOptions
from .queries import search_sql
from .steps import (
    Embed,
    Embedded,
    Fetch,
    Fetched,
    LookUp,
    Step,
    Steps,
    advance,
    search_steps,
    translated,
)
from .target import Target, look_up
from .text_backends import TextBackendChoice

__all__ = ["Searcher", "search"]

_LOOK_UP_SECONDS = 60.0  # after which a new index is noticed


class Searcher:
    """Search one table, again and again, from any number of threads and event loops.

    Close it with `close()` or a `with` block, in an event loop with `aclose()` or `async with`.

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
    ) -> None:
        """Make a searcher. Nothing is connected to before the first search.

        Args:
            database: DSN, or an open connection, for one thread at a time and not for `asearch`.
            table: `table` or `schema.table`; for LlamaIndex without `data_`.
            layout: Whose table; default told by its columns.
            client: Of the gateway that served the table's vectors; it is not closed.
            gateway: How to reach that gateway, where no client is given.
            text_backend: By which words are found; default BM25 where there is an index for it.
            text_config: Text search configuration of `tsvector`; default the index's.

        Raises:
            ValueError: An option of the gateway is out of range.
        """
        given = isinstance(database, psycopg.Connection)
        self._connections = OneConnection(database) if given else Connections(database)
        self._async_connections = None if given else AsyncConnections(database)
        self._table = table
        self._layout: LayoutName | None = layout
        self._instruction = gateway.instruction if gateway else None
        self._owns_client = client is None
        self._client = client or open_client(gateway or GatewayOptions())
        self._async_client = self._client.as_async()
        self._text_backend: TextBackendChoice = text_backend
        self._text_config = text_config
        self._targets: dict[bool, tuple[float, Target]] = {}

    def search(self, question: str, **options: Unpack[SearchKeywords]) -> list[Hit]:
        """Return the chunks that answer a question best, best first.

        Args:
            question: In plain language; a text has to have any of its words, not all.
            **options: The fields of `SearchOptions`: `mode`, `k`, `filter` and so on.

        Raises:
            FingerprintError: The gateway serves another model than the table's vectors are of.
            FilterError: The filter cannot be read.
            TableError: The table cannot be searched so.
            DatabaseError: PostgreSQL cannot be reached.
            EmbeddingError: The gateway gives no vector.
            ValueError: An option is out of range.
        """
        wanted = SearchOptions(**options)
        return self._drive(search_steps(question, wanted, instruction=self._instruction), wanted)

    async def asearch(self, question: str, **options: Unpack[SearchKeywords]) -> list[Hit]:
        """Return the chunks that answer a question best; as `search`, without blocking."""
        wanted = SearchOptions(**options)
        steps = search_steps(question, wanted, instruction=self._instruction)
        return await self._adrive(steps, wanted)

    def sql(self, **options: Unpack[SearchKeywords]) -> str:
        """Return the SQL of a search with these options, with named placeholders.

        Raises:
            FilterError: The filter cannot be read.
            TableError: The table cannot be searched so.
            DatabaseError: PostgreSQL cannot be reached.
        """
        wanted = SearchOptions(**options)
        target = self._target(wanted, fresh=True)
        return search_sql(target.table, wanted, vectors=target.vectors, texts=target.texts)

    @property
    def table(self) -> Table:
        """Return the table as it was found."""
        return self._target(SearchOptions(mode="vector"), fresh=False).table

    def close(self) -> None:
        """Close the connections of threads; a later search opens new ones."""
        self._connections.close()
        if self._owns_client:
            self._client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop, and those of threads."""
        if self._async_connections:
            await self._async_connections.aclose()
        await self._async_client.aclose()
        self.close()

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

    def _carry_out(self, step: Step, options: SearchOptions) -> Target | Embedded | Fetched:
        if isinstance(step, LookUp):
            return self._look_up(options, fresh=step.fresh)
        if isinstance(step, Fetch):
            return self._connections.run(lambda connection: fetch(connection, step))
        client, _ = self._clients(step)
        result = client.embed(
            [step.question],
            input_type="query",
            instruction=step.instruction,
            dimensions=step.dimensions,
        )
        return Embedded(result.vectors[0], result.fingerprint)

    async def _acarry_out(self, step: Step, options: SearchOptions) -> Target | Embedded | Fetched:
        if self._async_connections is None:
            msg = "`asearch` needs a DSN: a searcher with a connection of yours is for threads"
            raise TypeError(msg)
        if isinstance(step, LookUp):
            return await asyncio.to_thread(self._look_up, options, fresh=step.fresh)
        if isinstance(step, Fetch):
            return await self._async_connections.run(lambda connection: afetch(connection, step))
        _, client = self._clients(step)
        result = await client.embed(
            [step.question],
            input_type="query",
            instruction=step.instruction,
            dimensions=step.dimensions,
        )
        return Embedded(result.vectors[0], result.fingerprint)

    def _clients(self, step: Embed) -> tuple[EmbeddingClient, AsyncEmbeddingClient]:
        if step.renew:  # a copy does not remember which model was served before
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
        known = self._targets.get(with_texts)
        if known and not fresh and time.monotonic() - known[0] < _LOOK_UP_SECONDS:
            return known[1]
        now = time.monotonic()
        target = self._connections.run(
            lambda connection: look_up(
                connection,
                self._table,
                layout=self._layout,
                text_backend=self._text_backend if with_texts else None,
                text_config=self._text_config,
            )
        )
        self._targets[with_texts] = (now, target)
        return target


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
    **options: Unpack[SearchKeywords],
) -> list[Hit]:
    """Return the chunks that answer a question best; for one question.

    The arguments are those of `Searcher` and of `Searcher.search`, and so are the errors.
    """
    with Searcher(
        database,
        table,
        layout=layout,
        client=client,
        gateway=gateway,
        text_backend=text_backend,
        text_config=text_config,
    ) as searcher:
        return searcher.search(question, **options)
