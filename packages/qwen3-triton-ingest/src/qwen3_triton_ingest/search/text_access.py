"""Text search by PostgreSQL's own full-text search or by ParadeDB: the pieces of its queries.

Both take a question in plain language and find the texts with any of its words: hardly any text
contains them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from ..database import Connection
from ..layouts import Table, escaped_identifier
from .filters import ROW
from .text_indexes import (
    PLAIN_CONFIG,
    TextBackend,
    TextBackendChoice,
    TextIndex,
    best_backend,
    check_backend,
    detect_config,
    find_text_indexes,
    regconfig,
    tsvector_columns,
    tsvector_expression,
)

_PARADEDB: tuple[LiteralString, ...] = (
    """found AS MATERIALIZED (
    SELECT {key}, {score} AS text_score, 1::float8 AS coverage
    FROM {table} AS {row}{where}
    ORDER BY {order}
    LIMIT %(candidates)s
)""",
)
# PostgreSQL's own ranking does not know how rare a word is. So each word is ranked on its own, and
# weighed as in BM25, by the number of texts that have it among those that match. 1 divides by the
# logarithm of the length. `coverage` is the part of the question, by weight, that a text has. A
# backslash, chr(92), must be doubled in a tsquery; written as a literal, roles could change it.
_TSVECTOR: tuple[LiteralString, ...] = (
    """asked AS MATERIALIZED (
    SELECT array_agg(word) AS words, string_agg(word::text, ' | ')::tsquery AS any_word
    FROM unnest(tsvector_to_array(to_tsvector({config}, %(question)s))) AS lexeme, LATERAL (
        SELECT ('''' || replace(replace(lexeme, chr(92), repeat(chr(92), 2)), '''', '''''')
            || '''')::tsquery AS word
    ) AS quoted
)""",
    """matched AS MATERIALIZED (
    SELECT {row}.{key}, ARRAY(
        SELECT ts_rank(parsed.vector, word, 1) FROM unnest(asked.words) AS word) AS ranks
    FROM asked, {table} AS {row}, LATERAL (SELECT {vector} AS vector OFFSET 0) AS parsed{where}
)""",
    """weights AS MATERIALIZED (
    SELECT number, ln(1 + (texts - frequency + 0.5) / (frequency + 0.5))::float8 AS weight
    FROM (SELECT count(*) AS texts FROM matched) AS matching, (
        SELECT number, count(*) FILTER (WHERE rank > 0) AS frequency
        FROM matched, unnest(ranks) WITH ORDINALITY AS each (rank, number)
        GROUP BY number) AS counted
)""",
    """found AS MATERIALIZED (
    SELECT {key}, text_score, coverage
    FROM matched, LATERAL (
        SELECT sum(weight * rank) AS text_score,
            sum(weight) FILTER (WHERE rank > 0) / sum(weight) AS coverage
        FROM unnest(ranks) WITH ORDINALITY AS each (rank, number) JOIN weights USING (number)
    ) AS weighed
    ORDER BY text_score DESC, {key}
    LIMIT %(candidates)s
)""",
)


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
    """The part of a query that finds rows by their text.

    Attributes:
        parts: Expressions of a WITH clause; the last one, `found`, has the rows.
        condition: What a row must match.
        pieces: The placeholders of `parts`, in addition to those of the table and the condition.
    """

    parts: Sequence[LiteralString]
    condition: sql.Composable
    pieces: Mapping[str, sql.Composable]


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
        config: Text search configuration for `tsvector`; None takes the index's, else that of the
            texts' language.

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
            used = index.config or PLAIN_CONFIG
            return TextAccess("tsvector", used, index.identifier, _vector(index.keys[0], columns))
    for name, column_config in columns.items():
        if config in (None, column_config):
            column = escaped_identifier(ROW, name)
            return TextAccess("tsvector", column_config or PLAIN_CONFIG, None, column)
    return TextAccess("tsvector", config or detect_config(connection, table))


def _vector(key: str, columns: Mapping[str, str | None]) -> sql.Composable:
    if key in columns:
        return escaped_identifier(ROW, key)
    return sql.SQL("{}").format(sql.SQL(key.replace("%", "%%").replace("{", "{{")))  # pyright: ignore[reportArgumentType] - written by PostgreSQL


def _tsvector(table: Table, access: TextAccess) -> TextArm:
    vector = access.vector or tsvector_expression(table, access.config)
    return TextArm(
        _TSVECTOR,
        sql.SQL("{} @@ asked.any_word").format(vector),
        {"vector": vector, "config": regconfig(access.config)},
    )


def _paradedb(table: Table, access: TextAccess) -> TextArm:
    key = escaped_identifier(ROW, access.key or table.layout.primary_key)
    content = sql.Identifier(ROW, table.layout.content)
    score = sql.SQL("pdb.score({})").format(key)
    return TextArm(
        _PARADEDB,
        sql.SQL("{} ||| {}::text").format(content, sql.Placeholder("question")),
        # In this form ParadeDB pushes order and limit down to its index.
        {"score": score, "order": sql.SQL("{} DESC, {}").format(score, key)},
    )
