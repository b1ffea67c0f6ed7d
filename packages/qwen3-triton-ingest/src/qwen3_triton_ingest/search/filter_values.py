"""Values of a filter, as JSON can hold them. No I/O."""

from __future__ import annotations

from datetime import date, time
from typing import cast
from uuid import UUID

from ..errors import FilterError

__all__ = ["as_json", "kind_of", "ordered_kind"]

_TAKE_LISTS = ("$eq", "$ne")
_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def as_json(key: str, value: object, operator: str) -> object:
    """Return a value as JSON can hold it, and as the loader writes it.

    Raises:
        FilterError: It cannot.
    """
    if isinstance(value, list) and operator in _TAKE_LISTS:
        return [as_json(key, item, "") for item in cast("list[object]", value)]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and value - value == 0:  # neither infinite nor NaN
        return value
    if isinstance(value, str) and _is_text(value):
        return value
    where = f"`{operator}` on {key!r}" if operator else f"a list for {key!r}"
    msg = (
        f"{where} has a value of {kind_of(cast('object', value))}; allowed are text without NUL, "
        "finite numbers, true, false and null"
    )
    raise FilterError(msg)


def ordered_kind(key: str, value: object, operator: str) -> str:
    """Return JSON's name for the kind of a value that others are smaller or greater than.

    Raises:
        FilterError: It has no order.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    if isinstance(value, str | date | time):
        return "string"
    msg = f"`{operator}` on {key!r} takes a number or a string, not {kind_of(value)}"
    raise FilterError(msg)


def kind_of(value: object) -> str:
    """Name a value by its type: what it holds may be private."""
    return _KINDS.get(type(value), f"the type {type(value).__name__}")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value
