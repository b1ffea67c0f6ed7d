"""Vectors that were computed before, checked without looking at each value."""

from __future__ import annotations

from array import array
from typing import Any, cast

import orjson

from qwen3_triton_client import Vector, vector_defect

from .plain_values import UnreadableError

__all__ = ["checked_vector", "vector_of"]

FLOAT_BYTES = 4


def vector_of(value: Any, dimensions: int | None) -> Vector:
    """Return a list of numbers, or pgvector's text of one, as a checked vector.

    Raises:
        UnreadableError: It is something else, or not a vector that can be searched for.
    """
    if isinstance(value, str) and value.startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise UnreadableError("the vector is a text that holds no list of numbers") from None
    if not isinstance(value, list):
        msg = f"the vector is {_kind(value)}, not a list of numbers (`--vector-column`)"
        raise UnreadableError(msg)
    try:
        vector = array("f", cast("list[float]", value))
    except (TypeError, OverflowError):
        raise UnreadableError("the vector holds something that is no number") from None
    return checked_vector(vector, dimensions)


def checked_vector(vector: Vector, dimensions: int | None) -> Vector:
    """Return the vector if it can be searched for.

    Raises:
        UnreadableError: It has another length, or is empty, all zeros or not finite.
    """
    if defect := vector_defect(vector, dimensions):
        raise UnreadableError(f"the vector {defect}")
    return vector


def _kind(value: Any) -> str:
    return "null" if value is None else f"of the type {type(value).__name__}"
