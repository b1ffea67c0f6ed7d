"""The command line, and the only reader of the environment.

The gateway itself has one command, `serve`. Installed distributions add others through the entry
point group `qwen3_triton.commands`; `qwen3-triton-tools` adds those in `TOOLS_COMMANDS`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from . import __version__
from .errors import StartupError, describe_invalid_value
from .settings import Settings

logger: logging.Logger = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])

COMMANDS_GROUP = "qwen3_triton.commands"
TOOLS_COMMANDS = ("doctor", "model", "triton", "tune", "up")
SECRETS = ("EMBED_API_KEYS", "EMBED_TRITON_HEADERS", "TRITON_URL")


class CommandGroup(click.Group):
    """The commands of the gateway and of every installed distribution that adds some."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_added_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in (commands := _added_commands(ctx)):
            command = _load(commands[cmd_name])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in TOOLS_COMMANDS and args[0] not in self.list_commands(ctx):
            ctx.fail(
                f"`{args[0]}` is part of qwen3-triton-tools, which is not installed. Install it "
                'with `pip install "qwen3-triton-gateway[tools]"`.'
            )
        return super().resolve_command(ctx, args)


def _added_commands(ctx: click.Context) -> dict[str, EntryPoint]:
    """Find the added commands once per command line: that reads files of every distribution."""
    if COMMANDS_GROUP not in ctx.meta:
        points = entry_points(group=COMMANDS_GROUP)
        ctx.meta[COMMANDS_GROUP] = {point.name: point for point in points}
    return ctx.meta[COMMANDS_GROUP]


def _load(point: EntryPoint) -> click.Command:
    """Load a command; one that cannot be loaded becomes a command that says why.

    So the others, and `--help`, keep working whatever is installed next to the gateway.
    """
    try:
        command = point.load()
        if isinstance(command, click.Command):
            return command
        cause = f"{point.value!r} is not a click command"
    except Exception as error:  # whatever a foreign module raises when it is imported
        cause = f"{type(error).__name__}: {error}"
    source = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    msg = f"`{point.name}` of {source} cannot be loaded ({cause}). Reinstall or remove {source}."

    @click.command(
        point.name,
        short_help=f"Unavailable ({source}).",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1)
    def unavailable(arguments: tuple[str, ...]) -> None:
        del arguments
        raise click.ClickException(msg)

    return unavailable


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def main() -> None:
    """Serve Qwen3-Embedding and Qwen3-Reranker on Triton, matching the reference implementation.

    \b
    Examples:
      qwen3-triton up
      qwen3-triton serve --triton-url http://localhost:8200 --triton-model qwen3_embed_4b_onnx \\
          --tokenizer-path /models/qwen3-embedding-4b
      curl localhost:8101/embed -H 'content-type: application/json' -d '{"texts": ["hello"]}'
    """


def setting_options(command: Command) -> Command:
    """Add a flag for each setting; its help, default and variable come from `Settings`."""
    return _with_flags(command, Settings.model_fields.values())


def some_setting_options(*variables: str) -> Callable[[Command], Command]:
    """Add the flags of the settings with these variables, as `setting_options` does for all."""
    fields = [f for f in Settings.model_fields.values() if f.validation_alias in variables]
    return lambda command: _with_flags(command, fields)


def _with_flags(command: Command, fields: Iterable[FieldInfo]) -> Command:
    for field in reversed(list(fields)):
        variable = str(field.validation_alias)
        command = click.option(
            flag_name(variable), variable, metavar=_metavar(variable, field), help=_help(field)
        )(command)
    return command


def flag_name(variable: str) -> str:
    """Return the flag of a variable: `EMBED_MAX_LENGTH` is set by `--max-length`."""
    return "--" + variable.removeprefix("EMBED_").lower().replace("_", "-")


def allowed_values(field: FieldInfo) -> str:
    """Describe the bounds of a setting: `at least 2`, `0 to 65535`, `text or json`; or nothing."""
    if get_origin(field.annotation) is Literal:
        return " or ".join(get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    bounds = {
        name: getattr(constraint, name)
        for constraint in field.metadata
        for name in ("ge", "gt", "le")
        if hasattr(constraint, name)
    }
    if "le" in bounds:
        return f"{bounds['ge']} to {bounds['le']}"
    if "ge" in bounds:
        return f"at least {bounds['ge']}" if bounds["ge"] else ""
    return f"more than {bounds['gt']}" if "gt" in bounds else ""


def default_value(field: FieldInfo) -> str:
    """Write the default of a setting; empty if there is none."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (int, float)):
        return f"{default:.10g}"
    return str(default or "")


def _help(field: FieldInfo) -> str:
    notes = [str(field.validation_alias), allowed_values(field)]
    if default := default_value(field):
        notes.append(f"default {default}")
    return f"{field.description} [{'; '.join(filter(None, notes))}]"


def _metavar(variable: str, field: FieldInfo) -> str:
    units = {"_BYTES": "BYTES", "_TOKENS": "TOKENS", "_S": "SECONDS"}
    for suffix, unit in units.items():
        if variable.endswith(suffix):
            return unit
    kinds: dict[Any, str] = {int: "INTEGER", Path | None: "PATH"}
    return kinds.get(field.annotation, "TEXT")


def read_settings(flags: dict[str, str | None]) -> Settings:
    """Merge flags with the environment; a flag wins.

    Args:
        flags: Values by the names of their variables; None where a flag is not set.

    Raises:
        click.UsageError: A value is invalid; the command exits with 2.
    """
    values = {variable: value for variable, value in flags.items() if value is not None}
    try:
        return Settings(**values)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        problems = [_describe(dict(item)) for item in error.errors(include_url=False)]
        raise click.UsageError(" ".join(problems)) from None


def warn_about_secret_flags(flags: dict[str, str | None]) -> None:
    """Log that secrets on the command line can be read by other users of the machine."""
    if flags["EMBED_API_KEYS"] is not None:
        msg = "--api-keys shows the keys in `ps`. Set EMBED_API_KEYS or EMBED_API_KEYS_FILE."
        logger.warning(msg)
    if flags["EMBED_TRITON_HEADERS"] is not None:
        msg = "--triton-headers shows its values in `ps`. Set EMBED_TRITON_HEADERS."
        logger.warning(msg)
    if "@" in (flags["TRITON_URL"] or ""):
        msg = "--triton-url shows the credentials in `ps`. Set TRITON_URL in the environment."
        logger.warning(msg)


def _describe(problem: dict[str, Any]) -> str:
    """Write one of pydantic's findings as a sentence, without showing a secret."""
    if not problem["loc"]:  # about several settings: the message names them
        return str(problem["msg"]).removeprefix("Value error, ")
    variable = str(problem["loc"][0])
    value = "a secret" if variable in SECRETS else repr(problem["input"])
    name = ".".join(map(str, problem["loc"]))  # of a value within it, if it is an object
    return describe_invalid_value(name, problem["msg"], value)


@contextmanager
def plain_errors(*expected: type[Exception]) -> Generator[None]:
    """Print the message of an expected error without a traceback, and exit with 1."""
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
    from .server import configure_logging, run_gateway

    with plain_errors(StartupError):
        settings = read_settings(flags)
        configure_logging(settings)
        warn_about_secret_flags(flags)
        run_gateway(settings)
