"""What a search finds. No I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..documents import Metadata
from ..layouts import Table

__all__ = ["Hit", "read_hits"]


@dataclass(frozen=True, slots=True)
class Hit:
    """Hold a chunk that was found, best first in a list of them."""

    id: str
    """Of the chunk; for LlamaIndex the node's."""
    doc_id: str | None
    """Of its document, None where the row does not say."""
    seq: int | None
    """Place in the document, from 0."""
    text: str = field(repr=False)  # texts are never logged
    metadata: Metadata = field(repr=False)
    """The document's, without what the layout itself keeps there."""
    score: float
    """Higher is better: cosine similarity, the text score, or the sum of `weight / (60 + rank)`."""
    distance: float | None
    """Cosine distance; None where the vector arm did not find it."""
    vector_rank: int | None
    """Place among the nearest, from 1."""
    text_rank: int | None
    """Place among those with the question's words, from 1."""
    text_score: float | None
    """Of the text back-end; scores of different back-ends do not compare."""
    stored_metadata: Metadata = field(repr=False, compare=False)
    """All that the row's metadata column holds."""


def read_hits(table: Table, rows: Sequence[Sequence[Any]]) -> list[Hit]:
    """Return the hits of `search_statement`'s rows."""
    return [_hit(table, row) for row in rows]


def _hit(table: Table, row: Sequence[Any]) -> Hit:
    chunk_id, doc_id, seq, text, metadata, *ranks, _ = row
    stored: dict[str, Any] = json.loads(metadata) if metadata else {}
    own = table.layout.own_metadata_keys
    return Hit(
        chunk_id,
        doc_id,
        int(seq) if seq is not None and seq.isdecimal() else None,
        text,
        {key: value for key, value in stored.items() if key not in own},
        *ranks,
        stored_metadata=stored,
    )
