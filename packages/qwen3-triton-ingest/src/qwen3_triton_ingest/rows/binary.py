"""PostgreSQL's binary formats, packed by hand so that a vector never becomes Python numbers.

Sources: section "Binary Format" of "COPY" in the PostgreSQL manual; `vector_recv` of pgvector.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

import orjson
from psycopg import pq
from psycopg.abc import Buffer
from psycopg.adapt import Dumper

from qwen3_triton_client import Vector

from ..documents import Chunk, EmbeddedChunk
from ..layouts import NODE_CONTENT, NODE_TYPE, Table

_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)  # signature, flags, no extension
_TRAILER = struct.pack("!h", -1)
_NULL = struct.pack("!i", -1)
_JSONB_VERSION = b"\x01"
_BLOCK_BYTES = 256 * 1024
_SWAPPED = sys.byteorder == "little"


def as_float32(values: Iterable[float]) -> Vector:
    """Return the values as a vector, without a copy if they are one already."""
    if isinstance(values, array):
        numbers: array[float] = values
        if numbers.typecode == "f":
            return numbers
    return array("f", values)


def pack_vector(vector: Vector) -> bytes:
    """Return pgvector's binary format of `vector`: int16 length, int16 0, float32 values."""
    values = array("f", vector)
    if _SWAPPED:
        values.byteswap()
    return struct.pack("!hh", len(values), 0) + values.tobytes()


def pack_id(table: Table, chunk_id: UUID) -> bytes:
    """Return the binary format of an id in a table's type for it."""
    return chunk_id.bytes if table.layout.id_type == "uuid" else str(chunk_id).encode()


def pack_json(data: bytes, kind: str) -> bytes:
    """Return the binary format of a `json` or `jsonb` value of this JSON text."""
    return _JSONB_VERSION + data if kind == "jsonb" else data


def copy_stream(rows: Iterable[Sequence[bytes | None]]) -> Iterator[bytes]:
    """Yield what COPY ... (FORMAT binary) reads, in blocks of about 256 KiB.

    Args:
        rows: The binary fields of each row; None is NULL.
    """
    parts, size = [_HEADER], 0
    for fields in rows:
        parts.append(struct.pack("!h", len(fields)))
        for field in fields:
            if field is None:
                parts.append(_NULL)
            else:
                parts.append(len(field).to_bytes(4, "big"))
                parts.append(field)
                size += len(field)
        if size >= _BLOCK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    parts.append(_TRAILER)
    yield b"".join(parts)


class BinaryValue(bytes):
    """A parameter in its binary format; `BinaryDumper` must be registered for it."""

    def __repr__(self) -> str:
        return f"BinaryValue({len(self)} bytes)"


class BinaryDumper(Dumper):
    """Sends a parameter as it is: PostgreSQL infers its type from the statement."""

    format = pq.Format.BINARY
    oid = 0

    def dump(self, obj: Any) -> Buffer | None:
        return obj


# What LlamaIndex writes to `_node_content` for a `TextNode`, in addition to id, metadata and
# document; `metadata_dict_to_node` of llama-index-core 0.14 reads it back.
_NODE: dict[str, Any] = {
    "embedding": None,
    "excluded_embed_metadata_keys": [],
    "excluded_llm_metadata_keys": [],
    "metadata_template": "{key}: {value}",
    "metadata_separator": "\n",
    "text": "",
    "mimetype": "text/plain",
    "start_char_idx": None,
    "end_char_idx": None,
    "text_template": "{metadata_str}\n\n{content}",
    "class_name": "TextNode",
}
_SOURCE_RELATIONSHIP, _DOCUMENT_TYPE = "1", "4"  # `NodeRelationship.SOURCE`, `ObjectType.DOCUMENT`


def column_types(table: Table) -> dict[str, str]:
    """Return the columns of a row in the order of `embedded_fields`, with their types.

    The last is the embedding. It is sent as float32 even if the column has half precision:
    PostgreSQL converts it faster than Python could.
    """
    layout = table.layout
    types = {layout.id: layout.id_type}
    if layout.name == "own":
        types |= {"doc_id": "text", "seq": "int4"}
    return {
        **types,
        layout.content: "text",
        layout.metadata: table.metadata_type,
        layout.embedding: "vector",
    }


def embedded_fields(table: Table, embedded: EmbeddedChunk) -> list[bytes]:
    """Return the binary fields of a row, in the order of `column_types`.

    If the table has metadata columns, a JSON object of their values follows.

    Raises:
        ValueError: The table has vectors of other dimensions.
    """
    chunk = embedded.chunk
    if len(embedded.vector) != table.dimensions:
        msg = (
            f"The vector of chunk {chunk.id} has {len(embedded.vector)} dimensions; {table} holds "
            f"vectors of {table.dimensions}."
        )
        raise ValueError(msg)
    identity = [pack_id(table, chunk.id)]
    if table.layout.name == "own":
        identity += [chunk.doc_id.encode(), chunk.seq.to_bytes(4, "big")]
    metadata, *columns = metadata_fields(table, chunk)
    vector = pack_vector(embedded.vector)
    return [*identity, chunk.text.encode(), metadata, vector, *columns]


def metadata_fields(table: Table, chunk: Chunk) -> list[bytes]:
    """Return the binary metadata, and that of the metadata columns if there are any."""
    metadata: dict[str, Any] = dict(chunk.metadata)
    columns: dict[str, Any] = {}
    if table.layout.name == "llamaindex":
        metadata = _node_metadata(chunk)
    elif table.layout.name == "langchain":
        metadata |= {"doc_id": chunk.doc_id, "seq": chunk.seq}
        # As in its `PGVectorStore`, a value is in its column or in the JSON, never in both. But the
        # document's id stays in the JSON too, where the layout looks for it.
        columns = {name: metadata[name] for name in table.metadata_columns if name in metadata}
        kept = table.layout.own_metadata_keys
        metadata = {k: v for k, v in metadata.items() if k in kept or k not in columns}
    packed = [pack_json(orjson.dumps(metadata), table.metadata_type)]
    return [*packed, orjson.dumps(columns)] if table.metadata_columns else packed


def _node_metadata(chunk: Chunk) -> dict[str, Any]:
    user = dict(chunk.metadata)
    source: dict[str, Any] = {
        "node_id": chunk.doc_id,
        "node_type": _DOCUMENT_TYPE,
        "metadata": {},
        "hash": None,
        "class_name": "RelatedNodeInfo",
    }
    node: dict[str, Any] = {
        "id_": str(chunk.id),
        **_NODE,
        "metadata": user,
        "relationships": {_SOURCE_RELATIONSHIP: source},
    }
    return {
        **user,
        NODE_CONTENT: orjson.dumps(node).decode(),
        NODE_TYPE: "TextNode",
        "document_id": chunk.doc_id,
        "doc_id": chunk.doc_id,
        "ref_doc_id": chunk.doc_id,
        "seq": chunk.seq,
    }
