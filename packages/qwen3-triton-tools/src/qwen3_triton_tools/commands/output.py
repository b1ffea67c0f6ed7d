"""Options and output that several commands share."""

from __future__ import annotations

from collections.abc import Callable
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
