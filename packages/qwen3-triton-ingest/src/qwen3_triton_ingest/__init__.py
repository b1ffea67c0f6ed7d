"""Bulk loading of Qwen3-Embedding vectors into pgvector and ParadeDB, and search."""

from ._version import __version__
from .config import (
    GatewayOptions,
    IndexOptions,
    LoadOptions,
    ReadOptions,
    SplitOptions,
)
from .errors import (
    BusyError,
    ConflictError,
    DatabaseError,
    FilterError,
    FingerprintError,
    IngestError,
    NothingLoadedError,
    SourceError,
    TableError,
)
from .load import LoadProgress, LoadReport, load
from .reembed import ReembedReport, abandon_reembed, reembed
from .search import Hit, Searcher, search
from .status import TableStatus, status

__all__ = [
    "BusyError",
    "ConflictError",
    "DatabaseError",
    "FilterError",
    "FingerprintError",
    "GatewayOptions",
    "Hit",
    "IndexOptions",
    "IngestError",
    "LoadOptions",
    "LoadProgress",
    "LoadReport",
    "NothingLoadedError",
    "ReadOptions",
    "ReembedReport",
    "Searcher",
    "SourceError",
    "SplitOptions",
    "TableError",
    "TableStatus",
    "__version__",
    "abandon_reembed",
    "load",
    "reembed",
    "search",
    "status",
]
