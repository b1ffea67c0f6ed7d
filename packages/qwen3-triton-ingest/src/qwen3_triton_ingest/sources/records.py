"""Records of any format, and the documents in them: columns of text, id, metadata, vector."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from qwen3_triton_client import Vector

from ..config import ReadOptions
from ..documents import BadRecord, Document, Metadata, Origin, text_digest
from .values import UnreadableError, checked_id, checked_metadata, checked_text, vector_of

ID_COLUMN = "id"
_SHOWN_COLUMNS = 20
_SHOWN_CHARACTERS = 100
_MISSING = object()


class RecordReader:
    """Turns records into documents.

    Attributes:
        dimensions: Required length of vectors; None accepts any.
        encoding: Of the file, if it had to be detected.
    """

    def __init__(self, options: ReadOptions, dimensions: int | None) -> None:
        self._options = options
        self._default_id = ID_COLUMN
        self.dimensions = dimensions
        self.encoding: str | None = None

    def match(self, columns: Sequence[str]) -> None:
        """Match the columns of the options to those of a file, whatever their case."""
        self._options = with_columns(self._options, columns)
        self._default_id = find_column(ID_COLUMN, columns) or ID_COLUMN

    def read(
        self, record: Mapping[str, Any], origin: Origin, *, vector: Vector | None = None
    ) -> Document | BadRecord:
        """Return the document in a record, or why there is none.

        Args:
            record: Values by column; `outer.inner` names a column of a nested record.
            origin: Where the record is.
            vector: Of the vector column, if the format stores float32; already checked.
        """
        doc_id: str | None = None
        try:
            id_column = self._id_column(record)
            if id_column is not None:
                doc_id = checked_id(self._id(record, id_column), self._options)
            text = self._text(record)
            if doc_id is None:
                doc_id = f"{origin.path}#{text_digest(text).hex()}"
            if vector is None and self._options.vector_column is not None:
                column = self._options.vector_column
                vector = vector_of(_look_up(record, column), self.dimensions)
            metadata = checked_metadata(self._metadata(record, id_column), self._options)
        except UnreadableError as error:
            return BadRecord(origin, str(error), doc_id=doc_id)
        return Document(doc_id, text, origin, metadata, vector=vector)

    def refuse(self, record: object, origin: Origin, reason: str) -> BadRecord:
        """Return the report on a record that cannot be read, with its id if that is readable."""
        doc_id: str | None = None
        if isinstance(record, Mapping):
            columns = cast("Mapping[str, Any]", record)
            id_column = self._id_column(columns)
            with suppress(UnreadableError):
                doc_id = (
                    checked_id(self._id(columns, id_column), self._options) if id_column else None
                )
        return BadRecord(origin, reason, doc_id=doc_id)

    def _text(self, record: Mapping[str, Any]) -> str:
        column = self._options.text_column
        text = _look_up(record, column)
        if text is _MISSING:
            raise UnreadableError(missing_column("text", column, list(record)))
        if not isinstance(text, str):
            kind = "null" if text is None else f"of type {type(text).__name__}"
            msg = (
                f"The text column {column!r} is {kind}, not a string. Choose another one with "
                "`--text-column`."
            )
            raise UnreadableError(msg)
        return checked_text(text, self._options)

    def _id_column(self, record: Mapping[str, Any]) -> str | None:
        """Return the column of the id; None if the id is a digest of the text."""
        if self._options.id_column is not None:
            return self._options.id_column
        value = record.get(self._default_id)
        usable = isinstance(value, str | int | uuid.UUID) and not isinstance(value, bool)
        return self._default_id if usable and value != "" else None

    def _id(self, record: Mapping[str, Any], column: str) -> str:
        value = _look_up(record, column)
        if value is _MISSING:
            raise UnreadableError(missing_column("id", column, list(record)))
        if isinstance(value, bool) or not isinstance(value, str | int | uuid.UUID):
            kind = "null" if value is None else f"of type {type(value).__name__}"
            raise UnreadableError(f"The id column {column!r} is {kind}, not a string or integer.")
        return str(value)

    def _metadata(self, record: Mapping[str, Any], id_column: str | None) -> Metadata:
        options = self._options
        if options.metadata_columns is not None:
            chosen = {name: _look_up(record, name) for name in options.metadata_columns}
            return {name: value for name, value in chosen.items() if value is not _MISSING}
        rest: Mapping[str, Any] = record
        for column in (options.text_column, id_column, options.vector_column):
            if column is not None:
                rest = _without(rest, column)
        return rest


def find_column(name: str, columns: Sequence[str]) -> str | None:
    """Return the column of that name, or the only one that differs in case and spaces alone."""
    if name in columns:
        return name
    similar = [column for column in columns if _folded(column) == _folded(name)]
    return similar[0] if len(similar) == 1 else None


def with_columns(options: ReadOptions, columns: Sequence[str]) -> ReadOptions:
    """Return the options with the names that a file gives to their columns."""

    def found(name: str) -> str:
        return find_column(name, columns) or name

    metadata, id_column, vector = (
        options.metadata_columns,
        options.id_column,
        options.vector_column,
    )
    return replace(
        options,
        text_column=found(options.text_column),
        id_column=None if id_column is None else found(id_column),
        vector_column=None if vector is None else found(vector),
        metadata_columns=None if metadata is None else tuple(map(found, metadata)),
    )


def needed_columns(options: ReadOptions) -> dict[str, str]:
    """Return the columns without which there is no document, by what they contain."""
    columns = {
        "text": options.text_column,
        "id": options.id_column,
        "vector": options.vector_column,
    }
    return {what: column for what, column in columns.items() if column is not None}


def missing_column(what: str, column: str, columns: list[str]) -> str:
    """Return the message for a column that does not exist, with those that do."""
    names = ", ".join(repr(name[:_SHOWN_CHARACTERS]) for name in columns[:_SHOWN_COLUMNS])
    names += f" and {len(columns) - _SHOWN_COLUMNS:,} more" if len(columns) > _SHOWN_COLUMNS else ""
    columns_text = f"The columns are {names}." if columns else "There are no columns."
    return (
        f"There is no {what} column {column!r}. {columns_text} Choose one with `--{what}-column`."
    )


def _folded(name: str) -> str:
    return name.strip().casefold()


def _look_up(record: Mapping[str, Any], column: str) -> Any:
    if column in record:
        return record[column]
    outer, dot, inner = column.partition(".")
    nested = record.get(outer)
    if dot and isinstance(nested, Mapping):
        return _look_up(cast("Mapping[str, Any]", nested), inner)
    return _MISSING


def _without(record: Mapping[str, Any], column: str) -> dict[str, Any]:
    if column in record:
        return {name: value for name, value in record.items() if name != column}
    outer, dot, inner = column.partition(".")
    nested = record.get(outer)
    if dot and isinstance(nested, Mapping):
        return {**record, outer: _without(cast("Mapping[str, Any]", nested), inner)}
    return dict(record)
