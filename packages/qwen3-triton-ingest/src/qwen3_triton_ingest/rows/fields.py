"""A chunk as one row of each layout. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from ..documents import Chunk, EmbeddedChunk
from ..layouts import Table
from .copy_format import pack_json, pack_vector

__all__ = ["check_vector", "column_types", "embedded_fields", "metadata_fields"]

# What LlamaIndex writes of a `TextNode` into `_node_content`, beside id, metadata and document;
# `metadata_dict_to_node` of llama-index-core 0.14 reads it back.
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

    The last is the embedding, sent as float32 even where the column holds half precision: Python
    makes halves of Python floats only, PostgreSQL does it by itself on the way in.
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
    """Return the binary forms of a row, in the order of `column_types`.

    Where the table has metadata columns, a JSON object of their values follows.
    """
    chunk = embedded.chunk
    check_vector(table, embedded)
    identity = [chunk.id.bytes if table.layout.id_type == "uuid" else str(chunk.id).encode()]
    if table.layout.name == "own":
        identity += [chunk.doc_id.encode(), chunk.seq.to_bytes(4, "big")]
    metadata, *columns = metadata_fields(table, chunk)
    vector = pack_vector(embedded.vector)
    return [*identity, chunk.text.encode(), metadata, vector, *columns]


def metadata_fields(table: Table, chunk: Chunk) -> list[bytes]:
    """Return the metadata's binary form, and that of the values of metadata columns if any."""
    metadata: dict[str, Any] = dict(chunk.metadata)
    columns: dict[str, Any] = {}
    if table.layout.name == "llamaindex":
        metadata = _node_metadata(chunk)
    elif table.layout.name == "langchain":
        metadata |= {"doc_id": chunk.doc_id, "seq": chunk.seq}
        # As its `PGVectorStore` does: a value stands in its column or in the JSON, never in both.
        # The document's id stays in the JSON as well, where the layout looks for it.
        columns = {name: metadata[name] for name in table.metadata_columns if name in metadata}
        kept = table.layout.own_metadata_keys
        metadata = {k: v for k, v in metadata.items() if k in kept or k not in columns}
    packed = [pack_json(orjson.dumps(metadata), table.metadata_type)]
    return [*packed, orjson.dumps(columns)] if table.metadata_columns else packed


def check_vector(table: Table, embedded: EmbeddedChunk) -> None:
    """Make sure that the vector fits the column, before PostgreSQL refuses the whole batch."""
    if len(embedded.vector) != table.dimensions:
        msg = (
            f"`vector` of chunk {embedded.chunk.id} has {len(embedded.vector)} dimensions; "
            f"{table} holds vectors of {table.dimensions}"
        )
        raise ValueError(msg)


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
        "_node_content": orjson.dumps(node).decode(),
        "_node_type": "TextNode",
        "document_id": chunk.doc_id,
        "doc_id": chunk.doc_id,
        "ref_doc_id": chunk.doc_id,
        "seq": chunk.seq,
    }
