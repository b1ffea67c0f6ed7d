"""`qwen3-triton-ingest search`: what it prints, its exit codes, and that secrets stay out."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner, Result

from filled_tables import Library
from qwen3_triton_ingest.commands.search import search

IN_MANUALS = ("x", "--table", "manuals_own")


def _run(library: Library, *arguments: str, **environment: str) -> Result:
    variables = {
        "DATABASE_URL": library.dsn,
        "QWEN3_TRITON_URL": library.gateway_url,
        **environment,
    }
    return CliRunner().invoke(search, [*arguments], env=variables)


def test_the_output_shows_rank_id_score_and_the_beginning_of_the_text(library: Library) -> None:
    entry = library.entries[4]
    result = _run(library, entry.question, "--table", "manuals_own", "-k", "5")
    assert result.exit_code == 0, result.output
    place = rf"(?m)^[1-5]\. {entry.doc_id}  chunk 0  score 0\.0\d+, "
    assert re.search(place + r"vector #\d+ at 0\.\d{3}, text #\d", result.output)
    assert entry.text[:30] in result.output
    assert entry.text not in result.output


def test_json_has_every_field_of_a_hit(library: Library) -> None:
    entry = library.entries[4]
    arguments = ("--table", "manuals_llamaindex", "-k", "2", "--mode", "vector", "--json")
    result = _run(library, entry.question, *arguments, "--filter", f"number={4}")
    hits = json.loads(result.stdout)["hits"]
    assert [hit["doc_id"] for hit in hits] == [entry.doc_id]
    assert hits[0]["text"] == entry.text
    assert hits[0]["metadata"] == entry.metadata
    assert hits[0]["vector_rank"] == 1
    assert "stored_metadata" not in hits[0]


def test_all_filters_must_match(library: Library) -> None:
    filters = ("--filter", "subject in animals,astronomy", "--filter", '{"number": {"$lt": 5}}')
    result = _run(library, "light", "--table", "manuals_own", *filters, "--json")
    hits = json.loads(result.stdout)["hits"]
    assert hits
    assert all(hit["metadata"]["number"] < 5 for hit in hits)


def test_text_search_needs_no_gateway(library: Library) -> None:
    arguments = ("lava", "--table", "manuals_own", "--mode", "text")
    result = _run(library, *arguments, QWEN3_TRITON_URL="http://127.0.0.1:9")
    assert result.exit_code == 0
    assert "text #1" in result.output


def test_a_question_that_is_too_long_is_truncated_or_refused(library: Library) -> None:
    arguments = ("lava " * 2000, "--table", "manuals_own", "--mode", "vector")
    assert _run(library, *arguments).exit_code == 0
    refused = _run(library, *arguments, "--no-truncate")
    assert refused.exit_code == 1
    assert "the limit is 1024" in refused.output


def test_the_sql_is_shown_but_not_run(library: Library) -> None:
    arguments = ("x", "--table", "manuals_own", "--show-sql", "--filter", "lang=secret")
    result = _run(library, *arguments, QWEN3_TRITON_URL="http://127.0.0.1:9")
    assert result.exit_code == 0
    assert "FULL JOIN by_words" in result.output
    assert "secret" not in result.output


def test_finding_nothing_is_reported_and_not_a_failure(library: Library) -> None:
    result = _run(library, "qwxz", "--table", "manuals_own", "--mode", "text")
    assert (result.exit_code, result.output) == (0, "Nothing found.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--table", "t", "--filter", "lang"], "Use KEY=VALUE"),
        (["x", "--table", "t", "--filter", '{"a": '], "is not valid JSON"),
        (["x", "--table", "t", "--mode", "semantic"], "'semantic' is not one of"),
        (["x", "--table", "t", "--ef-search", "1001"], "1<=x<=1000"),
        (["x"], "Missing option '--table'"),
        ([], "Missing argument 'QUESTION'"),
    ],
)
def test_bad_usage_ends_with_2(library: Library, arguments: list[str], message: str) -> None:
    result = _run(library, *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--table", "nowhere"], "There is no table public.nowhere"),
        (
            ["x", "--table", "manuals_own", "--filter", '{"a": {"$x": 1}}'],
            "operator '$x'. Use one of",
        ),
        (
            ["x", "--table", "manuals_own", "--candidates", "3"],
            "`candidates` must be 10 to 100000, not 3",
        ),
        (["x", "--table", "manuals_own", "--weights", "0", "0"], "`weights` must be"),
        (["x", "--table", "manuals_own", "--gateway-url", "nonsense"], "`base_url` must look like"),
    ],
)
def test_an_error_ends_with_1_and_one_line(
    library: Library, arguments: list[str], message: str
) -> None:
    result = _run(library, *arguments)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1


def test_a_password_is_never_printed(library: Library) -> None:
    for dsn in ("postgresql://u:hidden@127.0.0.1:9/x", "postgresql://u:hidden@[/x", "hidden"):
        result = _run(library, "x", "--table", "t", "--mode", "text", DATABASE_URL=dsn)
        assert result.exit_code == 1
        assert "hidden" not in result.output


def test_control_characters_in_a_text_do_not_reach_the_terminal(
    database_url: str, library: Library
) -> None:
    import psycopg

    library.corpus.fill(database_url, "nasty")
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE nasty SET content = E'zzyzx \\x1b]0;owned\\x07 [bold]x[/bold]'")
    arguments = ("zzyzx", "--table", "nasty", "--mode", "text", "-k", "1")
    result = _run(library, *arguments, DATABASE_URL=database_url)
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
    assert "[bold]x[/bold]" in result.output  # part of the text, not markup
