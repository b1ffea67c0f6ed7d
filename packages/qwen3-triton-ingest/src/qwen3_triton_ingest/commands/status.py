"""`qwen3-triton-ingest status`: how far a table is."""

from __future__ import annotations

from dataclasses import asdict

import click

from .options import database_options
from .output import json_option, plain_errors, print_json
from .report import print_status

__all__ = ["status"]


@click.command()
@database_options
@click.option(
    "--errors",
    "max_dead_letters",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Documents set aside to show.",
)
@json_option
def status(*, dsn: str, table: str, max_dead_letters: int, as_json: bool) -> None:
    """Say how far a table is: the latest run, its indexes, documents that could not be loaded.

    Works from any machine, also while a load is at work, whichever engine runs it.

    \b
    Examples:
      qwen3-triton-ingest status --table manuals
      qwen3-triton-ingest status --table manuals --errors 500
      watch -n 5 qwen3-triton-ingest status --table manuals
    """
    from ..status import status as look

    with plain_errors():
        found = look(dsn, table, max_dead_letters=max_dead_letters)
        if as_json:
            print_json(asdict(found))
        else:
            print_status(found)
