"""The command line, and the only reader of the environment.

The gateway itself has one command, `serve`. Installed distributions add others through the entry
point group `qwen3_triton.commands`; `qwen3-triton-tools` brings those in `TOOLS_COMMANDS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from . import __version__
from .errors import StartupError
from .settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

COMMANDS_GROUP = "qwen3_triton.commands"
TOOLS_COMMANDS = ("doctor", "model", "triton", "up")


class CommandGroup(click.Group):
    """The commands of the gateway and of every installed distribution that adds some."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in (added := _entry_points()):
            command = cast("click.Command", added[cmd_name].load())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in TOOLS_COMMANDS and args[0] not in self.list_commands(ctx):
            ctx.fail(
                f"`{args[0]}` is part of qwen3-triton-tools, which is not installed. "
                'Install it with: pip install "qwen3-triton-gateway[tools]"'
            )
        return super().resolve_command(ctx, args)


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=COMMANDS_GROUP)}


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def main() -> None:
    """Serve Qwen3-Embedding vectors that match the reference implementation, through Triton.

    \b
    Examples:
      qwen3-triton up
      qwen3-triton serve --triton-url http://localhost:8200 --triton-model qwen3_embed_4b_onnx \\
          --tokenizer-path /models/qwen3-embedding-4b
      curl localhost:8101/embed -H 'content-type: application/json' -d '{"texts": ["hello"]}'
    """


def setting_options(command: Command) -> Command:
    """Add a flag for each setting; its help, default and variable come from `Settings`."""
    for field in reversed(Settings.model_fields.values()):
        variable = str(field.validation_alias)
        command = click.option(
            flag_name(variable), variable, metavar=_metavar(field), help=_help(variable, field)
        )(command)
    return command


def flag_name(variable: str) -> str:
    """Return the flag of a variable: `EMBED_MAX_LENGTH` is set by `--max-length`."""
    return "--" + variable.removeprefix("EMBED_").lower().replace("_", "-")


def _help(variable: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = f"; default {default}" if default not in (None, []) else ""
    return f"{field.description} [{variable}{shown}]"


def _metavar(field: FieldInfo) -> str:
    kinds: dict[Any, str] = {int: "INTEGER", float: "SECONDS", Path: "PATH", Path | None: "PATH"}
    return kinds.get(cast("Any", field.annotation), "TEXT")


def read_settings(flags: dict[str, str | None]) -> Settings:
    """Merge flags with the environment; a flag wins.

    Raises:
        click.UsageError: A value is invalid; the command exits with 2.
    """
    given = {variable: value for variable, value in flags.items() if value is not None}
    try:
        return Settings(**given)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        problems = [
            ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"]]))
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise click.UsageError("; ".join(problems)) from None


@contextmanager
def plain_errors(*expected: type[Exception]) -> Generator[None]:
    """Print an expected error's message alone and exit with 1."""
    try:
        yield
    except expected as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


@main.command()
@setting_options
def serve(**flags: str | None) -> None:
    """Run the gateway in the foreground; SIGTERM or Ctrl-C drains it and exits with 0.

    Each flag is also an environment variable, named in brackets; a flag wins. With neither
    --triton-url nor --model-dir, the bundled nano model runs in the gateway's own process.

    \b
    Examples:
      qwen3-triton serve
      qwen3-triton serve --triton-url grpc://gpu-box:8201 --triton-model qwen3_embed_4b_onnx \\
          --tokenizer-path /models/qwen3-embedding-4b
      EMBED_API_KEYS=secret1,secret2 qwen3-triton serve --host 0.0.0.0
    """
    from .server import run_gateway

    with plain_errors(StartupError):
        run_gateway(read_settings(flags))
