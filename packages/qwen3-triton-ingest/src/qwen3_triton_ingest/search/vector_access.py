"""By which index the nearest vectors are found. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql
from psycopg.adapt import PyFormat

from ..index.catalog import VectorIndex
from ..layouts import Table
from .filters import ROW

__all__ = ["VectorAccess", "exact_distance", "vector_access"]

# The vectors are of norm 1, so cosine distance, inner product and L2 distance order them alike.
_OPERATORS: dict[str, LiteralString] = {"cosine_ops": "<=>", "ip_ops": "<#>", "l2_ops": "<->"}
_PREFERRED = ("halfvec_cosine_ops", "vector_cosine_ops")
_QUESTION = sql.Placeholder("vector", format=PyFormat.BINARY)


@dataclass(frozen=True, slots=True)
class VectorAccess:
    """Say how the nearest rows are found."""

    order: sql.Composable
    """What to order by; the index serves no other expression."""
    method: str | None = None
    """Of the index, `hnsw` or `ivfflat`; None where all rows are read."""


def vector_access(table: Table, indexes: Sequence[VectorIndex]) -> VectorAccess:
    """Return how the nearest rows are found: by the best index of those there are."""
    usable: list[tuple[int, VectorAccess]] = []
    for index in indexes:
        order = _order(table, index) if index.valid else None
        if order is not None:
            place = _PREFERRED.index(index.opclass) if index.opclass in _PREFERRED else 2
            usable.append((place, VectorAccess(order, index.method)))
    if not usable:
        return VectorAccess(exact_distance(table))
    return min(usable, key=lambda each: each[0])[1]


def exact_distance(table: Table, *, of: str = ROW) -> sql.Composable:
    """Return the cosine distance at the column's own precision."""
    column = sql.Identifier(of, table.layout.embedding)
    return sql.SQL("{} <=> {}").format(column, _question(table, table.vector_type))


def _order(table: Table, index: VectorIndex) -> sql.Composable | None:
    """Return the distance in the form that the index serves, None for a kind we do not know."""
    name = re.escape(sql.Identifier(table.layout.embedding).as_string(None).strip('"'))
    kind, _, metric = index.opclass.partition("_")
    operator = _OPERATORS.get(metric)
    if operator is None or kind not in ("vector", "halfvec"):
        return None
    column: sql.Composable = sql.Identifier(ROW, table.layout.embedding)
    if not re.fullmatch(rf'"?{name}"?', index.expression):
        halved = rf'\(\(?"?{name}"?\)?::(?:\S+\.)?halfvec\({table.dimensions}\)\)'
        if not re.fullmatch(halved, index.expression):
            return None
        column = sql.SQL("{}::halfvec({})").format(column, table.dimensions)
    return sql.SQL("{} {} {}").format(column, sql.SQL(operator), _question(table, kind))


def _question(table: Table, kind: str) -> sql.Composable:
    question = sql.SQL("{}::vector").format(_QUESTION)
    if kind == "halfvec":
        return sql.SQL("{}::halfvec({})").format(question, table.dimensions)
    return question
