"""Moving a table to another model: a new table is filled and takes the old one's place."""

from .job import OnReembedProgress, ReembedProgress, ReembedReport
from .run import abandon_reembed, reembed

__all__ = [
    "OnReembedProgress",
    "ReembedProgress",
    "ReembedReport",
    "abandon_reembed",
    "reembed",
]
