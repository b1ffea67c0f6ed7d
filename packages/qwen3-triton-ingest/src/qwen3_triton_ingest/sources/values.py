"""Values that PostgreSQL can store: texts, ids, metadata and precomputed vectors."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, cast

import orjson

from qwen3_triton_client import Vector, vector_defect

from ..config import ReadOptions
from ..documents import Metadata

REPLACEMENT = "\ufffd"
# A key of a B-tree index must fit a third of a page of 8 KiB.
MAX_ID_BYTES = 2000
_INT64 = range(-(2**63), 2**63)
FLOAT_BYTES = 4


class UnreadableError(Exception):
    """Why one document cannot be read; never leaves `sources`."""


def reader_failure(error: Exception) -> str:
    """Return the message for what a library raised; its own may contain the text."""
    return f"Its reader failed ({type(error).__name__}). The file may be damaged."


def checked_text(text: str, options: ReadOptions) -> str:
    """Return the text as it can be stored.

    Raises:
        UnreadableError: It is blank or too long, or contains what PostgreSQL cannot store.
    """
    if not text.strip():
        raise UnreadableError("The text is empty or blank.")
    text = _without_nul(text, options, "The text")
    size = _encoded_size(text, "The text")
    if size > options.max_document_bytes:
        raise UnreadableError(too_large("The text", size, options))
    return text


def too_large(what: str, size: int, options: ReadOptions) -> str:
    """Return the message for something above the size limit of a document."""
    limit = options.max_document_bytes
    return f"{what} has {size:,} bytes; the limit (`max_document_bytes`) is {limit:,}."


def checked_id(doc_id: str, options: ReadOptions) -> str:
    """Return the id as it can be stored and indexed.

    Raises:
        UnreadableError: It is empty or too long, or contains what PostgreSQL cannot store.
    """
    if not doc_id.strip():
        raise UnreadableError("The id is empty.")
    doc_id = _without_nul(doc_id, options, "The id")
    if (size := _encoded_size(doc_id, "The id")) > MAX_ID_BYTES:
        raise UnreadableError(f"The id has {size:,} bytes; the limit is {MAX_ID_BYTES:,}.")
    return doc_id


def checked_metadata(metadata: Metadata, options: ReadOptions) -> Metadata:
    """Return the metadata as jsonb can store it.

    Raises:
        UnreadableError: It is too large, or contains what JSON or PostgreSQL cannot represent.
    """
    try:
        data = orjson.dumps(metadata)
    except TypeError as error:
        raise UnreadableError(f"The metadata cannot be written as JSON: {error}.") from None
    if len(data) > options.max_metadata_bytes:
        msg = (
            f"The metadata has {len(metadata):,} keys and {len(data):,} bytes as JSON; the limit "
            f"(`max_metadata_bytes`) is {options.max_metadata_bytes:,}. Choose columns with "
            "`--metadata`."
        )
        raise UnreadableError(msg)
    if rb"\u0000" not in data:
        return metadata
    # Or it is a backslash in front of the letters "u0000"; then nothing is replaced.
    cleaned = cast("Metadata", _replace_nul(metadata))
    if cleaned != metadata and not options.replace_nul:
        raise UnreadableError(_nul_message("The metadata"))
    return cleaned


def as_json(value: Any) -> Any:
    """Return a value from a database or a file as JSON can represent it.

    Dates and times become ISO 8601, UUIDs and the like strings, bytes base64, and NaN and infinity
    null. Integers of more than 64 bits and decimals that no float is equal to become their text.
    """
    match value:
        case None | bool() | str():
            plain = value
        case int():
            plain = value if value in _INT64 else str(value)
        case float():
            plain = value if math.isfinite(value) else None
        case Decimal():
            plain = _decimal(value)
        case datetime() | date() | time():
            plain = value.isoformat()
        case bytes():
            plain = base64.b64encode(value).decode()
        case Mapping():
            items = cast("Mapping[Any, Any]", value).items()
            plain = {str(key): as_json(item) for key, item in items}
        case list() | tuple():
            plain = [as_json(item) for item in cast("Sequence[Any]", value)]
        case _:
            plain = str(value)
    return plain


def _decimal(value: Decimal) -> int | float | str | None:
    if not value.is_finite():
        return None
    if value.as_tuple().exponent == 0:
        return as_json(int(value))
    number = float(value)
    return number if Decimal(repr(number)) == value else str(value)


def vector_of(value: Any, dimensions: int | None) -> Vector:
    """Return a list of numbers, or pgvector's text form of one, as a checked vector.

    Raises:
        UnreadableError: It is something else, or `checked_vector` rejects it.
    """
    if isinstance(value, str) and value.startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            msg = "The vector is a string that is not a list of numbers."
            raise UnreadableError(msg) from None
    if not isinstance(value, list):
        kind = "null" if value is None else f"of type {type(value).__name__}"
        raise UnreadableError(f"The vector is {kind}, not a list of numbers (`--vector-column`).")
    try:
        vector = array("f", cast("list[float]", value))
    except (TypeError, OverflowError):
        raise UnreadableError("The vector contains a value that is not a number.") from None
    return checked_vector(vector, dimensions)


def checked_vector(vector: Vector, dimensions: int | None) -> Vector:
    """Return the vector if a search can find it.

    Raises:
        UnreadableError: It has the wrong length, or is empty, all zeros or not finite.
    """
    if defect := vector_defect(vector, dimensions):
        raise UnreadableError(f"The vector {defect}.")
    return vector


def _without_nul(text: str, options: ReadOptions, what: str) -> str:
    if "\0" not in text:
        return text
    if not options.replace_nul:
        raise UnreadableError(_nul_message(what))
    return text.replace("\0", REPLACEMENT)


def _nul_message(what: str) -> str:
    return (
        f"{what} contains NUL characters, which PostgreSQL cannot store. `--replace-nul` replaces "
        "them with U+FFFD."
    )


def _encoded_size(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        msg = (
            f"{what} contains half a surrogate pair at character {error.start:,}, which is not "
            "valid Unicode."
        )
        raise UnreadableError(msg) from None


def _replace_nul(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\0", REPLACEMENT)
        case Mapping():
            items = cast("Mapping[str, Any]", value).items()
            return {key.replace("\0", REPLACEMENT): _replace_nul(item) for key, item in items}
        case list() | tuple():
            return [_replace_nul(item) for item in cast("Sequence[Any]", value)]
        case _:
            return value
