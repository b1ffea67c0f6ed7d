"""What can go wrong with a load or a search; each message says what to do.

* IngestError
  x SourceError          a source that cannot be found or read at all
  x TableError           a table that is missing, of another shape, or without rights
    + FingerprintError   the table holds vectors of another embedding space
  x DatabaseError        PostgreSQL cannot be reached, or stayed away too long
  x BusyError            another load or `--reembed` is at work on the table
  x FilterError          a metadata filter that cannot be read; also a ValueError

What concerns one document is no error: see `BadRecord` and the dead letters. What the gateway
refuses altogether is `qwen3_triton_client.EmbeddingError`.
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "DatabaseError",
    "FilterError",
    "FingerprintError",
    "IngestError",
    "SourceError",
    "TableError",
]


class IngestError(Exception):
    """Report that a load or a search could not go on; base of every error of this package."""


class SourceError(IngestError):
    """Report a source that cannot be found or read at all."""


class TableError(IngestError):
    """Report a table that is missing, has another shape, or may not be used by this user."""


class FingerprintError(TableError):
    """Report that a table holds vectors of another embedding space."""


class DatabaseError(IngestError):
    """Report that PostgreSQL cannot be reached, or stayed away for too long."""


class BusyError(IngestError):
    """Report that another load is at work on the same table."""


class FilterError(IngestError, ValueError):
    """Report a metadata filter that cannot be read."""
