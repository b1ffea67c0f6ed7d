"""Three ways to find by words: PostgreSQL's own, ParadeDB's and pg_textsearch's. No I/O.

All take a question as it is asked and find the texts that have any of its words: of a question in
plain language hardly any text has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from psycopg import sql

from ..layouts import Table
from .filters import ROW

__all__ = [
    "EXTENSIONS",
    "TextAccess",
    "TextArm",
    "TextBackend",
    "TextBackendChoice",
    "key_column",
    "text_arm",
    "tsvector_expression",
]

TextBackend: TypeAlias = Literal["tsvector", "paradedb", "pg_textsearch"]
TextBackendChoice: TypeAlias = TextBackend | Literal["auto"]

EXTENSIONS: dict[TextBackend, str] = {"paradedb": "pg_search", "pg_textsearch": "pg_textsearch"}

# Against 312 questions that reword a text, `ts_rank` puts the text higher than `ts_rank_cd` does
# (mean reciprocal rank 0.37 and 0.32, of BM25 0.43); 1 is to divide by the length's logarithm.
_RANK = "ts_rank({vector}, asked.words, 1)"


@dataclass(frozen=True, slots=True)
class TextAccess:
    """Say how texts of a table are found by words."""

    backend: TextBackend
    config: str
    """Text search configuration, such as `english`. ParadeDB keeps its own in the index."""
    index: sql.Identifier | None = None
    """None where nothing serves the search but reading every row."""
    vector: sql.Composable | None = None
    """Expression or column of the `tsvector`; None: the expression of the content."""
    key: str | None = None
    """Column that ParadeDB's index knows rows by; None: the primary key."""


@dataclass(frozen=True, slots=True)
class TextArm:
    """Hold the pieces of the query that finds rows by words."""

    raw_score: sql.Composable
    order: sql.Composable
    score: sql.Composable
    """Of `raw_score`, higher where a text fits better."""
    condition: sql.Composable | None = None
    source: sql.Composable | None = None
    """What stands beside the table."""
    kept: sql.Composable | None = None
    """Of the rows so found, those in which a word was found; None: all."""


def key_column(table: Table) -> str:
    """Return the primary key's column, by which arms of a query are joined."""
    return "id" if table.layout.name == "llamaindex" else table.layout.id


def text_arm(table: Table, access: TextAccess) -> TextArm:
    """Return the pieces for a table; the question is the placeholder `question`."""
    return _ARMS[access.backend](table, access)


def tsvector_expression(table: Table, config: str) -> sql.Composable:
    """Return the expression that the index and the queries share."""
    content = sql.Identifier(table.layout.content)
    return sql.SQL("to_tsvector({}, {})").format(_regconfig(config), content)


def _regconfig(config: str) -> sql.Composable:
    return sql.SQL("{}::regconfig").format(sql.Literal(config))


def _tsvector(table: Table, access: TextAccess) -> TextArm:
    vector = access.vector or tsvector_expression(table, access.config)
    # `plainto_tsquery` joins the words, stemmed and without stop words, by AND.
    asked = sql.SQL(
        ",\n        (SELECT replace(plainto_tsquery({}, {})::text, ' & ', ' | ')::tsquery)"
        " AS asked (words)"
    ).format(_regconfig(access.config), sql.Placeholder("question"))
    return TextArm(
        raw_score=sql.SQL(_RANK).format(vector=vector),
        order=sql.SQL("raw_score DESC, {}").format(sql.Identifier(ROW, key_column(table))),
        score=sql.SQL("raw_score"),
        condition=sql.SQL("{} @@ asked.words").format(vector),
        source=asked,
    )


def _paradedb(table: Table, access: TextAccess) -> TextArm:
    key = sql.Identifier(ROW, access.key or key_column(table))
    content = sql.Identifier(ROW, table.layout.content)
    # In this form ParadeDB hands order and limit to its index.
    return TextArm(
        raw_score=sql.SQL("pdb.score({})").format(key),
        order=sql.SQL("pdb.score({key}) DESC, {key}").format(key=key),
        score=sql.SQL("raw_score"),
        condition=sql.SQL("{} ||| {}::text").format(content, sql.Placeholder("question")),
    )


def _pg_textsearch(table: Table, access: TextAccess) -> TextArm:
    index = access.index.as_string(None) if access.index else ""
    distance = sql.SQL("{} <@> to_bm25query({}::text, {})").format(
        sql.Identifier(ROW, table.layout.content),
        sql.Placeholder("question"),
        sql.Literal(index.replace("%", "%%")),
    )
    # The negative of BM25's score, 0 for rows without any of the words.
    return TextArm(
        raw_score=distance,
        order=distance,
        score=sql.SQL("-raw_score"),
        kept=sql.SQL("raw_score < 0"),
    )


_ARMS: dict[TextBackend, Callable[[Table, TextAccess], TextArm]] = {
    "tsvector": _tsvector,
    "paradedb": _paradedb,
    "pg_textsearch": _pg_textsearch,
}
