"""What a re-embedding tells while it runs and when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..index.catalog import IndexProgress

__all__ = ["OnReembedProgress", "Phase", "ReembedProgress", "ReembedReport"]

Phase: TypeAlias = Literal["embed", "index", "changes", "swap"]
"""Embedding the rows, building the indexes, embedding what changed meanwhile, swapping."""


@dataclass(frozen=True, slots=True)
class ReembedProgress:
    """Say how far a re-embedding is."""

    phase: Phase
    rows_done: int
    """With a new vector, those of former runs included."""
    rows_total: int
    """Estimated: others may write meanwhile."""
    index: IndexProgress | None = None
    waiting_for: str | None = None
    """Who is away, and why."""
    needed_bytes: int = 0
    """Disk that the new table and its indexes will take beside the old ones, about."""


OnReembedProgress: TypeAlias = Callable[[ReembedProgress], None]


@dataclass(frozen=True, slots=True)
class ReembedReport:
    """Say what a re-embedding did."""

    table: str
    swapped: bool
    """False where the table's vectors were of the gateway's embedding space already."""
    rows: int
    embedded: int
    """By this run; rows that an interrupted run had done are not embedded again."""
    former_fingerprint: str
    fingerprint: str
    model: str
    dimensions: int
    seconds: float
