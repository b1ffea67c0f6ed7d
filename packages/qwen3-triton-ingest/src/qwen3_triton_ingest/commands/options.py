"""Options that several commands share: where the table is, and where the gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from qwen3_triton_client import API_KEY_VARIABLE, BASE_URL_VARIABLE, DEFAULT_BASE_URL

__all__ = ["database_options", "gateway_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

DSN_VARIABLE = "DATABASE_URL"


def database_options(command: Command) -> Command:
    """Add `--dsn` and `--table`, handed over as `dsn` and `table`."""
    command = click.option(
        "--table",
        required=True,
        metavar="NAME",
        help="TABLE or SCHEMA.TABLE; for LlamaIndex without the `data_` before it.",
    )(command)
    return click.option(
        "--dsn",
        envvar=DSN_VARIABLE,
        required=True,
        metavar="URI",
        help="PostgreSQL: postgresql://user:password@host:5432/database. "
        f"[{DSN_VARIABLE}, which other users of the machine cannot read]",
    )(command)


def gateway_options(command: Command) -> Command:
    """Add `--gateway-url` and `--api-key`, handed over as `gateway_url` and `api_key`."""
    command = click.option(
        "--api-key",
        envvar=API_KEY_VARIABLE,
        metavar="KEY",
        help=f"Key of the gateway, if it asks for one. [{API_KEY_VARIABLE}]",
    )(command)
    return click.option(
        "--gateway-url",
        envvar=BASE_URL_VARIABLE,
        metavar="URL",
        help=f"Where the gateway listens. [{BASE_URL_VARIABLE}; default {DEFAULT_BASE_URL}]",
    )(command)
