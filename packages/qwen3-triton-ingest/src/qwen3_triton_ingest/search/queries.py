"""The SQL of a search, composed of readable pieces. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import LiteralString

from psycopg import sql
from psycopg.adapt import PyFormat

from ..index.catalog import VectorIndex
from ..layouts import Table, escaped_identifier
from .filters import ROW, Condition, compile_filter
from .options import SearchMode, SearchOptions
from .text_access import TextAccess, text_arm

# Reciprocal rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009. A text counts by the square of
# its coverage: on questions that avoid the words of their answers, unstemmed, hybrid search then
# has 0.98 of the vectors' mean reciprocal rank, against 0.90 with the coverage itself and 0.82
# without it.
RANK_CONSTANT = 60

_NEAREST = """nearest AS MATERIALIZED (
    SELECT {key}, {embedding}
    FROM {table} AS {row}{where}
    ORDER BY {order}
    LIMIT %(candidates)s
)"""
# The index returns candidates in approximate order, perhaps of half-precision vectors. Distances
# are at most 2, so the last condition drops only NULL and NaN (from a vector of zeros).
_BY_VECTOR = """by_vector AS (
    SELECT {key}, {distance} AS distance,
        row_number() OVER (ORDER BY {distance}, {key}) AS vector_rank
    FROM nearest
    WHERE {distance} < 3
)"""
_BY_WORDS = """by_words AS (
    SELECT {key}, text_score, coverage,
        row_number() OVER (ORDER BY text_score DESC, {key}) AS text_rank
    FROM found
)"""
_BEST = """best AS (
    SELECT {key}, {columns}
    FROM {arms}
    ORDER BY score DESC, {key}
    LIMIT %(k)s
)"""
_COLUMNS: dict[SearchMode, LiteralString] = {
    "vector": """1 - distance AS score, distance, vector_rank,
        NULL::bigint AS text_rank, NULL::float8 AS text_score, NULL::float8 AS coverage,
        count(*) OVER () AS near""",
    "text": """text_score AS score, NULL::float8 AS distance, NULL::bigint AS vector_rank,
        text_rank, text_score, coverage, 0 AS near""",
    "hybrid": """coalesce(%(vector_weight)s::float8 / ({constant} + vector_rank), 0)
            + coalesce(%(text_weight)s::float8 * coverage ^ 2 / ({constant} + text_rank), 0)
            AS score,
        distance, vector_rank, text_rank, text_score, coverage,
        count(vector_rank) OVER () AS near""",
}
_ARMS: dict[SearchMode, LiteralString] = {
    "vector": "by_vector",
    "text": "by_words",
    "hybrid": "by_vector FULL JOIN by_words USING ({key})",
}
_SEARCH = """WITH {parts}
SELECT {id}::text, {doc_id}, {seq}, {content}, {metadata}::text,
    best.score, {distance} AS distance, best.vector_rank, best.text_rank, best.text_score,
    best.coverage, best.near
FROM best JOIN {table} AS {row} USING ({key})
ORDER BY best.score DESC, {key}"""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, with the values of its placeholders."""

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

    The caller fills the placeholders `vector` and `question`. The last column counts the rows that
    the vector arm found.

    Args:
        table: The table to search.
        options: The options of the search.
        vectors: How the nearest vectors are found.
        texts: How texts are searched; required unless the mode is `vector`.

    Raises:
        FilterError: The filter is not valid.
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
    distance = sql.SQL("best.distance")
    if options.mode == "hybrid":  # the text arm finds rows that the vector arm does not
        distance = sql.SQL("coalesce(best.distance, nullif({}, 'NaN'))").format(
            exact_distance(table)
        )
    query = sql.SQL(_SEARCH).format(
        **names, **_row_columns(table), parts=sql.SQL(", ").join(parts), distance=distance
    )
    parameters: dict[str, object] = {"candidates": options.arm_rows, "k": options.rows}
    if options.mode == "hybrid":
        weights = zip(("vector_weight", "text_weight"), options.weights, strict=True)
        parameters |= dict(weights)
    return Statement(query, parameters | (condition.parameters if condition else {}))


def settings_statement(options: SearchOptions, vectors: VectorAccess) -> Statement | None:
    """Return the statement that configures the index for this search, until its transaction ends.

    With iterative scans, an index continues until enough rows pass the filter.
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
    """Return the SQL of a search as text with named placeholders; the search itself comes last."""
    statements = [
        settings_statement(options, vectors),
        search_statement(table, options, vectors=vectors, texts=texts),
    ]
    return ";\n".join(each.query.as_string(None) for each in statements if each) + ";"


def _vector_parts(
    table: Table, options: SearchOptions, vectors: VectorAccess, condition: Condition | None
) -> list[sql.Composable]:
    # No index supports the sum, so all rows are compared.
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
    where = _where(condition, arm.condition)
    found = [sql.SQL(part).format(**_names(table), **arm.pieces, where=where) for part in arm.parts]
    return [*found, sql.SQL(_BY_WORDS).format(**_names(table))]


def _names(table: Table) -> dict[str, sql.Composable]:
    return {
        "key": sql.Identifier(table.layout.primary_key),
        "embedding": sql.Identifier(table.layout.embedding),
        "table": table.rows,
        "row": sql.Identifier(ROW),
    }


def _where(condition: Condition | None, *others: sql.Composable | None) -> sql.Composable:
    conditions = [condition.expression if condition else None, *others]
    parts = [part for part in conditions if part is not None]
    if not parts:
        return sql.SQL("")
    return sql.SQL("\n    WHERE {}").format(sql.SQL("\n        AND ").join(parts))


def _row_columns(table: Table) -> dict[str, sql.Composable]:
    layout = table.layout
    metadata: sql.Composable = sql.Identifier(ROW, layout.metadata)
    if table.metadata_columns:  # LangChain stores these outside of the JSON
        pairs = [
            sql.SQL("{}, {}").format(
                sql.Literal(name.replace("%", "%%")), escaped_identifier(ROW, name)
            )
            for name in table.metadata_columns
        ]
        metadata = sql.SQL(
            "(coalesce({}::jsonb, '{{}}') || jsonb_strip_nulls(jsonb_build_object({})))"
        ).format(metadata, sql.SQL(", ").join(pairs))
    # Rows from other writers may contain anything here, so it is read as text.
    seq = layout.seq if layout.name == "own" else f"{layout.metadata}->>'seq'"
    return {
        "id": sql.Identifier(ROW, layout.id),
        "doc_id": sql.SQL(layout.doc_id),  # pyright: ignore[reportArgumentType] - from `layouts`
        "seq": sql.SQL("({})::text").format(sql.SQL(seq)),  # pyright: ignore[reportArgumentType]
        "content": sql.Identifier(ROW, layout.content),
        "metadata": metadata,
    }


# For unit vectors, cosine distance, inner product and L2 distance give the same order.
_OPERATORS: dict[str, LiteralString] = {"cosine_ops": "<=>", "ip_ops": "<#>", "l2_ops": "<->"}
_PREFERRED = ("halfvec_cosine_ops", "vector_cosine_ops")
_QUESTION = sql.Placeholder("vector", format=PyFormat.BINARY)


@dataclass(frozen=True, slots=True)
class VectorAccess:
    """How the nearest rows are found.

    Attributes:
        order: Expression to order by; the index supports no other one.
        method: Of the index, `hnsw` or `ivfflat`; None if all rows are read.
    """

    order: sql.Composable
    method: str | None = None


def vector_access(table: Table, indexes: Sequence[VectorIndex]) -> VectorAccess:
    """Return how the nearest rows are found: with the best of the indexes."""
    usable: list[tuple[int, VectorAccess]] = []
    for index in indexes:
        order = _order(table, index) if index.valid else None
        if order is not None:
            place = _PREFERRED.index(index.opclass) if index.opclass in _PREFERRED else 2
            usable.append((place, VectorAccess(order, index.method)))
    if not usable:
        return VectorAccess(exact_distance(table))
    return min(usable, key=lambda each: each[0])[1]


def exact_distance(table: Table, *, of: str = ROW) -> sql.Composable:
    """Return the cosine distance at the precision of the column."""
    column = sql.Identifier(of, table.layout.embedding)
    return sql.SQL("{} <=> {}").format(column, _question(table, table.vector_type))


def _order(table: Table, index: VectorIndex) -> sql.Composable | None:
    """Return the distance in the form that the index supports; None for an unknown kind."""
    name = re.escape(sql.Identifier(table.layout.embedding).as_string(None).strip('"'))
    kind, _, metric = index.opclass.partition("_")
    operator = _OPERATORS.get(metric)
    if operator is None or kind not in ("vector", "halfvec"):
        return None
    column: sql.Composable = sql.Identifier(ROW, table.layout.embedding)
    if not re.fullmatch(rf'"?{name}"?', index.expression):
        cast_to = rf'\(\(?"?{name}"?\)?::(?:\S+\.)?(halfvec|vector)\({table.dimensions}\)\)'
        match = re.fullmatch(cast_to, index.expression)
        if match is None or (match[1] == "vector" and table.collection is None):
            return None
        if match[1] == "halfvec":
            column = sql.SQL("{}::halfvec({})").format(column, table.dimensions)
    return sql.SQL("{} {} {}").format(column, sql.SQL(operator), _question(table, kind))


def _question(table: Table, kind: str) -> sql.Composable:
    question = sql.SQL("{}::vector").format(_QUESTION)
    if kind == "halfvec":
        return sql.SQL("{}::halfvec({})").format(question, table.dimensions)
    return question
