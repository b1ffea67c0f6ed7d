"""A column of vectors out of Arrow's buffers into ours, without a Python number on the way."""

from __future__ import annotations

from array import array
from importlib import import_module
from typing import Any

from qwen3_triton_client import Vector

from .plain_values import UnreadableError
from .vectors import FLOAT_BYTES, checked_vector

__all__ = ["VectorColumn"]


class VectorColumn:
    """Take vectors out of an Arrow array of lists of numbers."""

    def __init__(self, column: Any) -> None:
        """Convert the values to float32 where they are something else.

        Raises:
            UnreadableError: The column holds no lists of numbers.
        """
        pa: Any = import_module("pyarrow")
        kind = column.type
        self._size: int | None = None
        if pa.types.is_fixed_size_list(kind):
            self._size = kind.list_size
            wanted = pa.list_(pa.float32(), self._size)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            wanted = pa.large_list(pa.float32())
        else:
            msg = f"the vector column is of the type {kind}, not lists of numbers"
            raise UnreadableError(msg)
        try:
            self._column = column if kind == wanted else column.cast(wanted, safe=False)
        except pa.ArrowException:
            msg = f"the vector column is of the type {kind}, not lists of numbers"
            raise UnreadableError(msg) from None
        self._values = self._column.values
        data = self._values.buffers()[1]
        self._data = memoryview(data if data is not None else b"").cast("B")

    def take(self, row: int, dimensions: int | None) -> Vector:
        """Return a row's vector, copied as bytes.

        Raises:
            UnreadableError: There is none that can be searched for.
        """
        if not self._column[row].is_valid:
            raise UnreadableError("the vector is null")
        if self._size is not None:
            start = (self._column.offset + row) * self._size
            stop = start + self._size
        else:
            start, stop = (self._column.offsets[row + i].as_py() for i in (0, 1))
        if self._values.null_count and self._values.slice(start, stop - start).null_count:
            raise UnreadableError("the vector holds null")
        vector: Vector = array("f")
        first = self._values.offset
        vector.frombytes(self._data[(first + start) * FLOAT_BYTES : (first + stop) * FLOAT_BYTES])
        return checked_vector(vector, dimensions)
