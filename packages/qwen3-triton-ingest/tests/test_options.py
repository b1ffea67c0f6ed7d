"""Options are declared once: the flags of a command are those of the option dataclasses."""

from __future__ import annotations

from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner

from qwen3_triton_ingest.commands.load import load
from qwen3_triton_ingest.commands.options import option_flags, read_options
from qwen3_triton_ingest.commands.search import search
from qwen3_triton_ingest.commands.status import status
from qwen3_triton_ingest.config import LoadOptions, SourceFormat
from qwen3_triton_ingest.sources.formats import FORMATS

NO_VARIABLES = {"QWEN3_TRITON_URL": None, "QWEN3_TRITON_API_KEY": None}


def parse(*arguments: str) -> LoadOptions:
    parsed: list[LoadOptions] = []

    @click.command()
    @option_flags(LoadOptions)
    def command(**flags: Any) -> None:
        parsed.append(read_options(LoadOptions, flags))

    result = CliRunner(env=NO_VARIABLES).invoke(command, arguments, catch_exceptions=False)
    assert parsed, result.output
    return parsed[0]


def test_without_flags_every_option_has_its_default() -> None:
    assert parse() == LoadOptions()


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["--format", "pdf"], "read.format", "pdf"),
        (["--metadata", "a", "--metadata", "b"], "read.metadata_columns", ("a", "b")),
        (["--max-document-mib", "0.5"], "read.max_document_bytes", 512 * 1024),
        (["--chunk-tokens", "0"], "split.chunk_tokens", 0),
        (["--gateway-url", "http://gpu:8101"], "gateway.url", "http://gpu:8101"),
        (["--truncate"], "gateway.truncate", True),
        (["--full-precision-index"], "index.halfvec", False),
        (["--index-workers", "0"], "index.parallel_workers", 0),
        (["--max-vanished", "1"], "max_vanished_fraction", 1.0),
        (["--label", "team=a", "--label", "x=y=z"], "labels", {"team": "a", "x": "y=z"}),
        (["--converter", "org=a -t=b {path}"], "read.converters", {"org": "a -t=b {path}"}),
    ],
)
def test_a_flag_sets_its_option(arguments: list[str], path: str, value: object) -> None:
    found: object = parse(*arguments)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "team"], "'team' must look like KEY=VALUE"),
        (["--engine", "dask"], "'dask' is not one of 'threads', 'ray'"),
        (["--text-index", "pg_textsearch"], "'pg_textsearch' is not one of"),
        (["--workers", "0"], "x>=1"),
        (["--max-document-mib", "0"], "x>0"),
        (["--tokenizer", "nowhere"], "does not exist"),
        (["--reembed", "--abandon-reembed"], "not both"),
    ],
)
def test_a_bad_value_ends_with_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(load, ["x", "--table", "t", "--dsn", "unused", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize("command", [load, search, status])
def test_every_flag_has_help(command: click.Command) -> None:
    flags = [each for each in command.params if isinstance(each, click.Option)]
    assert flags
    assert [each.name for each in flags if not (each.help or "").endswith(".")] == []
    assert "Examples:" in (command.help or "")


def test_the_docstring_of_an_option_class_lists_its_options() -> None:
    assert "    workers: Shards to process at the same time." in (LoadOptions.__doc__ or "")


def test_every_source_format_is_registered() -> None:
    assert {*FORMATS, "sql"} == set(get_args(SourceFormat))
