"""Where shards are worked on: threads of this process, a Ray cluster, a Dask cluster."""

from .base import ShardEngine, Work, map_shards
from .choice import open_engine

__all__ = ["ShardEngine", "Work", "map_shards", "open_engine"]
