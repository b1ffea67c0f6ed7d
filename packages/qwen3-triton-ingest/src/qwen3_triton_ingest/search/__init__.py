"""Search by meaning, by words and by both, with metadata filters."""

from .filter_text import parse_filters
from .filters import Condition, Filter, compile_filter
from .hits import Hit
from .options import SearchMode, SearchOptions
from .queries import search_sql
from .searcher import Searcher, search
from .text_backends import TextAccess, TextBackend, TextBackendChoice
from .text_catalog import TextIndex, detect_text_backend, find_text_access, find_text_indexes
from .text_indexes import create_text_index, drop_text_indexes, text_index_statement
from .vector_access import VectorAccess, vector_access

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
    "find_text_indexes",
    "parse_filters",
    "search",
    "search_sql",
    "text_index_statement",
    "vector_access",
]
