"""Vectors to the wire, with no Python work for each float."""

from __future__ import annotations

import base64
from typing import Literal, TypeAlias

import numpy as np
import orjson

from .tensors import Float32Matrix

EncodingFormat: TypeAlias = Literal["float", "base64"]


def encode_vectors(
    vectors: Float32Matrix, encoding_format: EncodingFormat
) -> Float32Matrix | list[orjson.Fragment]:
    """Give rows as orjson can write them: the array itself, or base64 of little-endian float32.

    Both forms hold the same bits: orjson writes the shortest decimal that reads back as the same
    float32.
    """
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    if encoding_format == "float":
        return rows
    # JSON already: base64 holds nothing that would need an escape.
    return [orjson.Fragment(b'"' + base64.b64encode(row) + b'"') for row in rows]
