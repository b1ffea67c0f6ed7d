"""Sources: what is planned into shards, and what a shard's reading gives."""

from .finding import SourceFile
from .planning import OnSkip, plan_shards
from .reading import read_shard
from .shards import Shard
from .sql import source_name

__all__ = ["OnSkip", "Shard", "SourceFile", "plan_shards", "read_shard", "source_name"]
