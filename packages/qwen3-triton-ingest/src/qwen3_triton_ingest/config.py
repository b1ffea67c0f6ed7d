"""What the user chooses, as values that can be sent to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .layouts import LayoutName

__all__ = [
    "Engine",
    "GatewayOptions",
    "IndexOptions",
    "IndexPolicy",
    "LoadOptions",
    "ReadOptions",
    "SourceFormat",
    "SplitOptions",
    "TextIndex",
    "VanishedPolicy",
]

SourceFormat: TypeAlias = Literal[
    "jsonl", "csv", "parquet", "text", "markdown", "html", "pdf", "sql"
]
Engine: TypeAlias = Literal["threads", "ray", "dask"]
IndexPolicy: TypeAlias = Literal["auto", "keep", "rebuild", "none"]
TextIndex: TypeAlias = Literal["auto", "tsvector", "paradedb", "pg_textsearch", "none"]
VanishedPolicy: TypeAlias = Literal["delete", "keep"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Say how sources are read."""

    format: SourceFormat | None = None
    """None: by each file's name."""
    text_column: str = "text"
    id_column: str | None = None
    """None: the column `id` where a record has it, else a digest of its text."""
    metadata_columns: tuple[str, ...] | None = None
    """None: every column but the text, the id and the vector."""
    vector_column: str | None = None
    """Vectors computed before: lists of numbers. The texts are then not split or embedded."""
    encoding: str = "utf-8"
    replace_nul: bool = False
    """Whether NUL characters, which PostgreSQL cannot hold, become U+FFFD or are refused."""
    max_document_bytes: int = 32 * MIB
    max_metadata_bytes: int = 64 * 1024
    query: str | None = None
    """Rows to load, read from the database of the source's URI."""


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """Say how documents are cut into chunks."""

    chunk_tokens: int = 512
    """Most tokens of a chunk, the end token included; 0 leaves documents whole."""
    overlap_tokens: int = 64
    tokenizer_path: str | None = None
    """A `tokenizer.json`; None asks the gateway for its own."""


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Say how the gateway is reached; None leaves it to the client's variables and defaults."""

    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    max_concurrency: int = 16
    """Requests under way at once, over all workers."""
    instruction: str | None = None
    """Embeds the texts as queries, for tasks where both sides are alike; else as documents."""
    dimensions: int | None = None
    truncate: bool = False
    """Whether a chunk that is too long for the model is cut, or refused."""


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """Say which indexes the table gets after the load."""

    policy: IndexPolicy = "auto"
    """auto: rebuild where the new rows are many beside the old ones, else keep."""
    halfvec: bool = True
    """Index half-precision values: a third of the size at equal recall."""
    m: int = 16
    ef_construction: int = 64
    maintenance_work_mem: str | None = None
    """PostgreSQL's size, such as `2GB`; None: what the rows need, within bounds."""
    parallel_workers: int | None = None
    """None: as many as the server lets one build have."""
    concurrently: bool = False
    text: TextIndex = "auto"
    text_search_config: str = "english"
    """PostgreSQL's, for the language of the texts; `simple` takes words as they stand."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Say all of a load but what it loads and where to."""

    layout: LayoutName = "own"
    read: ReadOptions = field(default_factory=ReadOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    gateway: GatewayOptions = field(default_factory=GatewayOptions)
    index: IndexOptions = field(default_factory=IndexOptions)
    engine: Engine = "threads"
    engine_address: str | None = None
    """Of the Ray or Dask cluster; None starts or finds one as the engine does by itself."""
    workers: int = 2
    """Shards under way at once."""
    vanished: VanishedPolicy = "delete"
    max_vanished_fraction: float = 0.2
    """Of a source's documents; if more have vanished, none is removed."""
    adopt: bool = False
    """Whether to take over a table with rows of unknown origin, vouching for its vectors."""
    fingerprint: str | None = None
    """Of vectors that were computed before."""
    retry_seconds: float = 120.0
    """How long PostgreSQL may be away."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """Metadata that every document gets."""
