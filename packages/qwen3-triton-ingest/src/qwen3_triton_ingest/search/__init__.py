"""Vector, text and hybrid search with metadata filters."""

from .filter_text import parse_filters
from .filters import Filter
from .options import Hit, SearchMode, SearchOptions
from .searcher import Searcher, search
from .text_indexes import (
    TextBackendChoice,
    create_text_index,
    find_text_index_for,
    find_text_indexes,
)

__all__ = [
    "Filter",
    "Hit",
    "SearchMode",
    "SearchOptions",
    "Searcher",
    "TextBackendChoice",
    "create_text_index",
    "find_text_index_for",
    "find_text_indexes",
    "parse_filters",
    "search",
]
