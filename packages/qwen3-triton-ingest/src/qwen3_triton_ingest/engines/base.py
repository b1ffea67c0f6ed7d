"""What an engine does, and the loop that gives it shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from ..errors import IngestError
from ..sources import Shard

__all__ = ["MAX_DEATHS", "PAUSE_SECONDS", "ShardEngine", "Work", "map_shards", "missing_library"]

Work = Callable[[Shard, Callable[[], bool]], None]
"""Ingests one shard; the second argument tells whether to stop early. Safe to do twice."""

# A worker that dies takes its shard down with it; the shard is then given to another. A shard that
# takes this many workers with it is its own fault.
MAX_DEATHS = 10
# How often the caller has a look, at least.
PAUSE_SECONDS = 0.5


class ShardEngine(Protocol):
    """Do work on shards in some place."""

    def submit(self, shard: Shard) -> Any:
        """Begin, and return a handle."""
        ...

    def first_done(self, handles: list[Any]) -> tuple[list[Any], list[Any]]:
        """Wait a moment for some to be done. Returns those, and the others.

        Raises:
            Exception: What the work raised.
        """
        ...

    def cancel(self, handles: list[Any]) -> None:
        """Let what has not begun not begin, and what has begun end soon."""
        ...


def map_shards(engine: ShardEngine, shards: Iterable[Shard], *, workers: int) -> Iterator[int]:
    """Work on all shards, `workers` at a time; give the number done, some times a second.

    Raises:
        Exception: What the first failing shard raised. Nothing further is begun.
    """
    upcoming = iter(shards)
    pending: list[Any] = []
    try:
        while True:
            pending += [engine.submit(shard) for shard in islice(upcoming, workers - len(pending))]
            if not pending:
                return
            done, pending = engine.first_done(pending)
            yield len(done)
    finally:
        engine.cancel(pending)


def missing_library(engine: str) -> IngestError:
    """Say what to install."""
    return IngestError(
        f"`--engine {engine}` needs its library: pip install 'qwen3-triton-ingest[{engine}]'"
    )
