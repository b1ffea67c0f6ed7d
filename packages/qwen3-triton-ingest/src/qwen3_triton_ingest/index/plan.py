"""Whether an index is kept or built, and with how much memory. Pure functions of numbers."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ..config import IndexPolicy

__all__ = [
    "MAX_BUILD_MEMORY_BYTES",
    "MIN_BUILD_MEMORY_BYTES",
    "IndexPlan",
    "build_memory_bytes",
    "decide",
    "memory_limit_bytes",
]

IndexPlan: TypeAlias = Literal["keep", "drop and rebuild", "build after"]
"""What becomes of the vector index: left as it is, dropped now and built after, or built after."""

MIB, GIB = 1024**2, 1024**3

# Measured with 1,024 dimensions, m = 16 and ef_construction = 64 on two cores: rows that one
# connection adds in a second to a table with an HNSW index, and that a build adds.
INSERTED_ROWS_PER_SECOND = 530
BUILT_ROWS_PER_SECOND = 2300
# Below this an insertion takes ten seconds, and every search meanwhile has its index.
MIN_ROWS_TO_REBUILD = 5000

MIN_BUILD_MEMORY_BYTES = 64 * MIB  # PostgreSQL's own default
MAX_BUILD_MEMORY_BYTES = 8 * GIB
_UNKNOWN_SERVER_MEMORY_BYTES = GIB
# Of an element of the graph beside its vector: 16 bytes for each of the 2 m neighbours, and what
# holds them. Measured with m = 16: 4,816 bytes a row of `vector(1024)`, 2,763 of `halfvec(1024)`,
# 1,740 of `vector(256)`, 1,228 of `halfvec(256)`.
_NEIGHBOUR_BYTES, _ELEMENT_BYTES = 16, 208
# Rows come while it is built, and a parallel build leaves some 4 MB of its memory aside.
_MARGIN = 1.15


def decide(
    policy: IndexPolicy, *, rows_before: int, rows_added: int, index_exists: bool
) -> IndexPlan:
    """Say what a load does with the vector index, given what it has added so far.

    "auto" rebuilds where building all rows anew takes less time than adding these rows to the
    index: where they are more than about 30 % of the rows before, a quarter of all. Fewer than
    5,000 rows are always added. A dropped index leaves searches exact and slow until it is built.

    Args:
        policy: What the user chose; "none" never touches an index.
        rows_before: Rows when the load began.
        rows_added: Rows that the load has written so far, or is known to write.
        index_exists: Whether the table has a vector index now.
    """
    if policy == "none":
        return "keep"
    if not index_exists:
        return "build after"
    if policy == "rebuild":
        return "drop and rebuild"
    if policy == "keep" or rows_added < MIN_ROWS_TO_REBUILD:
        return "keep"
    seconds_to_insert = rows_added / INSERTED_ROWS_PER_SECOND
    seconds_to_build = (rows_before + rows_added) / BUILT_ROWS_PER_SECOND
    return "drop and rebuild" if seconds_to_insert > seconds_to_build else "keep"


def build_memory_bytes(
    rows: int, *, dimensions: int, bytes_per_dimension: int, m: int, limit: int
) -> int:
    """Return the `maintenance_work_mem` that holds the graph of so many rows, within bounds.

    A graph that does not fit is finished on disk, at about half the speed. A parallel build
    claims all of the memory as it begins, so there is no use in more than the rows need.

    Args:
        rows: Rows of the table, estimated.
        dimensions: Length of a vector.
        bytes_per_dimension: 4 for `vector`, 2 for `halfvec`.
        m: Neighbours of an element in the graph's upper layers.
        limit: Most to take, as `memory_limit_bytes` gives it.
    """
    row_bytes = dimensions * bytes_per_dimension + 2 * m * _NEIGHBOUR_BYTES + _ELEMENT_BYTES
    needed = int(rows * row_bytes * _MARGIN)
    return max(MIN_BUILD_MEMORY_BYTES, min(needed, limit))


def memory_limit_bytes(*, shared_buffers: int, maintenance_work_mem: int) -> int:
    """Return the most memory that a build may take on this server.

    The server may be another machine, whose memory cannot be asked. By custom a quarter of it is
    `shared_buffers`, and as much again is a fair share for a build; the default of 128 MB says
    nothing, and 1 GB is taken then. An administrator who set more for maintenance meant it.
    """
    share = max(shared_buffers, _UNKNOWN_SERVER_MEMORY_BYTES)
    return max(maintenance_work_mem, min(share, MAX_BUILD_MEMORY_BYTES))
