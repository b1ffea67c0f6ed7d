"""LlamaIndex's `MetadataFilters` as a filter of this package."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from ..errors import FilterError
from ..search import Filter
from ..search.filters import LiteralKey, LooseNumber

_Compile: TypeAlias = Callable[[LiteralKey, Any], Filter]

_CONDITIONS = {
    FilterCondition.AND: "$and",
    FilterCondition.OR: "$or",
    FilterCondition.NOT: "$not",
}


def translate_filters(filters: MetadataFilters) -> Filter | None:
    """Return the filter that matches as LlamaIndex's `PGVectorStore` does; None if it is empty.

    That store compares metadata as text, so 2020 and "2020" are equal, and "true" is a boolean.

    Raises:
        FilterError: A filter is not valid.
    """
    parts = [
        translate_filters(each) if isinstance(each, MetadataFilters) else _translate(each)
        for each in filters.filters
    ]
    parts = [part for part in parts if part is not None]
    if not parts:
        return None
    return {_CONDITIONS[filters.condition or FilterCondition.AND]: parts}


def _translate(each: MetadataFilter) -> Filter:
    return _OPERATORS[each.operator](LiteralKey(each.key), each.value)


def _compared(operator: str) -> _Compile:
    def translate(key: LiteralKey, value: Any) -> Filter:
        number = _number(value)
        return {key: {operator: value if number is None else LooseNumber(number)}}

    return translate


def _member(operator: str) -> _Compile:
    def translate(key: LiteralKey, value: Any) -> Filter:
        return {key: {operator: [form for each in _listed(value) for form in _forms(each)]}}

    return translate


def _elements(combine: str) -> _Compile:
    def translate(key: LiteralKey, value: Any) -> Filter:
        values = _listed(value)
        if not values:
            msg = f"The filter on {str(key)!r} has an empty list."
            raise FilterError(msg)
        return {combine: [_contains(key, each) for each in values]}

    return translate


def _contains(key: LiteralKey, value: Any) -> Filter:
    return {"$or": [{key: {"$contains": form}} for form in _forms(value)]}


def _pattern(operator: str) -> _Compile:
    def translate(key: LiteralKey, value: Any) -> Filter:
        escaped = re.sub(r"([\\%_])", r"\\\1", str(value))
        return {key: {operator: f"%{escaped}%"}}

    return translate


def _is_empty(key: LiteralKey, _: Any) -> Filter:
    return {"$or": [{key: {"$exists": False}}, {key: None}, {key: {"$eq": []}}]}


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _forms(value: Any) -> list[Any]:
    """Return a value, and what has the same text in JSON."""
    if isinstance(value, int | float):
        return [value, str(value)]
    forms: list[Any] = [value]
    if value in ("true", "false"):
        forms.append(value == "true")
    elif (number := _number(value)) is not None:
        forms.append(number)
    return forms


def _number(value: Any) -> float | None:
    """Return the number that a value is or spells; None if there is none, or it is not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


_OPERATORS: dict[FilterOperator, _Compile] = {
    FilterOperator.EQ: _member("$in"),
    FilterOperator.NE: _member("$nin"),
    FilterOperator.IN: _member("$in"),
    FilterOperator.NIN: _member("$nin"),
    FilterOperator.GT: _compared("$gt"),
    FilterOperator.GTE: _compared("$gte"),
    FilterOperator.LT: _compared("$lt"),
    FilterOperator.LTE: _compared("$lte"),
    FilterOperator.CONTAINS: _contains,
    FilterOperator.ANY: _elements("$or"),
    FilterOperator.ALL: _elements("$and"),
    FilterOperator.TEXT_MATCH: _pattern("$like"),
    FilterOperator.TEXT_MATCH_INSENSITIVE: _pattern("$ilike"),
    FilterOperator.IS_EMPTY: _is_empty,
}
