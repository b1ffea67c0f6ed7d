"""The table layouts that can be loaded and searched: ours, LangChain's, LlamaIndex's. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from psycopg import sql

LayoutName: TypeAlias = Literal["own", "langchain", "llamaindex"]
AnyLayoutName: TypeAlias = LayoutName | Literal["langchain-v1"]
VectorType: TypeAlias = Literal["vector", "halfvec"]
JsonType: TypeAlias = Literal["json", "jsonb"]

MAX_NAME_BYTES = 63  # NAMEDATALEN - 1 in every common build

# The default of langchain-postgres' `HybridSearchConfig`.
LANGCHAIN_TEXT_SEARCH_CONFIG = "pg_catalog.english"


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a kind of table.

    Attributes:
        table_prefix: Comes before the name that the user gives.
        primary_key: Column of the primary key.
        doc_id: SQL expression for the id of a row's document, as text.
        seq: SQL expression for a row's position in its document, as integer.
        own_metadata_keys: Keys in the metadata column that the layout itself writes.
    """

    name: AnyLayoutName
    table_prefix: str
    id: str
    id_type: str
    primary_key: str
    content: str
    metadata: str
    embedding: str
    doc_id: str
    seq: str
    own_metadata_keys: tuple[str, ...] = ()


OWN = Layout(
    name="own",
    table_prefix="",
    id="id",
    id_type="uuid",
    primary_key="id",
    content="content",
    metadata="metadata",
    embedding="embedding",
    doc_id="doc_id",
    seq="seq",
)
# Names from `PGEngine.init_vectorstore_table` in langchain-postgres 0.0.19.
LANGCHAIN = Layout(
    name="langchain",
    table_prefix="",
    id="langchain_id",
    id_type="uuid",
    primary_key="langchain_id",
    content="content",
    metadata="langchain_metadata",
    embedding="embedding",
    doc_id="langchain_metadata->>'doc_id'",
    seq="(langchain_metadata->>'seq')::integer",
    own_metadata_keys=("doc_id", "seq"),
)
# Keys that LlamaIndex writes for itself (`node_to_metadata_dict` of llama-index-core 0.14).
# `test_the_private_keys_of_llamaindex_exist` says what to do when they change.
NODE_CONTENT, NODE_TYPE = "_node_content", "_node_type"
# Names from `get_data_model` in llama-index-vector-stores-postgres 0.9.
LLAMAINDEX = Layout(
    name="llamaindex",
    table_prefix="data_",
    id="node_id",
    id_type="varchar",
    primary_key="id",
    content="text",
    metadata="metadata_",
    embedding="embedding",
    doc_id="metadata_->>'ref_doc_id'",
    seq="(metadata_->>'seq')::integer",
    own_metadata_keys=(
        NODE_CONTENT,
        NODE_TYPE,
        "document_id",
        "doc_id",
        "ref_doc_id",
        "seq",
    ),
)
LAYOUTS: dict[LayoutName, Layout] = {
    "own": OWN,
    "langchain": LANGCHAIN,
    "llamaindex": LLAMAINDEX,
}
# Names from `langchain_postgres.PGVector`, and `langchain_community.vectorstores.PGVector` before
# it. One table holds all collections; it is searched, but not written to.
LANGCHAIN_V1 = Layout(
    name="langchain-v1",
    table_prefix="",
    id="id",
    id_type="text",
    primary_key="id",
    content="document",
    metadata="cmetadata",
    embedding="embedding",
    doc_id="cmetadata->>'doc_id'",
    seq="(cmetadata->>'seq')::integer",
    own_metadata_keys=("doc_id", "seq"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table in PostgreSQL.

    Attributes:
        name: As in PostgreSQL, with the layout's prefix.
        vector_schema: Schema of the extension's types.
        metadata_columns: More columns of a LangChain table; each stores the metadata of its name.
        tsv_column: Column of a LangChain table for the text's `tsvector`, written with the row.
        tsv_config: Text search configuration of `tsv_column`; None: the database's.
        collection: The rows of one collection, as a subquery; None: the table has no collections.
    """

    schema: str
    name: str
    layout: Layout
    dimensions: int
    vector_type: VectorType = "vector"
    vector_schema: str = "public"
    metadata_type: JsonType = "jsonb"
    metadata_columns: tuple[str, ...] = ()
    tsv_column: str | None = None
    tsv_config: str | None = LANGCHAIN_TEXT_SEARCH_CONFIG
    collection: sql.Composed | None = None

    @property
    def identifier(self) -> sql.Identifier:
        """The quoted, qualified name."""
        return sql.Identifier(self.schema, self.name)

    @property
    def escaped_identifier(self) -> sql.Identifier:
        """The same for a statement that is executed with parameters."""
        return escaped_identifier(self.schema, self.name)

    @property
    def rows(self) -> sql.Composable:
        """What a query reads from, escaped likewise."""
        return self.collection or self.escaped_identifier

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def escaped_identifier(*names: str) -> sql.Identifier:
    """Return a quoted name for a statement that is executed with parameters.

    psycopg then looks for placeholders inside of names, too.
    """
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


def fit_name(stem: str, suffix: str) -> str:
    """Join both, truncating the stem to the longest name that PostgreSQL allows."""
    room = MAX_NAME_BYTES - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore") + suffix
