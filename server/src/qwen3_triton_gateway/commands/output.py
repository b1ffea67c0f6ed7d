"""What commands have in common: options, JSON where a script reads, plain errors, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import orjson

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Add `--json`, handed over as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def endpoint_option(command: Command) -> Command:
    """Add `--endpoint`, the address of the hub."""
    return click.option(
        "--endpoint",
        envvar="HF_ENDPOINT",
        show_envvar=True,
        metavar="URL",
        help="Another hub than https://huggingface.co.",
    )(command)


def print_json(document: object) -> None:
    """Print a document as indented JSON."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


@contextmanager
def plain_errors(*expected: type[Exception]) -> Generator[None]:
    """End with exit code 1 and the message alone where something was expected to go wrong."""
    try:
        yield
    except expected as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
