"""What PostgreSQL can hold as text and as jsonb: no NUL, no half characters, bounded."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, cast

import orjson

from ..config import ReadOptions
from ..documents import Metadata

__all__ = ["UnreadableError", "as_json", "checked_id", "checked_metadata", "checked_text"]

REPLACEMENT = "\ufffd"
# A key of a B-tree index must fit a third of a page of 8 KiB.
MAX_ID_BYTES = 2000
_INT64 = range(-(2**63), 2**63)


class UnreadableError(Exception):
    """Say why one document cannot be read; never leaves this package."""


def checked_text(text: str, options: ReadOptions) -> str:
    """Return the text as it can be stored.

    Raises:
        UnreadableError: It is blank or too long, or holds characters that PostgreSQL cannot hold.
    """
    if not text.strip():
        raise UnreadableError("the text is empty or blank")
    text = _without_nul(text, options, "the text")
    size = _encoded_size(text, "the text")
    if size > options.max_document_bytes:
        raise UnreadableError(too_large("the text", size, options))
    return text


def too_large(what: str, size: int, options: ReadOptions) -> str:
    """Say that something is over the limit of a document."""
    limit = options.max_document_bytes
    return f"{what} has {size:,} bytes; the limit (`max_document_bytes`) is {limit:,}"


def checked_id(doc_id: str, options: ReadOptions) -> str:
    """Return the id as it can be stored and indexed.

    Raises:
        UnreadableError: It is empty or too long, or holds characters that PostgreSQL cannot hold.
    """
    if not doc_id.strip():
        raise UnreadableError("the id is empty")
    doc_id = _without_nul(doc_id, options, "the id")
    if (size := _encoded_size(doc_id, "the id")) > MAX_ID_BYTES:
        raise UnreadableError(f"the id has {size:,} bytes; the limit is {MAX_ID_BYTES:,}")
    return doc_id


def checked_metadata(metadata: Metadata, options: ReadOptions) -> Metadata:
    """Return the metadata as jsonb can hold it.

    Raises:
        UnreadableError: It is too large, or holds what JSON or PostgreSQL cannot hold.
    """
    try:
        data = orjson.dumps(metadata)
    except TypeError as error:
        raise UnreadableError(f"the metadata cannot be written as JSON: {error}") from None
    if len(data) > options.max_metadata_bytes:
        msg = (
            f"the metadata has {len(metadata):,} keys and {len(data):,} bytes as JSON; the limit "
            f"(`max_metadata_bytes`) is {options.max_metadata_bytes:,}: choose columns by "
            "`--metadata`"
        )
        raise UnreadableError(msg)
    if rb"\u0000" not in data:
        return metadata
    # Or it is a backslash before the letters "u0000", which differs from no NUL.
    cleaned = cast("Metadata", _replace_nul(metadata))
    if cleaned != metadata and not options.replace_nul:
        raise UnreadableError(_nul_message("the metadata"))
    return cleaned


def as_json(value: Any) -> Any:
    """Return a value of a database or a Parquet file as one that JSON knows.

    Dates and times become ISO 8601, decimals floats, UUIDs and the like strings, bytes base64,
    and numbers that are not finite null.
    """
    match value:
        case None | bool() | str():
            plain = value
        case int():
            plain = value if value in _INT64 else str(value)
        case float() | Decimal():
            number = float(value)
            plain = number if math.isfinite(number) else None
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


def _without_nul(text: str, options: ReadOptions, what: str) -> str:
    if "\0" not in text:
        return text
    if not options.replace_nul:
        raise UnreadableError(_nul_message(what))
    return text.replace("\0", REPLACEMENT)


def _nul_message(what: str) -> str:
    return (
        f"{what} holds NUL characters, which PostgreSQL cannot store: `--replace-nul` puts U+FFFD "
        "in their place"
    )


def _encoded_size(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        msg = f"{what} holds half a surrogate pair at character {error.start:,}, no Unicode text"
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
