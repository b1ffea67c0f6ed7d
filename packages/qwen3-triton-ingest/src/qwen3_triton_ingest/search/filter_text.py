"""Filters as typed on the command line: `lang=en`, `year>=2020`, `topic in a,b`, or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ..errors import FilterError
from .filters import Filter

_SYMBOLS = {
    "=": "$eq",
    "==": "$eq",
    "!=": "$ne",
    ">=": "$gte",
    "<=": "$lte",
    ">": "$gt",
    "<": "$lt",
}
_WORDS = {
    "in": "$in",
    "not in": "$nin",
    "like": "$like",
    "ilike": "$ilike",
    "contains": "$contains",
}
_SYMBOL = re.compile(r"\s*([^\s=!<>]+)\s*(==|!=|>=|<=|=|>|<)(.*)", re.DOTALL)
_WORD = re.compile(
    r"\s*(\S+)\s+(not\s+in|in|like|ilike|contains)\s+(.*)", re.DOTALL | re.IGNORECASE
)
_EXISTENCE = re.compile(r"\s*(\S+)\s+(exists|missing)\s*", re.IGNORECASE)
_FORMS = (
    "KEY=VALUE, KEY>=VALUE, 'KEY in A,B', 'KEY like %X%', 'KEY contains A', 'KEY exists', or JSON"
)


def parse_filters(expressions: Sequence[str]) -> Filter | None:
    """Parse expressions into one filter that requires them all; None if there are none.

    Values that look like JSON numbers, `true`, `false` or `null` are parsed as such; put double
    quotes around what should be a string anyway: `zip="01234"`.

    Raises:
        FilterError: An expression is not valid.
    """
    filters = [_parse(expression) for expression in expressions]
    if len(filters) > 1:
        return {"$and": filters}
    return filters[0] if filters else None


def _parse(expression: str) -> dict[str, Any]:
    if expression.lstrip().startswith("{"):
        try:
            return json.loads(expression)
        except ValueError as error:
            raise FilterError(f"The filter is not valid JSON: {error}.") from None
    if match := _EXISTENCE.fullmatch(expression):
        return {match[1]: {"$exists": match[2].lower() == "exists"}}
    # Words first: a value may contain `=`, a key cannot contain spaces.
    if match := _WORD.fullmatch(expression):
        operator = _WORDS[" ".join(match[2].lower().split())]
        return {match[1]: {operator: _operand(operator, match[3].strip())}}
    if match := _SYMBOL.fullmatch(expression):
        return {match[1]: {_SYMBOLS[match[2]]: _value(match[3].strip())}}
    raise FilterError(f"The filter {expression!r} is not valid. Use {_FORMS}.")


def _operand(operator: str, text: str) -> Any:
    if operator in ("$in", "$nin"):
        return [_value(part.strip()) for part in text.split(",")]
    return text if operator in ("$like", "$ilike") else _value(text)


def _value(text: str) -> Any:
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, str | int | float) else text
