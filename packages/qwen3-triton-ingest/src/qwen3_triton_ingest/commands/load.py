"""`qwen3-triton-ingest load`: bring documents into a table."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from ..config import LoadOptions
from .load_bar import LoadBar, load_bar
from .load_options import load_flags, read_load_options
from .options import database_options, gateway_options
from .output import json_option, plain_errors, print_json
from .report import print_load_report, print_reembed_report

__all__ = ["load"]


@click.command()
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@database_options
@gateway_options
@load_flags
@json_option
def load(*, sources: tuple[str, ...], dsn: str, table: str, as_json: bool, **flags: Any) -> None:
    """Bring documents into a table of pgvector or ParadeDB.

    SOURCE is a file, a folder or a glob: JSONL, CSV, Parquet, text, Markdown, HTML, PDF. Run the
    same command again at any time: what is in the table is skipped, what changed is replaced,
    what was interrupted goes on where it stopped.

    \b
    Examples:
      qwen3-triton-ingest load docs/ --table manuals
      qwen3-triton-ingest load 'articles/*.jsonl' --text-column body --table articles
      qwen3-triton-ingest load postgresql://shop-db/shop --table products \\
          --query 'SELECT id, description AS text, brand FROM products'
      qwen3-triton-ingest load docs/ --table manuals --layout langchain
      qwen3-triton-ingest load corpus/ --table corpus --engine ray --workers 16
      qwen3-triton-ingest load --table manuals --reembed
    """
    if not sources and not flags["reembed"]:
        raise click.UsageError("Name at least one SOURCE, or give --reembed.")
    options = read_load_options(flags)
    with _usage_errors(), plain_errors(), load_bar() as bar:
        if flags["reembed"]:
            _reembed(dsn, table, options, bar, as_json=as_json)
        if not sources:
            return
        from ..load import load as load_sources

        report = load_sources(
            sources,
            dsn=dsn,
            table=table,
            options=options,
            on_progress=bar.show_load,
            on_notice=bar.notice,
        )
        bar.finish()
        if as_json:
            print_json(asdict(report))
        else:
            print_load_report(report)


@contextmanager
def _usage_errors() -> Generator[None]:
    """End with exit code 2 where an option is out of range."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _reembed(dsn: str, table: str, options: LoadOptions, bar: LoadBar, *, as_json: bool) -> None:
    from ..reembed import reembed

    report = reembed(dsn, table, options, on_progress=bar.show_reembed, on_notice=bar.notice)
    bar.finish()
    if as_json:
        print_json(asdict(report))
    else:
        print_reembed_report(report)
