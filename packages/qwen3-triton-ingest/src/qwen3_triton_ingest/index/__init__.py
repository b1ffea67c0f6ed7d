"""Indexes that nearest neighbours are found by: which there are, and building them."""

from .build import OnIndexProgress, OnNotice, build_index, build_vector_index
from .catalog import VectorIndex, drop_vector_indexes, find_vector_indexes
from .plan import IndexPlan, build_memory_bytes, decide
from .progress import IndexProgress, index_progress
from .statement import BuildStatement, uses_halfvec, vector_index_name

__all__ = [
    "BuildStatement",
    "IndexPlan",
    "IndexProgress",
    "OnIndexProgress",
    "OnNotice",
    "VectorIndex",
    "build_index",
    "build_memory_bytes",
    "build_vector_index",
    "decide",
    "drop_vector_indexes",
    "find_vector_indexes",
    "index_progress",
    "uses_halfvec",
    "vector_index_name",
]
