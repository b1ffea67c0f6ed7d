"""Metadata filters: the operators of LangChain's `PGVectorStore`, compiled to SQL. No I/O.

A value alone means equality, several keys must all hold, and dots lead into nested objects:
`{"lang": "en", "year": {"$gte": 2020}, "$or": [{"topic": "x"}, {"author.name": "y"}]}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString, TypeAlias, cast

from psycopg import sql

from ..errors import FilterError
from ..layouts import Table
from .filter_values import as_json, kind_of, ordered_kind

__all__ = ["ROW", "Condition", "Filter", "compile_filter"]

Filter: TypeAlias = Mapping[str, Any]

ROW = "chunk"
"""What queries call a row of the table, so that its columns are told from theirs."""

MAX_DEPTH = 32  # of conditions within conditions
MAX_VALUES = 5_000  # a statement has at most 65,535 parameters

_COMPARISONS: dict[str, LiteralString] = {"$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}
_PATTERNS: dict[str, LiteralString] = {"$like": "LIKE", "$ilike": "ILIKE"}
_ALL_OF, _ANY_OF, _NOT = "$and", "$or", "$not"
_COMBINING = (_ALL_OF, _ANY_OF, _NOT)


@dataclass(frozen=True, slots=True)
class Condition:
    """Hold a condition on `ROW`, and the values of its named placeholders."""

    expression: sql.Composable
    parameters: dict[str, object] = field(repr=False)


def compile_filter(table: Table, given: Filter | None) -> Condition | None:
    """Return the condition that a filter makes of a table's metadata; None if it asks nothing.

    `$eq`, `$in` and `$contains` are containment (`@>`), which a GIN index of the class
    `jsonb_path_ops` on the metadata serves. Comparisons hold between values of one kind, numbers
    or strings, and never fail. As in LangChain, `$ne` and `$nin` want the key to be there; `$not`
    does not. `$contains`, for an element of an array, is not LangChain's.

    Raises:
        FilterError: The filter cannot be read.
    """
    if given is None or given == {}:
        return None
    compiler = _Compiler(table)
    return Condition(compiler.all_of(given, 0), compiler.parameters)


class _Compiler:
    """Collect parameters while conditions are put together."""

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

    def all_of(self, given: object, depth: int) -> sql.Composable:
        if depth > MAX_DEPTH:
            raise FilterError(f"the filter is nested more than {MAX_DEPTH} deep")
        conditions = cast("Mapping[object, object]", given)
        if not isinstance(given, Mapping) or not conditions:
            msg = (
                f"a filter is a JSON object with at least one key, not {kind_of(conditions)}; "
                'write {"KEY": VALUE} or {"KEY": {"$gte": VALUE}}'
            )
            raise FilterError(msg)
        return _join(
            " AND ", [self._condition(key, value, depth) for key, value in conditions.items()]
        )

    def _condition(self, key: object, value: object, depth: int) -> sql.Composable:
        if not isinstance(key, str) or not key or "\0" in key:
            raise FilterError(f"a key of a filter is a metadata key or one of {_list(_COMBINING)}")
        if key.lower() == _NOT:
            parts = self._each(key, value if isinstance(value, list) else [value], depth)  # pyright: ignore[reportUnknownArgumentType] - checked there
            return sql.SQL("({}) IS NOT TRUE").format(_join(" OR ", parts))
        if key.lower() in (_ALL_OF, _ANY_OF):
            between = " AND " if key.lower() == _ALL_OF else " OR "
            return _join(between, self._each(key, value, depth))
        if key.startswith("$"):
            msg = (
                f"the filter has {key!r} where a metadata key or one of {_list(_COMBINING)} is "
                'due; operators stand behind their key: {"year": {"$gte": 2020}}'
            )
            raise FilterError(msg)
        if not isinstance(value, Mapping):
            return self._equal(key, value, "$eq")
        return self._operations(key, cast("Mapping[object, object]", value))

    def _each(self, operator: str, value: object, depth: int) -> list[sql.Composable]:
        filters = cast("list[object]", value)
        if not isinstance(value, list) or not filters:
            raise FilterError(f"`{operator}` takes a list of filters, not {kind_of(filters)}")
        return [self.all_of(item, depth + 1) for item in filters]

    def _operations(self, key: str, value: Mapping[object, object]) -> sql.Composable:
        parts: list[sql.Composable] = []
        for operator, operand in value.items():
            compiled = self._operators.get(str(operator).lower())
            if compiled is None:
                msg = (
                    f"the filter on {key!r} has the operator {str(operator)!r}; allowed are "
                    f"{_list(self._operators)}"
                )
                raise FilterError(msg)
            parts.append(compiled(key, operand, str(operator).lower()))
        if not parts:
            raise FilterError(f"the filter on {key!r} is empty; give a value or an operator")
        return _join(" AND ", parts)

    def _equal(self, key: str, value: object, operator: str) -> sql.Composable:
        column, path = self._place(key)
        # For lists containment would hold for longer ones as well.
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
        # As JSON, in which a number and a string compare too, by their kinds: hence the first half.
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
            msg = f"`{operator}` on {key!r} takes two numbers or two strings, lowest first"
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
            msg = f"`{operator}` on {key!r} takes a pattern with % and _, not {kind_of(value)}"
            raise FilterError(msg)
        return sql.SQL("{} #>> '{{}}' {} {}").format(
            self._value(key),
            sql.SQL(_PATTERNS[operator]),
            self._placeholder(as_json(key, value, operator)),
        )

    def _exists(self, key: str, value: object, operator: str) -> sql.Composable:
        if not isinstance(value, bool):
            raise FilterError(f"`{operator}` on {key!r} takes true or false, not {kind_of(value)}")
        test = sql.SQL("{} IS NOT NULL" if value else "{} IS NULL")
        return test.format(self._value(key))

    def _place(self, key: str) -> tuple[sql.Composable, list[str]]:
        """Return the JSON that holds a key, and the way to it there."""
        first, *rest = key.split(".")
        if first in self._table.metadata_columns:
            return sql.SQL("to_jsonb({})").format(sql.Identifier(ROW, first)), rest
        column = sql.Identifier(ROW, self._table.layout.metadata)
        cast_to = sql.SQL("" if self._table.metadata_type == "jsonb" else "::jsonb")
        return column + cast_to, [first, *rest]

    def _value(self, key: str) -> sql.Composable:
        column, path = self._place(key)
        # psycopg reads % in the text of a statement as the start of a placeholder.
        steps = [sql.SQL(" -> ") + sql.Literal(part.replace("%", "%%")) for part in path]
        return sql.SQL("({})").format(column + sql.Composed(steps))

    def _list(self, key: str, value: object, operator: str) -> Sequence[object]:
        if not isinstance(value, list | tuple):
            raise FilterError(f"`{operator}` on {key!r} takes a list, not {kind_of(value)}")
        return cast("Sequence[object]", value)

    def _json(self, key: str, value: object, operator: str) -> sql.Composable:
        allowed = as_json(key, value, operator)
        return self._placeholder(json.dumps(allowed, ensure_ascii=False))

    def _placeholder(self, value: object) -> sql.Composable:
        if len(self.parameters) >= MAX_VALUES:
            raise FilterError(f"the filter has more than {MAX_VALUES} values")
        name = f"filter_{len(self.parameters) + 1}"
        self.parameters[name] = value
        return sql.Placeholder(name)


def _join(between: LiteralString, parts: list[sql.Composable]) -> sql.Composable:
    if len(parts) == 1:
        return parts[0]
    return sql.SQL("({})").format(sql.SQL(between).join(parts))


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names)
