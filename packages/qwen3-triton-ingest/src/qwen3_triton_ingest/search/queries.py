"""The SQL of a search, put together from pieces that can be read. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import LiteralString

from psycopg import sql

from ..layouts import Table
from .filters import ROW, Condition, compile_filter
from .options import SearchMode, SearchOptions
from .text_backends import TextAccess, key_column, text_arm
from .vector_access import VectorAccess, exact_distance

__all__ = ["RANK_CONSTANT", "Statement", "search_sql", "search_statement", "settings_statement"]

# Of reciprocal rank fusion; Cormack, Clarke and Büttcher, SIGIR 2009.
RANK_CONSTANT = 60

_NEAREST = """nearest AS MATERIALIZED (
    SELECT {key}, {embedding}
    FROM {table} AS {row}{where}
    ORDER BY {order}
    LIMIT %(candidates)s
)"""
# The index gives candidates in about the right order, and may know them by half precision. Of
# distances, which are at most 2, NULL and NaN (of a vector of zeros) are not below 3.
_BY_VECTOR = """by_vector AS (
    SELECT {key}, {distance} AS distance,
        row_number() OVER (ORDER BY {distance}, {key}) AS vector_rank
    FROM nearest
    WHERE {distance} < 3
)"""
_FOUND = """found AS MATERIALIZED (
    SELECT {key}, {raw_score} AS raw_score
    FROM {table} AS {row}{source}{where}
    ORDER BY {order}
    LIMIT %(candidates)s
)"""
_BY_WORDS = """by_words AS (
    SELECT {key}, {score} AS text_score,
        row_number() OVER (ORDER BY {score} DESC, {key}) AS text_rank
    FROM found
    WHERE {kept}
)"""
_BEST = """best AS (
    SELECT {key}, {columns}
    FROM {arms}
    ORDER BY score DESC, {key}
    LIMIT %(k)s
)"""
_COLUMNS: dict[SearchMode, LiteralString] = {
    "vector": """1 - distance AS score, distance, vector_rank,
        NULL::bigint AS text_rank, NULL::float8 AS text_score, count(*) OVER () AS near""",
    "text": """text_score AS score, NULL::float8 AS distance, NULL::bigint AS vector_rank,
        text_rank, text_score, 0 AS near""",
    "hybrid": """coalesce(%(vector_weight)s::float8 / ({constant} + vector_rank), 0)
            + coalesce(%(text_weight)s::float8 / ({constant} + text_rank), 0) AS score,
        distance, vector_rank, text_rank, text_score, count(vector_rank) OVER () AS near""",
}
_ARMS: dict[SearchMode, LiteralString] = {
    "vector": "by_vector",
    "text": "by_words",
    "hybrid": "by_vector FULL JOIN by_words USING ({key})",
}
_SEARCH = """WITH {parts}
SELECT {id}::text, {doc_id}, {seq}, {content}, {metadata}::text,
    best.score, best.distance, best.vector_rank, best.text_rank, best.text_score, best.near
FROM best JOIN {table} AS {row} USING ({key})
ORDER BY best.score DESC, {key}"""


@dataclass(frozen=True, slots=True)
class Statement:
    """Hold a statement with the values of its placeholders."""

    query: sql.Composed
    parameters: dict[str, object] = field(default_factory=dict[str, object], repr=False)


def search_statement(
    table: Table,
    options: SearchOptions,
    *,
    vectors: VectorAccess,
    texts: TextAccess | None,
) -> Statement:
    """Return the statement that finds the best rows.

    Its placeholders `vector` and `question` are the caller's to fill. The last column counts the
    rows that the vector arm found.

    Args:
        table: Where.
        options: What is asked.
        vectors: How the nearest are found.
        texts: How words are found; needed but for the mode `vector`.

    Raises:
        FilterError: The filter cannot be read.
    """
    condition = compile_filter(table, options.filter)
    parts: list[sql.Composable] = []
    if options.mode != "text":
        parts += _vector_parts(table, options, vectors, condition)
    if options.mode != "vector":
        assert texts is not None
        parts += _text_parts(table, texts, condition)
    names = _names(table)
    parts.append(
        sql.SQL(_BEST).format(
            **names,
            columns=sql.SQL(_COLUMNS[options.mode]).format(constant=RANK_CONSTANT),
            arms=sql.SQL(_ARMS[options.mode]).format(**names),
        )
    )
    query = sql.SQL(_SEARCH).format(**names, **_row_columns(table), parts=sql.SQL(", ").join(parts))
    parameters: dict[str, object] = {"candidates": options.arm_rows, "k": options.k}
    if options.mode == "hybrid":
        weights = zip(("vector_weight", "text_weight"), options.weights, strict=True)
        parameters |= dict(weights)
    return Statement(query, parameters | (condition.parameters if condition else {}))


def settings_statement(options: SearchOptions, vectors: VectorAccess) -> Statement | None:
    """Return the statement that sets an index to this search, until its transaction ends.

    With iterative scans an index goes on until enough rows pass the filter.
    """
    if options.mode == "text" or options.exact or vectors.method is None:
        return None
    settings = {f"{vectors.method}.iterative_scan": "relaxed_order"}
    if vectors.method == "hnsw":
        settings["hnsw.ef_search"] = str(options.search_width)
    calls = [
        sql.SQL("set_config({}, {}, true)").format(sql.Literal(name), sql.Literal(value))
        for name, value in settings.items()
    ]
    return Statement(sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)))


def search_sql(
    table: Table,
    options: SearchOptions,
    *,
    vectors: VectorAccess,
    texts: TextAccess | None = None,
) -> str:
    """Return the SQL of a search to read, with named placeholders; the last one is the search."""
    statements = [
        settings_statement(options, vectors),
        search_statement(table, options, vectors=vectors, texts=texts),
    ]
    return ";\n".join(each.query.as_string(None) for each in statements if each) + ";"


def _vector_parts(
    table: Table, options: SearchOptions, vectors: VectorAccess, condition: Condition | None
) -> list[sql.Composable]:
    # No index serves the sum, so all rows are compared.
    exact = sql.SQL("({}) + 0").format(exact_distance(table))
    nearest = sql.SQL(_NEAREST).format(
        **_names(table),
        where=_where(condition),
        order=exact if options.exact else vectors.order,
    )
    distance = exact_distance(table, of="nearest")
    return [nearest, sql.SQL(_BY_VECTOR).format(**_names(table), distance=distance)]


def _text_parts(
    table: Table, texts: TextAccess, condition: Condition | None
) -> list[sql.Composable]:
    arm = text_arm(table, texts)
    found = sql.SQL(_FOUND).format(
        **_names(table),
        raw_score=arm.raw_score,
        source=arm.source or sql.SQL(""),
        where=_where(condition, arm.condition),
        order=arm.order,
    )
    kept = arm.kept or sql.SQL("TRUE")
    ranked = sql.SQL(_BY_WORDS).format(**_names(table), score=arm.score, kept=kept)
    return [found, ranked]


def _names(table: Table) -> dict[str, sql.Composable]:
    return {
        "key": sql.Identifier(key_column(table)),
        "embedding": sql.Identifier(table.layout.embedding),
        "table": table.identifier,
        "row": sql.Identifier(ROW),
    }


def _where(condition: Condition | None, *others: sql.Composable | None) -> sql.Composable:
    given = [condition.expression if condition else None, *others]
    parts = [part for part in given if part is not None]
    if not parts:
        return sql.SQL("")
    return sql.SQL("\n    WHERE {}").format(sql.SQL("\n        AND ").join(parts))


def _row_columns(table: Table) -> dict[str, sql.Composable]:
    layout = table.layout
    metadata: sql.Composable = sql.Identifier(ROW, layout.metadata)
    if table.metadata_columns:  # which LangChain keeps out of the JSON
        pairs = [
            sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(ROW, name))
            for name in table.metadata_columns
        ]
        metadata = sql.SQL(
            "(coalesce({}::jsonb, '{{}}') || jsonb_strip_nulls(jsonb_build_object({})))"
        ).format(metadata, sql.SQL(", ").join(pairs))
    # Rows that others wrote may have anything there, so it is read as text.
    seq = layout.seq if layout.name == "own" else f"{layout.metadata}->>'seq'"
    return {
        "id": sql.Identifier(ROW, layout.id),
        "doc_id": sql.SQL(layout.doc_id),  # pyright: ignore[reportArgumentType] - our own words
        "seq": sql.SQL("({})::text").format(sql.SQL(seq)),  # pyright: ignore[reportArgumentType]
        "content": sql.Identifier(ROW, layout.content),
        "metadata": metadata,
    }
