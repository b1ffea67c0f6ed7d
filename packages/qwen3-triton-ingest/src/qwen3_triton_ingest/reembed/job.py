"""What a re-embedding is about."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import LoadOptions
from ..layouts import Table
from ..ledger.tables import Space
from .successor import successor_of

__all__ = ["Job"]


@dataclass(frozen=True, slots=True)
class Job:
    """Say which table goes to which embedding space, and how."""

    dsn: str = field(repr=False)
    options: LoadOptions
    table: Table
    table_id: int
    """In the ledger."""
    space: Space

    @property
    def successor(self) -> Table:
        """Return the table that is to take the other's place."""
        return successor_of(self.table, self.space.dimensions)
