"""What the demo needs from a framework: add documents, return hits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from demo.documents import Document

DIMENSIONS = 1024


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result. `score` is the cosine similarity to the question."""

    document_id: str
    title: str
    score: float


class SearchIndex(Protocol):
    """An index of documents in PostgreSQL, filled and searched with one framework."""

    @property
    def framework(self) -> str: ...

    def add(self, documents: Sequence[Document]) -> None:
        """Embed `documents` and store them."""
        ...

    def finish(self) -> None:
        """Build whatever makes searching fast, after the last document."""
        ...

    def search(self, question: str, count: int) -> list[Hit]:
        """Return the `count` documents nearest to `question`, best first."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...
