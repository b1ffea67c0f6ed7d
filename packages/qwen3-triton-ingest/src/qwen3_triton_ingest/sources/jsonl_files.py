"""JSON Lines files: one record per line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import orjson

from ..config import ReadOptions
from ..documents import BadRecord, Document, Origin
from .encodings import is_utf8, with_encoding_of
from .records import RecordReader
from .shards import Shard, SourceFile, file_shard, shown
from .text_files import HEAD_BYTES, Line, check_not_binary, decode, read_lines
from .values import UnreadableError, as_json

# Above 64 bits, or a float with more digits than it keeps; orjson rounds both.
_LONG_NUMBER = re.compile(rb"(?<![\d.\"])-?\d{19}")


class _NotForOrjsonError(Exception):
    """A line has what orjson would change."""


def plan_jsonl(source: str, file: SourceFile, shard_bytes: int) -> Iterator[Shard]:
    """Divide a file into shards of equal size in bytes."""
    count = max(1, -(-file.size // shard_bytes))
    for index in range(count):
        start = index * shard_bytes
        stop = min(start + shard_bytes, file.size)
        part = f", part {index + 1} of {count}" if count > 1 else ""
        yield file_shard(source, "jsonl", (file,), start=start, stop=stop, part=part)


def read_jsonl(
    shard: Shard, file: SourceFile, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    """Read the records on the lines that begin in the shard."""
    path = shown(file.path)
    with open(file.path, "rb") as stream:
        try:
            check_not_binary(stream)
        except UnreadableError:
            if shard.start == 0:  # once per file
                raise
            return
        given, options = options, with_encoding_of(stream.read(HEAD_BYTES), options)
        if options is not given and not is_utf8(options):
            reader.encoding = options.encoding
        stream.seek(0)
        lines = read_lines(
            stream, start=shard.start, stop=shard.stop, max_bytes=options.max_document_bytes
        )
        for line in lines:
            origin = Origin(shard.source, path, line.start + 1)
            try:
                record = _record(line, options)
            except UnreadableError as error:
                yield BadRecord(origin, str(error))
            else:
                if record is not None:
                    yield reader.read(record, origin)


def _lenient(text: str, error: Exception) -> Any:
    """Parse what the quick parser refuses: NaN, integers of any size, half surrogate pairs."""
    try:
        return as_json(json.loads(text, strict=False))
    except (ValueError, RecursionError):
        reason = "" if isinstance(error, _NotForOrjsonError) else f": {error}"
        raise UnreadableError(f"The line is not JSON{reason}.") from None


def _record(line: Line, options: ReadOptions) -> dict[str, Any] | None:
    """Return the record on a line; None if the line is blank."""
    if line.content is None:
        msg = (
            f"The line is longer than {options.max_document_bytes:,} bytes "
            "(`max_document_bytes`). Write one document per line."
        )
        raise UnreadableError(msg)
    content = line.content
    if not content.strip():
        return None
    try:
        if _LONG_NUMBER.search(content):
            raise _NotForOrjsonError  # it would round it
        record = orjson.loads(content if is_utf8(options) else decode(content, options)[0])
    except (orjson.JSONDecodeError, _NotForOrjsonError) as error:
        # A wrong encoding is a better reason than what a parser says about it.
        text, _ = decode(content, options, offset=line.start)
        record = _lenient(text, error)
    if not isinstance(record, dict):
        kind = "array" if isinstance(record, list) else type(record).__name__
        msg = f"The line is not a JSON object but of type {kind}. Write one object per line"
        msg += ": `jq -c '.[]'`." if isinstance(record, list) else "."
        raise UnreadableError(msg)
    return cast("dict[str, Any]", record)
