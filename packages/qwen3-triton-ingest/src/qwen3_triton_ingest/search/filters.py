"""Metadata filters: the operators of LangChain's `PGVectorStore`, compiled to SQL. No I/O.

A bare value means equality, several keys must all match, and dots lead into nested objects:
`{"lang": "en", "year": {"$gte": 2020}, "$or": [{"topic": "x"}, {"author.name": "y"}]}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from typing import Any, LiteralString, TypeAlias, cast
from uuid import UUID

from psycopg import sql

from ..errors import FilterError
from ..layouts import Table, escaped_identifier

Filter: TypeAlias = Mapping[str, Any]

ROW = "chunk"
"""Alias of a row of the table, so that its columns and those of the query do not collide."""

MAX_DEPTH = 32  # of nested conditions
MAX_VALUES = 5_000  # a statement has at most 65,535 parameters

_COMPARISONS: dict[str, LiteralString] = {"$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}
_PATTERNS: dict[str, LiteralString] = {"$like": "LIKE", "$ilike": "ILIKE"}
_NUMBER = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d{1,3})?$"
_ALL_OF, _ANY_OF, _NOT = "$and", "$or", "$not"
_COMBINING = (_ALL_OF, _ANY_OF, _NOT)


class LiteralKey(str):
    """A metadata key that is taken as it is: its dots lead nowhere, and `$` means nothing."""

    __slots__ = ()


class LooseNumber(float):
    """A number that is compared with numbers stored as text, too."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on `ROW`, with the values of its named placeholders."""

    expression: sql.Composable
    parameters: dict[str, object] = field(repr=False)


def compile_filter(table: Table, wanted: Filter | None) -> Condition | None:
    """Compile a filter to a condition on a table's metadata; None if the filter is empty.

    `$eq`, `$in` and `$contains` use containment (`@>`), which a GIN index with the operator class
    `jsonb_path_ops` on the metadata supports. Comparisons apply to values of the same kind,
    numbers or strings, and never fail. As in LangChain, `$ne` and `$nin` require the key to exist;
    `$not` does not. `$contains`, for an element of an array, is an addition to LangChain's.

    Raises:
        FilterError: The filter is not valid.
    """
    if wanted is None or wanted == {}:
        return None
    compiler = _Compiler(table)
    return Condition(compiler.all_of(wanted, 0), compiler.parameters)


class _Compiler:
    """Builds conditions and collects their parameters."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.parameters: dict[str, object] = {}
        self._operators: dict[str, Callable[[str, Any, str], sql.Composable]] = {
            "$eq": self._equal,
            "$ne": self._unequal,
            **dict.fromkeys(_COMPARISONS, self._compare),
            "$in": self._one_of,
            "$nin": self._none_of,
            "$between": self._between,
            **dict.fromkeys(_PATTERNS, self._matches),
            "$exists": self._exists,
            "$contains": self._contains,
        }

    def all_of(self, wanted: object, depth: int) -> sql.Composable:
        if depth > MAX_DEPTH:
            raise FilterError(f"The filter is nested more than {MAX_DEPTH} levels deep.")
        conditions = cast("Mapping[object, object]", wanted)
        if not isinstance(wanted, Mapping) or not conditions:
            msg = (
                f"A filter must be a JSON object with at least one key, not {kind_of(conditions)}: "
                '{"KEY": VALUE} or {"KEY": {"$gte": VALUE}}.'
            )
            raise FilterError(msg)
        return _join(
            " AND ", [self._condition(key, value, depth) for key, value in conditions.items()]
        )

    def _condition(self, key: object, value: object, depth: int) -> sql.Composable:
        if not isinstance(key, str) or not key or "\0" in key:
            msg = f"A key of a filter must be a metadata key or one of {_list(_COMBINING)}."
            raise FilterError(msg)
        operator = "" if isinstance(key, LiteralKey) else key.lower()
        if operator == _NOT:
            parts = self._each(key, value if isinstance(value, list) else [value], depth)  # pyright: ignore[reportUnknownArgumentType] - checked there
            return sql.SQL("({}) IS NOT TRUE").format(_join(" OR ", parts))
        if operator in (_ALL_OF, _ANY_OF):
            between = " AND " if operator == _ALL_OF else " OR "
            return _join(between, self._each(key, value, depth))
        if operator.startswith("$"):
            msg = (
                f"The filter has {key!r} instead of a metadata key or one of {_list(_COMBINING)}. "
                'Operators follow their key: {"year": {"$gte": 2020}}.'
            )
            raise FilterError(msg)
        if not isinstance(value, Mapping):
            return self._equal(key, value, "$eq")
        return self._operations(key, cast("Mapping[object, object]", value))

    def _each(self, operator: str, value: object, depth: int) -> list[sql.Composable]:
        filters = cast("list[object]", value)
        if not isinstance(value, list) or not filters:
            raise FilterError(f"`{operator}` takes a list of filters, not {kind_of(filters)}.")
        return [self.all_of(item, depth + 1) for item in filters]

    def _operations(self, key: str, value: Mapping[object, object]) -> sql.Composable:
        parts: list[sql.Composable] = []
        for operator, operand in value.items():
            compiled = self._operators.get(str(operator).lower())
            if compiled is None:
                msg = (
                    f"The filter on {key!r} has the unknown operator {str(operator)!r}. Use one of "
                    f"{_list(self._operators)}."
                )
                raise FilterError(msg)
            parts.append(compiled(key, operand, str(operator).lower()))
        if not parts:
            raise FilterError(f"The filter on {key!r} is empty. Give a value or an operator.")
        return _join(" AND ", parts)

    def _equal(self, key: str, value: object, operator: str) -> sql.Composable:
        column, path = self._place(key)
        # For lists, containment would also match longer ones.
        if isinstance(value, list) or not path:
            operand = self._json(key, cast("object", value), operator)
            return sql.SQL("{} = {}::jsonb").format(self._value(key), operand)
        return self._holds(column, path, as_json(key, value, operator))

    def _contains(self, key: str, value: object, operator: str) -> sql.Composable:
        column, path = self._place(key)
        return self._holds(column, path, [as_json(key, value, operator)])

    def _holds(self, column: sql.Composable, path: Sequence[str], value: object) -> sql.Composable:
        for part in reversed(path):
            value = {part: value}
        placeholder = self._placeholder(json.dumps(value, ensure_ascii=False))
        return sql.SQL("{} @> {}::jsonb").format(column, placeholder)

    def _unequal(self, key: str, value: object, operator: str) -> sql.Composable:
        operand = self._json(key, value, operator)
        return sql.SQL("{} <> {}::jsonb").format(self._value(key), operand)

    def _compare(self, key: str, value: object, operator: str) -> sql.Composable:
        if isinstance(value, LooseNumber):
            return sql.SQL(
                "CASE WHEN {value} #>> '{{}}' ~ {number} "
                "THEN ({value} #>> '{{}}')::numeric {operator} {operand}::numeric END"
            ).format(
                value=self._value(key),
                number=sql.Literal(_NUMBER),
                operator=sql.SQL(_COMPARISONS[operator]),
                operand=self._placeholder(float(value)),
            )
        # jsonb orders values of different kinds too, by kind: hence the first condition.
        kind = ordered_kind(key, value, operator)
        return sql.SQL(
            "(jsonb_typeof({value}) = {kind} AND {value} {operator} {operand}::jsonb)"
        ).format(
            value=self._value(key),
            kind=sql.Literal(kind),
            operator=sql.SQL(_COMPARISONS[operator]),
            operand=self._json(key, value, operator),
        )

    def _between(self, key: str, value: object, operator: str) -> sql.Composable:
        bounds = self._list(key, value, operator)
        ends = ("$gte", "$lte")
        kinds = {ordered_kind(key, bound, operator) for bound in bounds}
        if len(bounds) != len(ends) or len(kinds) != 1:
            msg = f"`{operator}` on {key!r} takes two numbers or two strings, lowest first."
            raise FilterError(msg)
        pairs = zip(ends, bounds, strict=True)
        return _join(" AND ", [self._compare(key, bound, end) for end, bound in pairs])

    def _one_of(self, key: str, value: object, operator: str) -> sql.Composable:
        values = self._list(key, value, operator)
        if not values:
            return sql.SQL("FALSE")
        return _join(" OR ", [self._equal(key, each, operator) for each in values])

    def _none_of(self, key: str, value: object, operator: str) -> sql.Composable:
        values = [
            json.dumps(as_json(key, each, operator), ensure_ascii=False)
            for each in self._list(key, value, operator)
        ]
        operand = self._placeholder(values)
        return sql.SQL("{} <> ALL ({}::jsonb[])").format(self._value(key), operand)

    def _matches(self, key: str, value: object, operator: str) -> sql.Composable:
        if not isinstance(value, str):
            msg = f"`{operator}` on {key!r} takes a pattern with % and _, not {kind_of(value)}."
            raise FilterError(msg)
        return sql.SQL("{} #>> '{{}}' {} {}").format(
            self._value(key),
            sql.SQL(_PATTERNS[operator]),
            self._placeholder(as_json(key, value, operator)),
        )

    def _exists(self, key: str, value: object, operator: str) -> sql.Composable:
        if not isinstance(value, bool):
            msg = f"`{operator}` on {key!r} takes true or false, not {kind_of(value)}."
            raise FilterError(msg)
        test = sql.SQL("{} IS NOT NULL" if value else "{} IS NULL")
        return test.format(self._value(key))

    def _place(self, key: str) -> tuple[sql.Composable, list[str]]:
        """Return the JSON that contains a key, and the path to the key in it."""
        first, *rest = [key] if isinstance(key, LiteralKey) else key.split(".")
        if first in self._table.metadata_columns:
            return sql.SQL("to_jsonb({})").format(escaped_identifier(ROW, first)), rest
        column = sql.Identifier(ROW, self._table.layout.metadata)
        cast_to = sql.SQL("" if self._table.metadata_type == "jsonb" else "::jsonb")
        return column + cast_to, [first, *rest]

    def _value(self, key: str) -> sql.Composable:
        column, path = self._place(key)
        # psycopg takes % in the text of a statement as the start of a placeholder.
        steps = [sql.SQL(" -> ") + sql.Literal(part.replace("%", "%%")) for part in path]
        return sql.SQL("({})").format(column + sql.Composed(steps))

    def _list(self, key: str, value: object, operator: str) -> Sequence[object]:
        if not isinstance(value, list | tuple):
            raise FilterError(f"`{operator}` on {key!r} takes a list, not {kind_of(value)}.")
        return cast("Sequence[object]", value)

    def _json(self, key: str, value: object, operator: str) -> sql.Composable:
        allowed = as_json(key, value, operator)
        return self._placeholder(json.dumps(allowed, ensure_ascii=False))

    def _placeholder(self, value: object) -> sql.Composable:
        if len(self.parameters) >= MAX_VALUES:
            raise FilterError(f"The filter has more than {MAX_VALUES:,} values.")
        name = f"filter_{len(self.parameters) + 1}"
        self.parameters[name] = value
        return sql.Placeholder(name)


def _join(between: LiteralString, parts: list[sql.Composable]) -> sql.Composable:
    if len(parts) == 1:
        return parts[0]
    return sql.SQL("({})").format(sql.SQL(between).join(parts))


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names)


_TAKE_LISTS = ("$eq", "$ne")
_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def as_json(key: str, value: object, operator: str) -> object:
    """Return a value as JSON can represent it, and as the loader writes it.

    Raises:
        FilterError: JSON cannot represent it.
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
    where = f"`{operator}` on {key!r}" if operator else f"A list for {key!r}"
    msg = (
        f"{where} cannot be {kind_of(cast('object', value))}. Allowed are text "
        "without NUL, finite numbers, true, false and null."
    )
    raise FilterError(msg)


def ordered_kind(key: str, value: object, operator: str) -> str:
    """Return JSON's name for the kind of a value that has an order.

    Raises:
        FilterError: It has none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    if isinstance(value, str | date | time):
        return "string"
    msg = f"`{operator}` on {key!r} takes a number or a string, not {kind_of(value)}."
    raise FilterError(msg)


def kind_of(value: object) -> str:
    """Return the kind of a value for messages; its content may be private."""
    return _KINDS.get(type(value), f"a value of type {type(value).__name__}")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value
