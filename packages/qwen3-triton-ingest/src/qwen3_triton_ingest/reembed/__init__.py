"""Moving a table to another model: new vectors beside the old, swapped in one transaction."""

from .progress import OnReembedProgress, ReembedProgress, ReembedReport
from .run import abandon_reembed, reembed

__all__ = [
    "OnReembedProgress",
    "ReembedProgress",
    "ReembedReport",
    "abandon_reembed",
    "reembed",
]
