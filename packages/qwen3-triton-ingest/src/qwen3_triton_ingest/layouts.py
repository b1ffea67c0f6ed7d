"""The tables that can be filled: our own, LangChain's and LlamaIndex'. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from psycopg import sql

__all__ = [
    "LAYOUTS",
    "MAX_NAME_BYTES",
    "JsonType",
    "Layout",
    "LayoutName",
    "Table",
    "VectorType",
    "fit_name",
]

LayoutName: TypeAlias = Literal["own", "langchain", "llamaindex"]
VectorType: TypeAlias = Literal["vector", "halfvec"]
JsonType: TypeAlias = Literal["json", "jsonb"]

MAX_NAME_BYTES = 63  # NAMEDATALEN - 1 of every common build

# What `HybridSearchConfig` of langchain-postgres indexes texts with, unless told otherwise.
LANGCHAIN_TEXT_SEARCH_CONFIG = "pg_catalog.english"


@dataclass(frozen=True, slots=True)
class Layout:
    """Name the columns of a kind of table."""

    name: LayoutName
    table_prefix: str
    """What stands before the name that the user gives."""
    id: str
    id_type: str
    content: str
    metadata: str
    embedding: str
    doc_id: str
    """SQL expression of a row's document id, as text."""
    seq: str
    """SQL expression of a row's place in its document, as integer."""
    own_metadata_keys: tuple[str, ...] = ()
    """Keys in the metadata column that the layout itself writes."""


OWN = Layout(
    name="own",
    table_prefix="",
    id="id",
    id_type="uuid",
    content="content",
    metadata="metadata",
    embedding="embedding",
    doc_id="doc_id",
    seq="seq",
)
# The names are `PGEngine.init_vectorstore_table`'s in langchain-postgres 0.0.19.
LANGCHAIN = Layout(
    name="langchain",
    table_prefix="",
    id="langchain_id",
    id_type="uuid",
    content="content",
    metadata="langchain_metadata",
    embedding="embedding",
    doc_id="langchain_metadata->>'doc_id'",
    seq="(langchain_metadata->>'seq')::integer",
    own_metadata_keys=("doc_id", "seq"),
)
# The names are `get_data_model`'s in llama-index-vector-stores-postgres 0.9.
LLAMAINDEX = Layout(
    name="llamaindex",
    table_prefix="data_",
    id="node_id",
    id_type="varchar",
    content="text",
    metadata="metadata_",
    embedding="embedding",
    doc_id="metadata_->>'ref_doc_id'",
    seq="(metadata_->>'seq')::integer",
    own_metadata_keys=(
        "_node_content",
        "_node_type",
        "document_id",
        "doc_id",
        "ref_doc_id",
        "seq",
    ),
)
LAYOUTS: dict[LayoutName, Layout] = {layout.name: layout for layout in (OWN, LANGCHAIN, LLAMAINDEX)}


@dataclass(frozen=True, slots=True)
class Table:
    """Name a table in PostgreSQL and say what its columns are."""

    schema: str
    name: str
    """As it is in PostgreSQL, the layout's prefix included."""
    layout: Layout
    dimensions: int
    vector_type: VectorType = "vector"
    vector_schema: str = "public"
    """Where the extension's types are."""
    metadata_type: JsonType = "jsonb"
    metadata_columns: tuple[str, ...] = ()
    """Further columns of a LangChain table; each takes the metadata key of its name."""
    tsv_column: str | None = None
    """Column of a LangChain table that holds the text's `tsvector`, written with the row."""
    tsv_config: str | None = LANGCHAIN_TEXT_SEARCH_CONFIG
    """Text search configuration of `tsv_column`; None: the database's."""

    @property
    def identifier(self) -> sql.Identifier:
        """Return the quoted, qualified name."""
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def fit_name(stem: str, suffix: str) -> str:
    """Join both, cutting the stem to what PostgreSQL takes as a name."""
    room = MAX_NAME_BYTES - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore") + suffix
