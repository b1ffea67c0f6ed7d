"""The index choices to measure, and the queries that use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

__all__ = ["CHOICES", "EXACT", "HALF", "Choice"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to find neighbors: the table, the index, and the query that uses it."""

    name: str
    table: LiteralString
    index: LiteralString | None
    query: LiteralString
    bytes_per_dimension: int = 4


_WITH: LiteralString = " WITH (m = 16, ef_construction = 64)"
_SELECT: LiteralString = "SELECT id FROM {table} {where} ORDER BY "
EXACT = Choice("exact", "full_precision", None, _SELECT + "embedding <=> %s::vector LIMIT 10")
HALF = Choice(
    "HNSW, half-precision expression",
    "full_precision",
    "hnsw ((embedding::halfvec(1024)) halfvec_cosine_ops)" + _WITH,
    _SELECT + "embedding::halfvec(1024) <=> %s::vector::halfvec(1024) LIMIT 10",
    2,
)
CHOICES = (
    EXACT,
    Choice(
        "HNSW, full precision",
        "full_precision",
        "hnsw (embedding vector_cosine_ops)" + _WITH,
        _SELECT + "embedding <=> %s::vector LIMIT 10",
    ),
    HALF,
    Choice(
        "HNSW, halfvec column",
        "half_precision",
        "hnsw (embedding halfvec_cosine_ops)" + _WITH,
        _SELECT + "embedding <=> %s::vector::halfvec(1024) LIMIT 10",
        2,
    ),
    Choice(
        "HNSW, bits, the best 100 reranked",
        "full_precision",
        "hnsw ((binary_quantize(embedding)::bit(1024)) bit_hamming_ops)" + _WITH,
        "WITH q AS MATERIALIZED (SELECT %s::vector AS v), near AS MATERIALIZED (SELECT id, "
        "embedding FROM {table} {where} ORDER BY binary_quantize(embedding)::bit(1024) <~> "
        "(SELECT binary_quantize(v)::bit(1024) FROM q) LIMIT 100) "
        "SELECT id FROM near ORDER BY embedding <=> (SELECT v FROM q) LIMIT 10",
        1,
    ),
)
