"""Vector, text and hybrid search with metadata filters."""

from .filter_text import parse_filters
from .filters import Condition, Filter, compile_filter
from .options import Hit, SearchMode, SearchOptions
from .queries import VectorAccess, search_sql, vector_access
from .searcher import Searcher, search
from .text_access import TextAccess, find_text_access
from .text_indexes import (
    TextBackend,
    TextBackendChoice,
    TextIndex,
    create_text_index,
    detect_text_backend,
    drop_text_indexes,
    find_text_index_for,
    find_text_indexes,
    text_index_statement,
)

__all__ = [
    "Condition",
    "Filter",
    "Hit",
    "SearchMode",
    "SearchOptions",
    "Searcher",
    "TextAccess",
    "TextBackend",
    "TextBackendChoice",
    "TextIndex",
    "VectorAccess",
    "compile_filter",
    "create_text_index",
    "detect_text_backend",
    "drop_text_indexes",
    "find_text_access",
    "find_text_index_for",
    "find_text_indexes",
    "parse_filters",
    "search",
    "search_sql",
    "text_index_statement",
    "vector_access",
]
