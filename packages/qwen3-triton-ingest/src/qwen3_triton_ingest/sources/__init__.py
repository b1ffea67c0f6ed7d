"""Sources: files and queries, planned into shards that are read one by one."""

from .formats import read_shard
from .planning import plan_shards
from .shards import (
    TARGET_DATABASE,
    Shard,
    former_names,
    is_same_file,
    is_sql,
    source_name,
    wider_source,
)
from .sql import plan_sql

__all__ = [
    "TARGET_DATABASE",
    "Shard",
    "former_names",
    "is_same_file",
    "is_sql",
    "plan_shards",
    "plan_sql",
    "read_shard",
    "source_name",
    "wider_source",
]
