"""Lines of JSON, one record each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import orjson

from ..config import ReadOptions
from ..documents import BadRecord, Document, Origin
from .finding import SourceFile, shown
from .lines import Line, read_lines
from .plain_values import UnreadableError
from .records import RecordReader
from .shards import Shard
from .text_files import check_no_binary, decoded, is_utf8

__all__ = ["read_jsonl"]


def read_jsonl(
    shard: Shard, file: SourceFile, options: ReadOptions, reader: RecordReader
) -> Iterator[Document | BadRecord]:
    """Read the records of the lines that begin in the shard."""
    path = shown(file.path)
    with open(file.path, "rb") as stream:
        try:
            check_no_binary(stream)
        except UnreadableError:
            if shard.start == 0:  # once for the file
                raise
            return
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


def _record(line: Line, options: ReadOptions) -> dict[str, Any] | None:
    """Return the record of a line, None of a blank one."""
    if line.content is None:
        msg = (
            f"the line is longer than {options.max_document_bytes:,} bytes "
            "(`max_document_bytes`): write one document a line"
        )
        raise UnreadableError(msg)
    content = line.content
    if not content.strip():
        return None
    try:
        record = orjson.loads(content if is_utf8(options) else decoded(content, options))
    except orjson.JSONDecodeError as error:
        decoded(content, options, offset=line.start)  # a wrong encoding is the better reason
        raise UnreadableError(f"the line is not JSON: {error}") from None
    if not isinstance(record, dict):
        kind = "array" if isinstance(record, list) else type(record).__name__
        msg = f"the line is no JSON object but one {kind}: write one object a line"
        msg += ", as `jq -c '.[]'` does" if isinstance(record, list) else ""
        raise UnreadableError(msg)
    return cast("dict[str, Any]", record)
