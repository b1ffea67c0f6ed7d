"""The command line, and the only reader of the environment."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ._version import __version__
from .errors import StartupError
from .settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

TRITON_PORTS = {"http": 8200, "grpc": 8201, "metrics": 8202}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Right Qwen3-Embedding vectors from NVIDIA Triton behind one HTTP call.

    \b
    Examples:
      qwen3-triton up
      qwen3-triton serve --triton-url http://localhost:8200 --triton-model qwen3_embed_4b_onnx \\
          --tokenizer-path /models/qwen3-embedding-4b
      curl localhost:8101/embed -H 'content-type: application/json' -d '{"texts": ["hello"]}'
    """


def _setting_options(command: Command) -> Command:
    """Add a flag for each setting; its help, default and variable come from `Settings`."""
    for field in reversed(Settings.model_fields.values()):
        variable = str(field.validation_alias)
        command = click.option(
            flag_name(variable), variable, metavar=_metavar(field), help=_help(variable, field)
        )(command)
    return command


def flag_name(variable: str) -> str:
    """Name a variable's flag: `EMBED_MAX_LENGTH` is `--max-length`, `TRITON_URL` `--triton-url`."""
    return "--" + variable.removeprefix("EMBED_").lower().replace("_", "-")


def _help(variable: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = f"; default {default}" if default not in (None, []) else ""
    return f"{field.description} [{variable}{shown}]"


def _metavar(field: FieldInfo) -> str:
    kinds: dict[Any, str] = {int: "INTEGER", float: "SECONDS", Path: "PATH", Path | None: "PATH"}
    return kinds.get(cast("Any", field.annotation), "TEXT")


def _read_settings(flags: dict[str, str | None]) -> Settings:
    """Join flags and environment; bad values end the command with exit code 2."""
    given = {variable: value for variable, value in flags.items() if value is not None}
    try:
        return Settings(**given)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        problems = [
            ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"]]))
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise click.UsageError("; ".join(problems)) from None


def _fail(error: StartupError | RuntimeError) -> None:
    click.echo(f"Error: {error}", err=True)
    sys.exit(1)


@main.command()
@_setting_options
def serve(**flags: str | None) -> None:
    """Run the gateway in the foreground; SIGTERM or Ctrl-C drains it and ends with 0.

    Each flag is also an environment variable, named in brackets; a flag wins. With neither
    --triton-url nor --model-dir the bundled nano model runs in the gateway's own process.

    \b
    Examples:
      qwen3-triton serve
      qwen3-triton serve --triton-url grpc://gpu-box:8201 --triton-model qwen3_embed_4b_onnx \\
          --tokenizer-path /models/qwen3-embedding-4b
      EMBED_API_KEYS=secret1,secret2 qwen3-triton serve --host 0.0.0.0
    """
    from .server import run_gateway

    try:
        run_gateway(_read_settings(flags))
    except StartupError as error:
        _fail(error)
