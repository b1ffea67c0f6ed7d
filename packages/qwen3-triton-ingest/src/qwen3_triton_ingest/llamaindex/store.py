"""LlamaIndex's `PGVectorStore`, writing in bulk and never duplicating a node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Any, cast

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.schema import BaseNode, MetadataMode
    from llama_index.core.vector_stores.utils import node_to_metadata_dict
    from llama_index.vector_stores.postgres import PGVectorStore
except ImportError as _error:
    msg = "`BulkPGVectorStore` needs LlamaIndex: pip install 'qwen3-triton-ingest[llamaindex]'."
    raise ImportError(msg) from _error
from sqlalchemy import JSON, Connection, text
from sqlalchemy.exc import DBAPIError

from ..errors import TableError
from ..layouts import LLAMAINDEX
from ..queries import COLUMN_TYPES
from ..rows.binary import as_float32
from ..rows.staged import (
    StagedRow,
    StagedTable,
    is_autocommit,
    write_rows,
    write_rows_async,
)
from ..tables.preparation import (
    duplicates_message,
    not_unique_message,
    unique_index_query,
    unique_index_statement,
)

_LITERALLY = {"no_parameters": True}  # a percent sign in a name is not a placeholder
_UNIQUE_VIOLATION, _INSUFFICIENT_PRIVILEGE = "23505", "42501"


# The only private name of LlamaIndex that this package uses. It was checked with this release;
# `test_the_private_name_of_llamaindex_exists` says what to do when it moves.
CHECKED_RELEASE = "0.9.0"
PRIVATE_ENGINE = "_async_engine"


class BulkPGVectorStore(PGVectorStore):
    """Stores nodes like `PGVectorStore`, in the same tables, but in bulk and without duplicates.

    Everything except writing is inherited. As long as the table has no vector index, this is
    several times as fast: the original writes a vector as text, row by row. A node that already
    exists is replaced instead of duplicated; for that, the table gets a unique index on `node_id`
    before the first node is added. A call is one transaction: all of its nodes are stored, or none.
    """

    _staged_table: StagedTable | None = PrivateAttr(default=None)

    def add(self, nodes: Iterable[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes, replacing those with the same ids, and return all ids.

        Args:
            nodes: With embeddings; of several nodes with the same id, the last one wins.
            add_kwargs: Not used, as in `PGVectorStore`.

        Raises:
            TableError: The table is missing, or has several rows for one node.
            ValueError: A node has no embedding.
        """
        nodes = list(nodes)
        table, rows = self._prepare(nodes)
        with self.client.connect() as connection:
            if is_autocommit(connection.connection):
                connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                write_rows(connection, table, rows)
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Iterable[BaseNode], **kwargs: Any) -> list[str]:
        """Store nodes, replacing those with the same ids, and return all ids; see `add`."""
        nodes = list(nodes)
        table, rows = self._prepare(nodes)
        async with self._writing_engine().connect() as connection:
            if is_autocommit(await connection.get_raw_connection()):
                await connection.execution_options(isolation_level="READ COMMITTED")
            async with connection.begin():
                await write_rows_async(connection, table, rows)
        return [node.node_id for node in nodes]

    def _writing_engine(self) -> Any:
        engine = getattr(self, PRIVATE_ENGINE, None)
        if engine is None:
            package = "llama-index-vector-stores-postgres"
            msg = (
                f"`async_add` needs `PGVectorStore.{PRIVATE_ENGINE}`, which {package} "
                f"{version(package)} does not have. Use `add`, or install {package} "
                f"{CHECKED_RELEASE}."
            )
            raise RuntimeError(msg)
        return engine

    def _prepare(self, nodes: Sequence[BaseNode]) -> tuple[StagedTable, list[StagedRow]]:
        if self.client is None:
            super().add([])  # connects, and creates the table
        engine: Any = self.client
        # Serializes with the `json_serializer` of the engine, if it has one.
        dumps = cast("Callable[[Any], str]", JSON().bind_processor(engine.dialect))
        rows = [self._row(node, dumps) for node in nodes]
        if self._staged_table is None:
            with engine.connect() as connection, connection.begin():
                table = self._find_table(connection)
                self._make_node_ids_unique(connection)
            self._staged_table = table
        return self._staged_table, rows

    def _row(self, node: BaseNode, dumps: Callable[[Any], str]) -> StagedRow:
        # The function drops the embedding, but lists its numbers first, which is most of its time.
        bare = node.model_copy(update={"embedding": None})
        metadata = node_to_metadata_dict(bare, remove_text=True, flat_metadata=self.flat_metadata)
        return StagedRow(
            id=node.node_id,
            content=node.get_content(metadata_mode=MetadataMode.NONE),
            vector=as_float32(node.get_embedding()),
            metadata=dumps(metadata),
        )

    def _find_table(self, connection: Connection) -> StagedTable:
        name = LLAMAINDEX.table_prefix + self.table_name
        parameters = {"schema": self.schema_name, "name": name}
        found = connection.execute(text(COLUMN_TYPES), parameters)
        types = {column: (kind, schema) for column, kind, schema in found}
        if not types:
            msg = (
                f"The table {self.schema_name}.{name} does not exist. With "
                "`initialization_fail_on_error=True` the store reports why it could not create it."
            )
            raise TableError(msg)
        return StagedTable(
            schema=self.schema_name,
            name=name,
            id="node_id",
            content="text",
            embedding="embedding",
            metadata="metadata_",
            types=types,
        )

    def _make_node_ids_unique(self, connection: Connection) -> None:
        names = self.schema_name, LLAMAINDEX.table_prefix + self.table_name, "node_id"
        query = unique_index_query(*names).as_string(None)
        if connection.exec_driver_sql(query, execution_options=_LITERALLY).first():
            return
        if not self.perform_setup:
            raise TableError(not_unique_message(*names))
        statement = unique_index_statement(*names).as_string(None)
        try:
            connection.exec_driver_sql(statement, execution_options=_LITERALLY)
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
            if state == _UNIQUE_VIOLATION:
                raise TableError(duplicates_message(*names, newest="id")) from None
            if state == _INSUFFICIENT_PRIVILEGE:
                raise TableError(not_unique_message(*names)) from None
            raise
