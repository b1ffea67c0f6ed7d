"""What the demo asks of a framework: take documents in, give hits back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from demo.documents import Document

DIMENSIONS = 1024


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found; `score` is the cosine similarity with the question."""

    document_id: str
    title: str
    score: float


class SearchIndex(Protocol):
    """An index of documents in PostgreSQL, filled and searched through one framework."""

    @property
    def framework(self) -> str: ...

    def add(self, documents: Sequence[Document]) -> None:
        """Embed `documents` and store them."""
        ...

    def finish(self) -> None:
        """Make searching fast, once all documents are in."""
        ...

    def search(self, question: str, count: int) -> list[Hit]:
        """Return the `count` documents nearest to `question`, best first."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...
