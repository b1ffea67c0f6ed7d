"""Which index a table gets, when it is built, and with how much memory. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from psycopg import sql

from ..config import IndexOptions, IndexPolicy
from ..errors import TableError
from ..layouts import Table, fit_name

IndexPlan: TypeAlias = Literal["keep", "drop and rebuild", "build after"]
"""What a load does with the vector index: nothing, drop it and build one at the end, or build."""

MIB, GIB = 1024**2, 1024**3

# Measured with 1,024 dimensions, m = 16 and ef_construction = 64 on two cores: rows per second that
# one connection adds to a table with an HNSW index, and that a build adds.
INSERTED_ROWS_PER_SECOND = 530
BUILT_ROWS_PER_SECOND = 2300
# Fewer rows than this are inserted in ten seconds, and searches keep their index.
MIN_ROWS_TO_REBUILD = 5000

MIN_BUILD_MEMORY_BYTES = 64 * MIB  # PostgreSQL's own default
MAX_BUILD_MEMORY_BYTES = 8 * GIB
_UNKNOWN_SERVER_MEMORY_BYTES = GIB
# An element of the graph has its vector, 16 bytes for each of 2 m neighbors, and some overhead.
# Measured with m = 16: 4,816 bytes per row of `vector(1024)`, 2,763 of `halfvec(1024)`, 1,740 of
# `vector(256)`, 1,228 of `halfvec(256)`.
_NEIGHBOR_BYTES, _ELEMENT_BYTES = 16, 208
# Rows are added while it is built, and a parallel build leaves about 4 MB of its memory unused.
_MARGIN = 1.15

# What pgvector's HNSW allows.
MAX_DIMENSIONS = {"vector": 2000, "halfvec": 4000}
M_RANGE, EF_CONSTRUCTION_RANGE = (2, 100), (4, 1000)
MAX_PARALLEL_WORKERS = 1024

# The frameworks recognize their index by these names: LlamaIndex does not build a second one, and
# LangChain's `is_valid_index`, `reindex` and `drop_vector_index` find it by default.
_NAME_SUFFIXES = {
    "own": "_embedding_hnsw",
    "langchain": "langchainvectorindex",
    "llamaindex": "_embedding_idx",
}


@dataclass(frozen=True, slots=True)
class BuildStatement:
    """How one index is created.

    Attributes:
        name: The index's name.
        tail: Everything that follows `USING`.
        method: `hnsw`, `btree` and so on.
        unique: Whether it is a unique index.
        bytes_per_dimension: Size of a vector's elements in it.
        m: Neighbors of an element in the graph's upper layers.
    """

    name: str
    tail: sql.Composable
    method: str = "hnsw"
    unique: bool = False
    bytes_per_dimension: int = 4
    m: int = 16

    def compose(self, table: Table, name: str, *, concurrently: bool = False) -> sql.Composed:
        """Return the statement that creates the index under a name."""
        return sql.SQL("CREATE {}INDEX {}{} ON {} USING {}").format(
            sql.SQL("UNIQUE " if self.unique else ""),
            sql.SQL("CONCURRENTLY " if concurrently else ""),
            sql.Identifier(name),
            table.identifier,
            self.tail,
        )


def decide(
    policy: IndexPolicy, *, rows_before: int, rows_added: int, index_exists: bool
) -> IndexPlan:
    """Return what a load does with the vector index, given what it has added so far.

    "auto" rebuilds if building an index of all rows takes less time than adding the new rows to the
    existing one: if they are more than about 30 % of the rows before, a quarter of all. Fewer than
    5,000 rows are always added. After an index is dropped, searches are exact and slow until one is
    built.

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
    """Return the `maintenance_work_mem` that holds the graph of this many rows, within bounds.

    A graph that does not fit is finished on disk, at about half the speed. A parallel build
    allocates all of the memory at its start, so more than the rows need is useless.

    Args:
        rows: Rows of the table, estimated.
        dimensions: Length of a vector.
        bytes_per_dimension: 4 for `vector`, 2 for `halfvec`.
        m: Neighbors of an element in the graph's upper layers.
        limit: Most to take, from `memory_limit_bytes`.
    """
    row_bytes = dimensions * bytes_per_dimension + 2 * m * _NEIGHBOR_BYTES + _ELEMENT_BYTES
    needed = int(rows * row_bytes * _MARGIN)
    return max(MIN_BUILD_MEMORY_BYTES, min(needed, limit))


def memory_limit_bytes(*, shared_buffers: int, maintenance_work_mem: int) -> int:
    """Return the most memory that a build may take on this server.

    The server may be another machine, whose memory cannot be queried. By convention a quarter of it
    is `shared_buffers`, and the same amount is a fair share for a build; if that is PostgreSQL's
    default of 128 MB, 1 GB is assumed. A larger `maintenance_work_mem` of the administrator counts.
    """
    share = max(shared_buffers, _UNKNOWN_SERVER_MEMORY_BYTES)
    return max(maintenance_work_mem, min(share, MAX_BUILD_MEMORY_BYTES))


def vector_index_statement(table: Table, options: IndexOptions) -> BuildStatement:
    """Return how the HNSW index of a table is created.

    Raises:
        ValueError: An option is out of range.
        TableError: The vectors are too long for it.
    """
    check_options(options)
    halfvec = uses_halfvec(table, options)
    kind = "halfvec" if halfvec else "vector"
    if table.dimensions > MAX_DIMENSIONS[kind]:
        raise TableError(_too_long(table, kind))
    column = sql.Identifier(table.layout.embedding)
    key = sql.SQL("{}").format(column)
    if halfvec and table.vector_type == "vector":
        type_name = sql.Identifier(table.vector_schema, kind)
        key = sql.SQL("({}::{}({}))").format(column, type_name, table.dimensions)
    opclass = sql.Identifier(table.vector_schema, f"{kind}_cosine_ops")
    tail = sql.SQL("hnsw ({} {}) WITH (m = {}, ef_construction = {})").format(
        key, opclass, options.m, options.ef_construction
    )
    width = 2 if halfvec else 4
    return BuildStatement(vector_index_name(table), tail, bytes_per_dimension=width, m=options.m)


def uses_halfvec(table: Table, options: IndexOptions) -> bool:
    """Return whether the index stores half-precision values.

    A `halfvec` column can be indexed in no other way. For the layouts of LangChain and LlamaIndex
    the plain column is indexed, whatever the option says: their stores order by
    `embedding <=> ...`, which an index on the expression would never serve.
    """
    if table.vector_type == "halfvec":
        return True
    return options.halfvec and table.layout.name == "own"


def vector_index_name(table: Table) -> str:
    """Return the name of a table's vector index."""
    return fit_name(table.name, _NAME_SUFFIXES[table.layout.name])


def check_options(options: IndexOptions) -> None:
    """Check the options against what pgvector allows.

    Raises:
        ValueError: One is out of range.
    """
    _check_range("m", options.m, M_RANGE)
    _check_range("ef_construction", options.ef_construction, EF_CONSTRUCTION_RANGE)
    if options.ef_construction < 2 * options.m:
        msg = (
            f"`ef_construction` is {options.ef_construction}; with `m` = {options.m} it must be "
            f"{2 * options.m} or more."
        )
        raise ValueError(msg)
    if options.parallel_workers is not None:
        _check_range("parallel_workers", options.parallel_workers, (0, MAX_PARALLEL_WORKERS))


def _check_range(name: str, value: int, allowed: tuple[int, int]) -> None:
    low, high = allowed
    if not low <= value <= high:
        raise ValueError(f"`{name}` is {value}; it must be from {low} to {high}.")


def _too_long(table: Table, kind: str) -> str:
    limit = MAX_DIMENSIONS[kind]
    ways = f"embed with at most {limit} `--dimensions`"
    if kind == "vector" and table.dimensions <= MAX_DIMENSIONS["halfvec"]:
        ways = f"index half precision, which takes {MAX_DIMENSIONS['halfvec']}, or {ways}"
        if table.layout.name != "own":
            ways = f"use a `halfvec` column, which takes {MAX_DIMENSIONS['halfvec']}, or {ways}"
    return (
        f"The vectors of {table} have {table.dimensions} dimensions, and an HNSW index on "
        f"`{kind}` takes at most {limit}: {ways}. Without an index (`--index none`), searches are "
        "exact, and slow on large tables."
    )
