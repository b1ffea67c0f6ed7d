"""The one place where an engine is chosen."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ..config import Engine
from .base import ShardEngine, Work

__all__ = ["open_engine"]


@contextmanager
def open_engine(
    engine: Engine, work: Work, *, workers: int, address: str | None = None
) -> Generator[ShardEngine]:
    """Open the place of work, and close what was opened for it.

    Raises:
        IngestError: The engine's library is not installed, or its cluster cannot be reached.
    """
    if engine == "ray":
        from .on_ray import ray_engine as opened
    elif engine == "dask":
        from .on_dask import dask_engine as opened
    else:
        from .on_threads import thread_engine as opened
    with opened(work, workers, address) as place:
        yield place
