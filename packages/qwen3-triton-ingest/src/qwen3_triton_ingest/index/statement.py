"""The statement that makes a vector index. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from ..config import IndexOptions
from ..errors import TableError
from ..layouts import Table, fit_name

__all__ = [
    "BuildStatement",
    "check_options",
    "uses_halfvec",
    "vector_index_name",
    "vector_index_statement",
]

# What pgvector's HNSW allows.
MAX_DIMENSIONS = {"vector": 2000, "halfvec": 4000}
M_RANGE, EF_CONSTRUCTION_RANGE = (2, 100), (4, 1000)
MAX_PARALLEL_WORKERS = 1024

# With these names the frameworks know that there is an index: LlamaIndex does not build a second
# one, and LangChain's `is_valid_index`, `reindex` and `drop_vector_index` find it by default.
_NAME_SUFFIXES = {
    "own": "_embedding_hnsw",
    "langchain": "langchainvectorindex",
    "llamaindex": "_embedding_idx",
}


@dataclass(frozen=True, slots=True)
class BuildStatement:
    """Say how one index is made; `tail` is all that follows `USING`."""

    name: str
    tail: sql.Composable
    method: str = "hnsw"
    unique: bool = False
    bytes_per_dimension: int = 4
    m: int = 16

    def compose(self, table: Table, name: str, *, concurrently: bool = False) -> sql.Composed:
        """Return the statement that makes the index under a name."""
        return sql.SQL("CREATE {}INDEX {}{} ON {} USING {}").format(
            sql.SQL("UNIQUE " if self.unique else ""),
            sql.SQL("CONCURRENTLY " if concurrently else ""),
            sql.Identifier(name),
            table.identifier,
            self.tail,
        )


def vector_index_statement(table: Table, options: IndexOptions) -> BuildStatement:
    """Return how the HNSW index of a table is made.

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
    """Tell whether the index holds half-precision values.

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
    """Compare the options with what pgvector allows.

    Raises:
        ValueError: One is out of range.
    """
    _check_range("m", options.m, M_RANGE)
    _check_range("ef_construction", options.ef_construction, EF_CONSTRUCTION_RANGE)
    if options.ef_construction < 2 * options.m:
        msg = (
            f"`ef_construction` is {options.ef_construction}; with `m` = {options.m} it must be "
            f"{2 * options.m} or more"
        )
        raise ValueError(msg)
    if options.parallel_workers is not None:
        _check_range("parallel_workers", options.parallel_workers, (0, MAX_PARALLEL_WORKERS))


def _check_range(name: str, value: int, allowed: tuple[int, int]) -> None:
    low, high = allowed
    if not low <= value <= high:
        raise ValueError(f"`{name}` is {value}; allowed are {low} to {high}")


def _too_long(table: Table, kind: str) -> str:
    limit = MAX_DIMENSIONS[kind]
    ways = f"embed with at most {limit} `--dimensions`"
    if kind == "vector" and table.dimensions <= MAX_DIMENSIONS["halfvec"]:
        ways = f"index half precision, which takes {MAX_DIMENSIONS['halfvec']}, or {ways}"
        if table.layout.name != "own":
            ways = f"use a `halfvec` column, which takes {MAX_DIMENSIONS['halfvec']}, or {ways}"
    return (
        f"the vectors of {table} have {table.dimensions} dimensions, and an HNSW index on "
        f"`{kind}` takes at most {limit}: {ways}. Without an index (`--index none`) searches are "
        "exact, and slow on large tables"
    )
