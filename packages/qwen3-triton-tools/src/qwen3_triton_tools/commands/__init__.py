"""The commands, one file each, and the options and output that they share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import click
import orjson

from qwen3_triton_gateway.settings import Pooling

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Add `--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def endpoint_option(command: Command) -> Command:
    """Add `--endpoint`, the address of the hub."""
    return click.option(
        "--endpoint",
        envvar="HF_ENDPOINT",
        show_envvar=True,
        metavar="URL",
        help="A hub other than https://huggingface.co.",
    )(command)


def pooling_option(command: Command) -> Command:
    """Add `--pooling`, the pooling that a model was trained with."""
    return click.option(
        "--pooling",
        type=click.Choice(get_args(Pooling)),
        envvar="EMBED_POOLING",
        show_envvar=True,
        default="last_token",
        show_default=True,
        help="The pooling that is right for this model; another one is an error.",
    )(command)


def pool_option(command: Command) -> Command:
    """Add `--no-pool`, passed as `pool`: whether hidden states are pooled on the way to Triton."""
    return click.option(
        "--no-pool",
        "pool",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Let Triton return hidden states, which cost the gateway several times the CPU.",
    )(command)


def rerank_option(command: Command) -> Command:
    """Add `--rerank`, the user's word that a model is a reranker."""
    return click.option(
        "--rerank",
        is_flag=True,
        help="The model is a reranker, although no name of its files says so.",
    )(command)


@contextmanager
def tool_errors() -> Generator[None]:
    """Print an error of the tools, or of the gateway at its start, without a traceback; exit 1.

    So are errors of the file system, such as missing rights or a full disk.
    """
    from qwen3_triton_gateway.cli import plain_errors
    from qwen3_triton_gateway.errors import StartupError
    from qwen3_triton_gateway.model_files import ModelFileError, describe_os_error

    from ..errors import ToolError

    with plain_errors(StartupError, ToolError, ModelFileError):
        try:
            yield
        except BrokenPipeError:  # the reader of the output has gone; click handles it
            raise
        except OSError as error:
            raise ToolError(describe_os_error(error)) from error


def print_json(document: object) -> None:
    """Print a document as indented JSON."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def print_lines(lines: Iterable[tuple[str, str | None]]) -> None:
    """Print lines, each with its color on a terminal."""
    for line, color in lines:
        click.secho(line, fg=color)


def report_progress(sentence: str) -> None:
    """Print what a command is doing to standard error."""
    click.echo(sentence, err=True)


def is_terminal() -> bool:
    """Return whether a progress bar may be shown."""
    return sys.stderr.isatty()
