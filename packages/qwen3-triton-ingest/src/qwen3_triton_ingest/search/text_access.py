"""Text search by PostgreSQL's own full-text search or by ParadeDB: the pieces of its queries.

Both take a question in plain language and find the texts with any of its words: hardly any text
contains them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from ..database import Connection
from ..layouts import Table, escaped_identifier
from .filters import ROW
from .text_indexes import (
    DEFAULT_CONFIG,
    TextBackend,
    TextBackendChoice,
    TextIndex,
    best_backend,
    check_backend,
    find_text_indexes,
    regconfig,
    tsvector_columns,
    tsvector_expression,
)

# On 312 questions that paraphrase a text, `ts_rank` ranks the text higher than `ts_rank_cd` (mean
# reciprocal rank 0.37 against 0.32; BM25: 0.43). 1 divides by the logarithm of the length.
_RANK = "ts_rank({vector}, query.words, 1)"


@dataclass(frozen=True, slots=True)
class TextAccess:
    """How a table's texts are searched.

    Attributes:
        config: Text search configuration, such as `english`; ParadeDB stores its own in the index.
        index: None if the search reads every row.
        vector: Expression or column of the `tsvector`; None: the expression over the content.
        key: Column that identifies rows in ParadeDB's index; None: the primary key.
    """

    backend: TextBackend
    config: str
    index: sql.Identifier | None = None
    vector: sql.Composable | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class TextArm:
    """The pieces of the query that finds rows by their text.

    Attributes:
        source: Joined to the table.
    """

    score: sql.Composable
    order: sql.Composable
    condition: sql.Composable
    source: sql.Composable | None = None


def find_text_access(
    connection: Connection,
    table: Table,
    backend: TextBackendChoice = "auto",
    config: str | None = None,
) -> TextAccess:
    """Return how the table's texts are searched.

    Args:
        connection: To the database; nothing is changed.
        table: The table to search.
        backend: `auto` takes the best backend that has an index.
        config: Text search configuration for `tsvector`; None takes the index's, else `english`.

    Raises:
        ValueError: The backend is unknown.
    """
    check_backend(backend)
    indexes = find_text_indexes(connection, table)
    if backend == "auto":
        backend = best_backend(indexes)
    matching = [index for index in indexes if index.backend == backend]
    if backend == "tsvector":
        return _tsvector_access(connection, table, matching, config)
    if not matching:  # ParadeDB's operators report that themselves
        return TextAccess(backend, "")
    index = matching[0]
    return TextAccess(backend, "", index.identifier, key=index.key_field)


def text_arm(table: Table, access: TextAccess) -> TextArm:
    """Return the pieces for a table; the question is the placeholder `question`."""
    arm = _paradedb if access.backend == "paradedb" else _tsvector
    return arm(table, access)


def _tsvector_access(
    connection: Connection, table: Table, indexes: Sequence[TextIndex], config: str | None
) -> TextAccess:
    columns = tsvector_columns(connection, table)
    # An index on a column before one on an expression, which is computed again for each row.
    for index in sorted(indexes, key=lambda index: index.keys[0] not in columns):
        if config in (None, index.config):
            used = index.config or DEFAULT_CONFIG
            return TextAccess("tsvector", used, index.identifier, _vector(index.keys[0], columns))
    for name, column_config in columns.items():
        if config in (None, column_config):
            column = escaped_identifier(ROW, name)
            return TextAccess("tsvector", column_config or DEFAULT_CONFIG, None, column)
    return TextAccess("tsvector", config or DEFAULT_CONFIG)


def _vector(key: str, columns: Mapping[str, str | None]) -> sql.Composable:
    if key in columns:
        return escaped_identifier(ROW, key)
    return sql.SQL("{}").format(sql.SQL(key.replace("%", "%%").replace("{", "{{")))  # pyright: ignore[reportArgumentType] - written by PostgreSQL


def _tsvector(table: Table, access: TextAccess) -> TextArm:
    vector = access.vector or tsvector_expression(table, access.config)
    # `plainto_tsquery` joins the words, stemmed and without stop words, with AND.
    query = sql.SQL(
        ",\n        (SELECT replace(plainto_tsquery({}, {})::text, ' & ', ' | ')::tsquery)"
        " AS query (words)"
    ).format(regconfig(access.config), sql.Placeholder("question"))
    key = sql.Identifier(ROW, table.layout.primary_key)
    return TextArm(
        score=sql.SQL(_RANK).format(vector=vector),
        order=sql.SQL("text_score DESC, {}").format(key),
        condition=sql.SQL("{} @@ query.words").format(vector),
        source=query,
    )


def _paradedb(table: Table, access: TextAccess) -> TextArm:
    key = escaped_identifier(ROW, access.key or table.layout.primary_key)
    content = sql.Identifier(ROW, table.layout.content)
    # In this form ParadeDB pushes order and limit down to its index.
    return TextArm(
        score=sql.SQL("pdb.score({})").format(key),
        order=sql.SQL("pdb.score({key}) DESC, {key}").format(key=key),
        condition=sql.SQL("{} ||| {}::text").format(content, sql.Placeholder("question")),
    )
