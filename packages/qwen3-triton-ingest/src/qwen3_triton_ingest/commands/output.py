"""Output of every command: JSON for scripts, errors without a traceback, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

import click
import orjson
import psycopg

from qwen3_triton_client import EmbeddingError

from ..database import explain
from ..errors import IngestError


def print_json(document: object) -> None:
    """Print a document as indented JSON."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2, default=str).decode())


@contextmanager
def plain_errors(*others: type[Exception]) -> Generator[None]:
    """Print expected errors without a traceback, and exit with code 1.

    Args:
        others: Expected in addition to the errors of this package, the gateway and PostgreSQL.
    """
    try:
        yield
    except psycopg.Error as error:
        click.echo(f"Error: PostgreSQL: {explain(error)}.", err=True)
        sys.exit(1)
    except (IngestError, EmbeddingError, *others) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
