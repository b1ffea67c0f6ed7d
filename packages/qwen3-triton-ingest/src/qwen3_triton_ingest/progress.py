"""One view over all workers: what the ledger says a run did so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .index.catalog import IndexProgress
from .ledger.runs import Counts

__all__ = ["LoadProgress", "OnProgress", "Phase"]

Phase: TypeAlias = Literal["load", "vanished", "index"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Say how far a load is."""

    phase: Phase
    counts: Counts = field(default_factory=Counts)
    shards_done: int = 0
    shards_planned: int | None = None
    """None while sources are still being looked through."""
    seconds: float = 0.0
    """Since this process began."""
    index: IndexProgress | None = None
    waiting_for: str | None = None
    """Why nothing goes on at the moment."""


OnProgress = Callable[[LoadProgress], None]
"""Called some times a second."""
