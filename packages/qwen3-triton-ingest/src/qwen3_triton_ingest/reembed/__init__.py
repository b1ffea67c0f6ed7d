"""Moving a table to another model: a new table is filled and takes the old one's place."""

from .job import ReembedProgress, ReembedReport
from .run import abandon_reembed, reembed

__all__ = ["ReembedProgress", "ReembedReport", "abandon_reembed", "reembed"]
