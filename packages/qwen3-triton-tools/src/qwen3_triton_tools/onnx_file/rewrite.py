"""Extend the graph of an ONNX file without reading its weights.

In the wire format of protocol buffers a message may be extended by appending fields. So the file is
copied as it stands, with a new length before the graph and the new fields behind its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from . import proto
from .errors import OnnxFileError
from .protobuf import BYTES, Buffer, Span, encode_varint, first, mapped, scan, text

# A protocol buffer's lengths are signed 32-bit numbers in every implementation that reads ONNX.
MAX_FILE_BYTES = 2**31 - 1
_CHUNK_BYTES = 4 * 1024 * 1024


def rewrite_graph(
    source: Path, target: Path, *, kept_outputs: Collection[str], added: bytes
) -> None:
    """Write `source` with other outputs and more nodes to `target`, which may be `source` itself.

    Outputs that are not among `kept_outputs` become inner tensors of the graph. `added` are
    encoded fields of GraphProto. `target` appears at once and whole, or not at all.

    Raises:
        OnnxFileError: `source` cannot be read, or the result would be too large or not written.
    """
    with mapped(source) as data:
        pieces = list(_pieces(data, set(kept_outputs), added))
    size = sum(len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
    if size > MAX_FILE_BYTES:
        msg = (
            f"{source} would be larger than 2 GB, which no ONNX reader takes: save it with its "
            "weights as external data first (onnx.save_model(..., save_as_external_data=True))."
        )
        raise OnnxFileError(msg)
    try:
        _write(source, target, pieces)
    except OSError as error:
        raise OnnxFileError(f"cannot write {target}: {error.strerror or error}") from error


def _pieces(data: Buffer, kept: set[str], added: bytes) -> Iterator[bytes | Span]:
    """Yield the new file in order: bytes of its own, or spans to copy from the source."""
    graphs = 0
    for number, value, whole in scan(data, (0, len(data))):
        if number != proto.MODEL_GRAPH or not isinstance(value, tuple):
            yield whole
            continue
        graphs += 1
        if graphs > 1:
            raise ValueError("it holds two graphs")
        yield encode_varint(proto.MODEL_GRAPH << 3 | BYTES)
        yield encode_varint(value[1] - value[0] + len(added))
        yield from _graph_pieces(data, value, kept)
        yield added


def _graph_pieces(data: Buffer, graph: Span, kept: set[str]) -> Iterator[bytes | Span]:
    inner_tag = bytes([proto.GRAPH_VALUE_INFO << 3 | BYTES])
    position = graph[0]
    for number, value, whole in scan(data, graph):
        if number != proto.GRAPH_OUTPUT or not isinstance(value, tuple):
            continue
        if text(data, first(data, value, proto.VALUE_NAME)) in kept:
            continue
        # An output and an inner tensor are described by the same message under another tag, which
        # is one byte in both cases, so that lengths stay what they were.
        yield (position, whole[0])
        yield inner_tag
        position = whole[0] + len(inner_tag)
    yield (position, graph[1])


def _write(source: Path, target: Path, pieces: list[bytes | Span]) -> None:
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    unfinished = Path(name)
    try:
        with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
            for piece in pieces:
                if isinstance(piece, bytes):
                    writer.write(piece)
                else:
                    _copy(reader, writer, piece)
        unfinished.chmod(source.stat().st_mode & 0o777)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _copy(reader: BinaryIO, writer: BinaryIO, span: Span) -> None:
    position, end = span
    reader.seek(position)
    while position < end:
        chunk = reader.read(min(_CHUNK_BYTES, end - position))
        if not chunk:
            raise OSError("the source became shorter while it was copied")
        writer.write(chunk)
        position += len(chunk)
