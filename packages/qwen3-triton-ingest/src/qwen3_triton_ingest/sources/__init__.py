"""Sources: files and queries, planned into shards that are read one by one."""

from .formats import read_shard
from .planning import OnSkip, plan_shards
from .shards import Shard, SourceFile, source_name

__all__ = ["OnSkip", "Shard", "SourceFile", "plan_shards", "read_shard", "source_name"]
