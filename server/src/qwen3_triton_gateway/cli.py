"""The command line, and the only reader of the environment."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ._version import __version__
from .commands.doctor import doctor
from .commands.model import model
from .commands.output import plain_errors
from .errors import StartupError
from .settings import Settings

if TYPE_CHECKING:
    from .local_triton import LocalTriton

Command = TypeVar("Command", bound=Callable[..., Any])

PORTS = {"http": 8200, "grpc": 8201, "metrics": 8202}
TRITON_FLAGS = tuple(f"{service}_port" for service in PORTS)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


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


main.add_command(model)
main.add_command(doctor)


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

    with _plain_errors():
        run_gateway(_read_settings(flags))


def _triton_options(command: Command) -> Command:
    """Add the flags that `triton` and `up` share."""
    for service, port in PORTS.items():
        command = click.option(
            f"--{service}-port",
            type=int,
            default=port,
            show_default=True,
            help="0 takes a free one.",
        )(command)
    command = click.option("--model-name", help="Name of the model in Triton.")(command)
    return click.option(
        "--threads", type=int, default=0, help="Threads of ONNX Runtime; 0 takes every core."
    )(command)


@main.command()
@click.option("--model-dir", type=FOLDER, help="Folder with model.onnx; default the nano model.")
@click.option("--model-repository", type=FOLDER, help="A whole Triton model repository instead.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--prepare", is_flag=True, help="Only install what the local Triton needs.")
@_triton_options
def triton(
    *, model_dir: Path | None, model_repository: Path | None, host: str, prepare: bool, **flags: Any
) -> None:
    """Run a real Triton Inference Server on this machine, without Docker, in the foreground.

    Linux x86-64. The server's files are installed once into the user's cache folder (or
    QWEN3_TRITON_RUNTIME_DIR). The model runs on the CPU, by ONNX Runtime in Triton's Python
    backend, with the names, shapes and batching of the production server.

    \b
    Examples:
      qwen3-triton triton
      qwen3-triton triton --model-dir ./qwen3-embedding-0.6b --model-name qwen3_embed_onnx
      qwen3-triton triton --model-repository ./model_repository --http-port 8000
    """
    from .local_triton import ensure_runtime, run_foreground, unsupported_reason

    with _plain_errors():
        if prepare:
            reason = unsupported_reason()
            if reason:
                click.echo(f"Not installed: {reason}.", err=True)
            else:
                ensure_runtime(_progress)
            return
        if model_dir and model_repository:
            raise click.UsageError("Give --model-dir or --model-repository, not both.")
        server = _local_triton(model_dir, model_repository, host=host, **flags)
        sys.exit(run_foreground(server, on_ready=_show_addresses))


@main.command()
@_setting_options
@_triton_options
def up(**flags: Any) -> None:
    """Run a local Triton and the gateway in front of it, with one Ctrl-C for both.

    Takes the flags of `triton` and of `serve`; --model-dir names the model, by default the bundled
    nano model. Where the local Triton cannot run, the model runs in the gateway's process.

    \b
    Examples:
      qwen3-triton up
      qwen3-triton up --model-dir ./qwen3-embedding-0.6b --port 8101
    """
    from .bundled import with_bundled_model
    from .local_stack import run_stack
    from .local_triton import unsupported_reason
    from .server import run_gateway

    triton_flags = {name: flags.pop(name) for name in (*TRITON_FLAGS, "model_name", "threads")}
    with _plain_errors():
        settings = _read_settings(flags)
        if settings.triton_url:
            raise click.UsageError("`up` starts its own Triton; for another one use `serve`.")
        reason = unsupported_reason()
        if reason:
            click.echo(f"Without a Triton: {reason}.", err=True)
            click.echo("The model runs in the gateway's process instead.", err=True)
            run_gateway(settings)
        else:
            triton = _local_triton(settings.model_dir, None, **triton_flags)
            run_stack(with_bundled_model(settings), triton)


def _local_triton(
    model_dir: Path | None,
    model_repository: Path | None,
    *,
    model_name: str | None,
    threads: int,
    **options: Any,
) -> LocalTriton:
    from .bundled import NANO_MODEL_ID, nano_model_dir
    from .local_triton import LocalTriton, ensure_runtime

    default_name = model_dir.name if model_dir else NANO_MODEL_ID
    if model_dir is None and model_repository is None:
        model_dir = nano_model_dir()
    return LocalTriton(
        model_dir=model_dir,
        model_repository=model_repository,
        model_name=model_name or default_name,
        intra_op_threads=threads,
        runtime=ensure_runtime(_progress),
        **options,
    )


def _show_addresses(triton: LocalTriton) -> None:
    click.echo(f"Triton serves {triton.model_name}; Ctrl-C stops it.", err=True)
    for url in (triton.http_url, triton.grpc_url, triton.metrics_url):
        click.echo(f"  {url}", err=True)


def _progress(sentence: str) -> None:
    click.echo(sentence, err=True)


def _plain_errors() -> AbstractContextManager[None]:
    from .local_triton import LocalTritonError

    return plain_errors(StartupError, LocalTritonError)
