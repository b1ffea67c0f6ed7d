"""The errors of a load or a search; each message says what to do.

* IngestError
  x SourceError          a source does not exist or cannot be read at all
    + ConflictError      another source has a document with the same id, and the load is to fail
    + NothingLoadedError no document of a source could be loaded; the rest of the load is done
  x TableError           a table is missing, has the wrong columns, or lacks privileges
    + FingerprintError   a table has vectors of another embedding space
  x DatabaseError        PostgreSQL cannot be reached, was unavailable for too long, or is full
  x BusyError            another load or `--reembed` is using the table
  x FilterError          a metadata filter is not valid; also a ValueError

A problem with one document is not an error: see `BadRecord` and the dead letters. If the gateway
fails, that is a `qwen3_triton_client.EmbeddingError`.
"""

from __future__ import annotations

from typing import Any


class IngestError(Exception):
    """A load or a search cannot continue; the base of every error of this package."""


class SourceError(IngestError):
    """A source does not exist or cannot be read at all."""


class ConflictError(SourceError):
    """Another source has a document with the same id, and the load is to fail then."""


class NothingLoadedError(SourceError):
    """No document of a source could be loaded; everything else of the load is done.

    Attributes:
        report: The `LoadReport` of the load.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class TableError(IngestError):
    """A table is missing, has the wrong columns, or lacks privileges."""


class FingerprintError(TableError):
    """A table has vectors of another embedding space."""


class DatabaseError(IngestError):
    """PostgreSQL cannot be reached, was unavailable for too long, or has no space left."""


class BusyError(IngestError):
    """Another load is using the table."""


class FilterError(IngestError, ValueError):
    """A metadata filter is not valid."""
