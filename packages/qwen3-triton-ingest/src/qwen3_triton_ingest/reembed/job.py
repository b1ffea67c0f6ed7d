"""What a re-embedding is about, and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..config import Context, LoadOptions
from ..index.catalog import IndexProgress
from ..layouts import Table
from ..ledger.tables import Space
from .successor import successor_of

Phase: TypeAlias = Literal["embed", "index", "changes", "swap"]
"""Embedding the rows, building the indexes, embedding what changed since, swapping the tables."""


@dataclass(frozen=True, slots=True)
class Job:
    """A table, the embedding space that it moves to, and how.

    Attributes:
        table_id: The table's id in the ledger.
        context: What precedes each row's text when it is embedded.
    """

    dsn: str = field(repr=False)
    options: LoadOptions
    table: Table
    table_id: int
    space: Space
    context: Context = "none"

    @property
    def successor(self) -> Table:
        """The table that will take the old one's place."""
        return successor_of(self.table, self.space.dimensions)


@dataclass(frozen=True, slots=True)
class ReembedProgress:
    """How far a re-embedding is.

    Attributes:
        phase: What it does now.
        rows_done: Rows with a new vector, including those of earlier, interrupted runs.
        rows_total: An estimate, since others may write to the table.
        index: Progress of the index that is being built.
        needed_bytes: Approximate disk space of the new table and its indexes, which is needed in
            addition to the old ones until the swap.
    """

    phase: Phase
    rows_done: int
    rows_total: int
    index: IndexProgress | None = None
    needed_bytes: int = 0


OnReembedProgress: TypeAlias = Callable[[ReembedProgress], None]


@dataclass(frozen=True, slots=True)
class ReembedReport:
    """What a re-embedding did.

    Attributes:
        table: The table's qualified name.
        swapped: False if the table was in the gateway's embedding space already.
        rows: Rows of the table.
        embedded: Rows that this run embedded. Those of an interrupted run are not embedded again.
        former_fingerprint: The table's embedding space before.
        fingerprint: The embedding space now.
        model: The gateway's model.
        dimensions: Length of the vectors.
        seconds: How long it took.
    """

    table: str
    swapped: bool
    rows: int
    embedded: int
    former_fingerprint: str
    fingerprint: str
    model: str
    dimensions: int
    seconds: float
