"""LangChain's `PGVectorStore`, writing in bulk."""

from __future__ import annotations

import json
import math
from collections.abc import Coroutine, Iterable, Sequence
from datetime import date, time
from decimal import Decimal
from importlib.metadata import version
from typing import Any, cast
from uuid import UUID, uuid4

try:
    from langchain_core.documents import Document
    from langchain_postgres import PGVectorStore
except ImportError as _error:
    msg = "`BulkPGVectorStore` needs LangChain: pip install 'qwen3-triton-ingest[langchain]'."
    raise ImportError(msg) from _error
from sqlalchemy import text

from ..queries import COLUMN_TYPES
from ..rows.binary import as_float32
from ..rows.staged import StagedRow, StagedTable, is_autocommit, write_rows_async

# The only private names of LangChain that this package uses. They were checked with this release of
# langchain-postgres; `test_the_private_names_of_langchain_exist` says what to do when they move.
CHECKED_RELEASE = "0.0.19"
PRIVATE_STORE = "_PGVectorStore__vs"
PRIVATE_ENGINE = "_engine"
PRIVATE_RUN_AS_ASYNC, PRIVATE_RUN_AS_SYNC = "_run_as_async", "_run_as_sync"


class BulkPGVectorStore(PGVectorStore):
    """Stores documents like `PGVectorStore`, in the same tables, but in bulk.

    Everything except writing is inherited. As long as the table has no vector index, this is tens
    of times as fast: the original writes a vector as text and commits each row. A call is one
    transaction: all of its rows are stored, replacing rows with the same ids, or none.
    """

    async def aadd_embeddings(
        self,
        texts: Iterable[str],
        embeddings: Sequence[Sequence[float]],
        metadatas: list[dict[str, Any]] | None = None,
        ids: list[Any] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Store texts with their vectors and return the ids.

        Args:
            texts: May be a generator.
            embeddings: One vector per text; `array.array` of float32 is used without a copy.
            metadatas: One per text; None if there are none.
            ids: One per text; None gets a new id.
            kwargs: Passed to `PGVectorStore` if PostgreSQL itself computes the vectors.

        Raises:
            ValueError: The number of vectors, metadatas or ids is not the number of texts.
        """
        return await self._run_as_async(self._add(list(texts), embeddings, metadatas, ids, kwargs))

    def add_embeddings(
        self,
        texts: Iterable[str],
        embeddings: Sequence[Sequence[float]],
        metadatas: list[dict[str, Any]] | None = None,
        ids: list[Any] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Store texts with their vectors; see `aadd_embeddings`."""
        return self._run_as_sync(self._add(list(texts), embeddings, metadatas, ids, kwargs))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        ids: list[Any] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts, store them and return the ids; see `aadd_embeddings`."""
        return await self._run_as_async(self._add(list(texts), None, metadatas, ids, kwargs))

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        ids: list[Any] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts, store them and return the ids; see `aadd_embeddings`."""
        return self._run_as_sync(self._add(list(texts), None, metadatas, ids, kwargs))

    async def aadd_documents(
        self, documents: Iterable[Document], ids: list[Any] | None = None, **kwargs: Any
    ) -> list[str]:
        """Embed documents, store them and return the ids; see `aadd_embeddings`."""
        return await self.aadd_texts(*_columns(documents, ids), **kwargs)

    def add_documents(
        self, documents: Iterable[Document], ids: list[Any] | None = None, **kwargs: Any
    ) -> list[str]:
        """Embed documents, store them and return the ids; see `aadd_embeddings`."""
        return self.add_texts(*_columns(documents, ids), **kwargs)

    async def _add(
        self,
        texts: list[str],
        vectors: Sequence[Sequence[float]] | None,
        metadatas: list[dict[str, Any]] | None,
        ids: list[Any] | None,
        kwargs: dict[str, Any],
    ) -> list[str]:
        """Do everything, in the event loop that the engine's connections belong to."""
        inner = _private(self, PRIVATE_STORE)
        ids = [uuid4() if each is None else each for each in ids or [None] * len(texts)]
        ids = [str(each) if isinstance(each, UUID) else each for each in ids]
        metadatas = metadatas or [{} for _ in texts]
        _check_lengths(texts, metadatas=metadatas, ids=ids)
        if callable(getattr(inner.embedding_service, "embed_query_inline_template", None)):
            # PostgreSQL computes the vectors, in the statement that only the original writes.
            vectors = vectors if vectors is not None else [[] for _ in texts]
            return await inner.aadd_embeddings(texts, vectors, metadatas, ids, **kwargs)
        if vectors is None:
            vectors = await _embed(inner.embedding_service, texts)
        _check_lengths(texts, embeddings=vectors)
        if not texts:
            return []
        rows = [_row(inner, *each) for each in zip(ids, texts, vectors, metadatas, strict=True)]
        async with inner.engine.connect() as connection:
            if is_autocommit(await connection.get_raw_connection()):
                await connection.execution_options(isolation_level="READ COMMITTED")
            async with connection.begin():
                table = await self._staged_table(connection)
                await write_rows_async(connection, table, rows)
        return ids

    async def _run_as_async(self, work: Coroutine[Any, Any, list[str]]) -> list[str]:
        return await _private(_private(self, PRIVATE_ENGINE), PRIVATE_RUN_AS_ASYNC)(work)

    def _run_as_sync(self, work: Coroutine[Any, Any, list[str]]) -> list[str]:
        return _private(_private(self, PRIVATE_ENGINE), PRIVATE_RUN_AS_SYNC)(work)

    async def _staged_table(self, connection: Any) -> StagedTable:
        inner = _private(self, PRIVATE_STORE)
        parameters = {"schema": inner.schema_name, "name": inner.table_name}
        found = await connection.execute(text(COLUMN_TYPES), parameters)
        hybrid = inner.hybrid_search_config
        return StagedTable(
            schema=inner.schema_name,
            name=inner.table_name,
            id=inner.id_column,
            content=inner.content_column,
            embedding=inner.embedding_column,
            metadata=inner.metadata_json_column or None,
            types={name: (kind, schema) for name, kind, schema in found},
            metadata_columns=tuple(inner.metadata_columns),
            tsv_column=(hybrid.tsv_column or None) if hybrid else None,
            tsv_config=(hybrid.tsv_lang or None) if hybrid else None,
        )


def _private(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        msg = (
            f"`BulkPGVectorStore` needs `{type(owner).__name__}.{name}`, which langchain-postgres "
            f"{version('langchain-postgres')} does not have. Use `PGVectorStore`, or install "
            f"langchain-postgres {CHECKED_RELEASE}."
        )
        raise RuntimeError(msg) from None


async def _embed(service: Any, texts: list[str]) -> Sequence[Sequence[float]]:
    # The client of `Qwen3TritonEmbeddings` returns float32 arrays instead of Python floats.
    clients = getattr(service, "clients", None)
    if texts and type(service).__name__ == "Qwen3TritonEmbeddings" and callable(clients):
        _, client = cast("tuple[Any, Any]", clients())
        return (await client.embed(texts)).vectors
    return await service.aembed_documents(texts)


def _columns(
    documents: Iterable[Document], ids: list[Any] | None
) -> tuple[list[str], list[dict[str, Any]], list[Any]]:
    listed = list(documents)
    metadatas: list[dict[str, Any]] = [document.metadata for document in listed]
    return (
        [document.page_content for document in listed],
        metadatas,
        ids or [document.id for document in listed],
    )


def _row(
    inner: Any, each: Any, content: str, vector: Sequence[float], metadata: dict[str, Any] | None
) -> StagedRow:
    metadata = metadata or {}
    columns = {name: metadata[name] for name in inner.metadata_columns if name in metadata}
    rest = {name: value for name, value in metadata.items() if name not in columns}
    return StagedRow(
        id=str(each),
        content=content,
        vector=as_float32(vector),
        metadata=json.dumps(rest) if inner.metadata_json_column else None,
        columns=_columns_json(columns) if inner.metadata_columns else None,
    )


def _columns_json(columns: dict[str, Any]) -> str:
    # JSON has no NaN and no infinity; PostgreSQL reads them from text.
    written = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in columns.items()
    }
    return json.dumps(written, default=_as_text)


def _as_text(value: object) -> str:
    if isinstance(value, date | time):  # and `datetime`, which is a `date`
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    msg = f"Metadata of type {type(value).__name__} cannot be stored in a column of PostgreSQL."
    raise TypeError(msg)


def _check_lengths(texts: list[str], **others: Sequence[Any]) -> None:
    for name, values in others.items():
        if len(values) != len(texts):
            msg = f"`{name}` has {len(values)} items for {len(texts)} texts. Nothing was stored."
            raise ValueError(msg)
