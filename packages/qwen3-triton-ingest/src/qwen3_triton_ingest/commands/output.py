"""What commands have in common: JSON where a script reads, plain errors, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import orjson
import psycopg

from qwen3_triton_client import EmbeddingError

from ..database import explain
from ..errors import IngestError

__all__ = ["json_option", "plain_errors", "print_json"]

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Add `--json`, handed over as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def print_json(document: object) -> None:
    """Print a document as indented JSON."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2, default=str).decode())


@contextmanager
def plain_errors(*further: type[Exception]) -> Generator[None]:
    """End with exit code 1 and the message alone where something was expected to go wrong.

    Args:
        further: Expected beside the errors of this package, the gateway and PostgreSQL.
    """
    try:
        yield
    except psycopg.Error as error:
        click.echo(f"Error: PostgreSQL: {explain(error)}", err=True)
        sys.exit(1)
    except (IngestError, EmbeddingError, *further) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
