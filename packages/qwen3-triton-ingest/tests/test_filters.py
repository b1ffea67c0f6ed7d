"""Metadata filters: what they find, compared to Python, and what they reject."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Generator, Mapping
from typing import Any

import psycopg
import pytest
from psycopg import sql

from qwen3_triton_ingest.errors import FilterError
from qwen3_triton_ingest.layouts import LANGCHAIN, LLAMAINDEX, OWN, Layout, Table
from qwen3_triton_ingest.search import parse_filters
from qwen3_triton_ingest.search.filters import ROW, compile_filter

ROWS: list[dict[str, Any]] = [
    {"lang": "en", "year": 2019, "tags": ["a", "b"], "author": {"name": "Ada"}},
    {"lang": "en", "year": 2021.5, "tags": ["b"], "author": {"name": "O'Neill"}},
    {"lang": "de", "year": "2020", "tags": "a", "draft": True, "note": None},
    {"lang": "fr", "year": -1, "tags": [], "draft": False, "%s": "50 % \\ \" '"},
    {"lang": "EN", "year": 10**15, "author": "Ada", "a.b": 1},
    {},
]
TABLES = [
    Table("public", "own_rows", OWN, 3),
    Table("public", "langchain_rows", LANGCHAIN, 3, metadata_type="json"),
    Table("public", "llamaindex_rows", LLAMAINDEX, 3),
]

Predicate = Callable[[Mapping[str, Any]], bool]

CASES: list[tuple[dict[str, Any], Predicate]] = [
    ({"lang": "en"}, lambda row: row.get("lang") == "en"),
    ({"lang": {"$eq": "en"}, "year": 2019}, lambda row: row.get("year") == 2019),
    ({"lang": {"$ne": "en"}}, lambda row: "lang" in row and row["lang"] != "en"),
    ({"year": {"$gte": 2019}}, lambda row: _number(row) is not None and _number(row) >= 2019),
    ({"year": {"$lt": 2019}}, lambda row: _number(row) is not None and _number(row) < 2019),
    ({"year": {"$gt": -2, "$lte": 2019}}, lambda row: _number(row) in (-1, 2019)),
    ({"year": {"$gte": "2"}}, lambda row: row.get("year") == "2020"),
    ({"year": {"$between": [2019, 2022]}}, lambda row: _number(row) in (2019, 2021.5)),
    ({"lang": {"$in": ["de", "fr"]}}, lambda row: row.get("lang") in ("de", "fr")),
    ({"year": {"$in": [2019, "2020"]}}, lambda row: row.get("year") in (2019, "2020")),
    ({"lang": {"$in": []}}, lambda _: False),
    ({"lang": {"$nin": ["de", "fr"]}}, lambda row: row.get("lang") in ("en", "EN")),
    ({"lang": {"$like": "e%"}}, lambda row: row.get("lang") == "en"),
    ({"lang": {"$ilike": "e%"}}, lambda row: str(row.get("lang")).lower() == "en"),
    ({"draft": {"$exists": True}}, lambda row: "draft" in row),
    ({"draft": {"$exists": False}}, lambda row: "draft" not in row),
    ({"draft": True}, lambda row: row.get("draft") is True),
    ({"note": None}, lambda row: "note" in row),
    (
        {"tags": {"$contains": "a"}},
        lambda row: isinstance(row.get("tags"), list) and "a" in row["tags"],
    ),
    ({"tags": ["b"]}, lambda row: row.get("tags") == ["b"]),
    ({"author.name": "Ada"}, lambda row: row.get("author") == {"name": "Ada"}),
    ({"author.name": {"$like": "O'N%"}}, lambda row: row.get("author") == {"name": "O'Neill"}),
    ({"%s": "50 % \\ \" '"}, lambda row: "%s" in row),
    ({"%s": {"$exists": True}}, lambda row: "%s" in row),
    ({"$or": [{"lang": "de"}, {"year": {"$lt": 0}}]}, lambda row: row.get("lang") in ("de", "fr")),
    ({"$and": [{"lang": "en"}, {"tags": {"$contains": "a"}}]}, lambda row: row.get("year") == 2019),
    ({"$not": {"lang": "en"}}, lambda row: row.get("lang") != "en"),
    ({"$not": [{"lang": "en"}, {"lang": "EN"}]}, lambda row: row.get("lang") not in ("en", "EN")),
    (
        {"$not": {"year": {"$gt": 0}}},
        lambda row: not (_number(row) is not None and _number(row) > 0),
    ),
    (
        {"lang": "en", "$or": [{"year": 2019}, {"$not": {"tags": {"$exists": True}}}]},
        lambda row: row.get("year") == 2019,
    ),
]


def _number(row: Mapping[str, Any]) -> Any:
    value = row.get("year")
    return value if isinstance(value, int | float) else None


@pytest.fixture(name="connection", scope="module")
def _connection(postgres_uri: str) -> Generator[psycopg.Connection]:
    with psycopg.connect(postgres_uri) as connection:
        for table in TABLES:
            _fill(connection, table)
        yield connection
        connection.rollback()


def _fill(connection: psycopg.Connection, table: Table) -> None:
    layout: Layout = table.layout
    connection.execute(
        sql.SQL("CREATE TABLE {} (number int, {} {})").format(
            table.identifier,
            sql.Identifier(layout.metadata),
            sql.SQL(table.metadata_type),  # type: ignore[arg-type]
        )
    )
    for number, row in enumerate(ROWS):
        insert = sql.SQL("INSERT INTO {} VALUES (%s, %s)").format(table.identifier)
        connection.execute(insert, (number, json.dumps(row)))


def _found(connection: psycopg.Connection, table: Table, given: Mapping[str, Any]) -> list[int]:
    condition = compile_filter(table, given)
    assert condition is not None
    query = sql.SQL("SELECT number FROM {} AS {} WHERE {} ORDER BY number").format(
        table.identifier, sql.Identifier(ROW), condition.expression
    )
    return [row[0] for row in connection.execute(query, condition.parameters)]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.layout.name)
@pytest.mark.parametrize(
    ("given", "predicate"),
    CASES,
    ids=lambda case: json.dumps(case) if isinstance(case, dict) else "",
)
def test_a_filter_finds_what_the_same_condition_finds(
    connection: psycopg.Connection, table: Table, given: dict[str, Any], predicate: Predicate
) -> None:
    assert _found(connection, table, given) == [n for n, row in enumerate(ROWS) if predicate(row)]


def test_a_key_with_a_dot_only_leads_into_an_object(connection: psycopg.Connection) -> None:
    assert _found(connection, TABLES[0], {"a.b": 1}) == []


def test_equality_uses_a_gin_index(connection: psycopg.Connection) -> None:
    condition = compile_filter(TABLES[0], {"lang": "en", "year": {"$in": [2019, 2020]}})
    assert condition is not None
    with connection.transaction(force_rollback=True):
        connection.execute("CREATE INDEX ON own_rows USING gin (metadata jsonb_path_ops)")
        connection.execute("SET LOCAL enable_seqscan = off")
        query = sql.SQL("EXPLAIN SELECT * FROM own_rows AS chunk WHERE {}").format(
            condition.expression
        )
        plan = "\n".join(row[0] for row in connection.execute(query, condition.parameters))
    assert "own_rows_metadata_idx" in plan


def test_metadata_columns_of_langchain_are_filtered_by_their_type(
    connection: psycopg.Connection,
) -> None:
    table = Table("public", "typed", LANGCHAIN, 3, metadata_columns=("year", "day"))
    connection.execute(
        "CREATE TABLE typed (number int, langchain_metadata jsonb, year int, day date);"
        "INSERT INTO typed VALUES (0, '{\"lang\": \"en\"}', 2020, '2020-02-01'), "
        "(1, '{\"lang\": \"en\"}', 2021, '2021-02-01'), (2, '{}', NULL, NULL)"
    )
    assert _found(connection, table, {"year": 2020}) == [0]
    assert _found(connection, table, {"year": {"$gt": 2020}, "lang": "en"}) == [1]
    assert _found(connection, table, {"year": {"$in": [2020, 2021]}}) == [0, 1]
    assert _found(connection, table, {"day": {"$lt": "2021-01-01"}}) == [0]
    assert _found(connection, table, {"day": {"$exists": False}}) == [2]


@pytest.mark.parametrize("given", [None, {}])
def test_an_empty_filter_has_no_condition(given: dict[str, Any] | None) -> None:
    assert compile_filter(TABLES[0], given) is None


def test_values_and_ids_never_become_part_of_the_statement(connection: psycopg.Connection) -> None:
    nasty = "'; DROP TABLE own_rows; --"
    condition = compile_filter(TABLES[0], {"lang": nasty, "x": {"$like": nasty}})
    assert condition is not None
    assert "DROP" not in condition.expression.as_string(connection)
    assert "DROP" not in repr(condition)
    assert _found(connection, TABLES[0], {nasty: nasty}) == []
    assert _found(connection, TABLES[0], {"lang": "en"}) == [0, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"lang": "en"}], "A filter must be a JSON object"),
        ("lang = 'en'", "A filter must be a JSON object"),
        ({"$gt": 3}, "'\\$gt' instead of a metadata key"),
        ({"lang": {"$regex": "x"}}, "unknown operator '\\$regex'. Use one of \\$eq, "),
        ({"lang": {}}, "'lang' is empty"),
        ({"lang": {"$in": "en"}}, "takes a list"),
        ({"lang": {"$in": [{}]}}, "cannot be an object. Allowed are"),
        ({"year": {"$gt": None}}, "takes a number or a string, not null"),
        ({"year": {"$gt": True}}, "not a boolean"),
        ({"year": {"$between": [1]}}, "two numbers or two strings"),
        ({"year": {"$between": [1, "2"]}}, "two numbers or two strings"),
        ({"year": float("nan")}, "finite numbers"),
        ({"lang": "a\0b"}, "text without NUL"),
        ({"lang": "\ud800"}, "Allowed are text"),
        ({"lang": {"$like": 3}}, "takes a pattern"),
        ({"lang": {"$exists": "yes"}}, "takes true or false"),
        ({"$or": {"lang": "en"}}, "`\\$or` takes a list of filters"),
        ({"$or": []}, "`\\$or` takes a list of filters"),
        ({"$not": 3}, "A filter must be a JSON object"),
        ({"": 3}, "A key of a filter"),
        ({3: 3}, "A key of a filter"),
        ({"lang": {"$in": list(range(6000))}}, "more than 5,000 values"),
        ({"lang": object()}, "a value of type object"),
    ],
)
def test_the_error_for_a_bad_filter_says_what_is_allowed(given: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        compile_filter(TABLES[0], given)


def test_a_filter_nested_too_deeply_is_rejected() -> None:
    given: dict[str, Any] = {"lang": "en"}
    for _ in range(5_000):
        given = {"$not": given}
    with pytest.raises(FilterError, match="nested more than 32 levels deep"):
        compile_filter(TABLES[0], given)


def test_dates_and_uuids_compare_as_the_loader_writes_them() -> None:
    key = uuid.uuid4()
    condition = compile_filter(TABLES[0], {"id": key})
    assert condition is not None
    assert condition.parameters == {"filter_1": json.dumps({"id": str(key)})}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lang=en", {"lang": {"$eq": "en"}}),
        ("lang == en", {"lang": {"$eq": "en"}}),
        ("lang != 'x y'", {"lang": {"$ne": "'x y'"}}),
        ("year>=2020", {"year": {"$gte": 2020}}),
        ("year < 2020.5", {"year": {"$lt": 2020.5}}),
        ('zip="01234"', {"zip": {"$eq": "01234"}}),
        ("zip=01234", {"zip": {"$eq": "01234"}}),
        ("draft=true", {"draft": {"$eq": True}}),
        ("note=null", {"note": {"$eq": None}}),
        ("url=https://a.b/?x=1&y>2", {"url": {"$eq": "https://a.b/?x=1&y>2"}}),
        ("topic in a, b,3", {"topic": {"$in": ["a", "b", 3]}}),
        ("topic NOT IN a,b", {"topic": {"$nin": ["a", "b"]}}),
        ("title like %in%", {"title": {"$like": "%in%"}}),
        ("title ilike 5", {"title": {"$ilike": "5"}}),
        ("tags contains new", {"tags": {"$contains": "new"}}),
        ("draft exists", {"draft": {"$exists": True}}),
        ("draft missing", {"draft": {"$exists": False}}),
        ("author.name=Ada Lovelace", {"author.name": {"$eq": "Ada Lovelace"}}),
        ('{"year": {"$gte": 2020}}', {"year": {"$gte": 2020}}),
    ],
)
def test_filters_can_be_typed_on_the_command_line(typed: str, meant: dict[str, Any]) -> None:
    assert parse_filters([typed]) == meant
    assert compile_filter(TABLES[0], parse_filters([typed])) is not None


def test_several_typed_filters_must_all_match(connection: psycopg.Connection) -> None:
    given = parse_filters(["lang=en", "year>2020"])
    assert given is not None
    assert _found(connection, TABLES[0], given) == [1]
    assert parse_filters([]) is None


@pytest.mark.parametrize("typed", ["", "lang", "=en", "lang ~ en", "{lang: en}", "two words = 3"])
def test_the_error_for_a_mistyped_filter_says_how_to_write_it(typed: str) -> None:
    with pytest.raises(FilterError, match=r"Use KEY=VALUE|is not valid JSON"):
        parse_filters([typed])
