"""`qwen3-triton triton` and `up`: a real Triton on this machine, alone or with the gateway."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qwen3_triton_gateway.cli import (
    read_settings,
    setting_options,
    some_setting_options,
    warn_about_secret_flags,
)

from ..errors import LocalTritonError
from . import pool_option, report_progress, tool_errors

if TYPE_CHECKING:
    from qwen3_triton_gateway.backends.engines import EngineChoice, Machine
    from qwen3_triton_gateway.settings import Settings

    from ..local_triton import LocalTriton, OpenVino, TritonRuntime

logger: logging.Logger = logging.getLogger(__name__)

_WATCH_SECONDS = 0.5

Command = TypeVar("Command", bound=Callable[..., Any])

PORTS = {"http": 8200, "grpc": 8201, "metrics": 8202}
TRITON_FLAGS = (*(f"{service}_port" for service in PORTS), "model_name", "pool")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
# Settings of `up` that `triton` has too.
SHARED_SETTINGS = (
    "EMBED_ENGINE",
    "EMBED_PRECISION",
    "EMBED_ENGINE_CACHE_DIR",
    "EMBED_THREADS",
    "EMBED_POOLING",
)


def _triton_options(command: Command) -> Command:
    """Add the flags that `triton` and `up` share."""
    for service, port in PORTS.items():
        command = click.option(
            f"--{service}-port",
            type=int,
            default=port,
            show_default=True,
            help=f"Port of Triton's {service} endpoint; 0 picks a free one.",
        )(command)
    command = pool_option(command)
    return click.option("--model-name", help="Name of the model in Triton.")(command)


@click.command()
@click.option("--model-dir", type=FOLDER, help="Folder with model.onnx; default: the nano model.")
@click.option("--model-repository", type=FOLDER, help="A complete Triton model repository instead.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--prepare", is_flag=True, help="Only install the files of the local Triton.")
@some_setting_options(*SHARED_SETTINGS)
@_triton_options
def triton(
    *, model_dir: Path | None, model_repository: Path | None, host: str, prepare: bool, **flags: Any
) -> None:
    """Run a real Triton Inference Server on this machine, without Docker, in the foreground.

    Linux x86-64. The server is installed once into the user's cache folder (or
    QWEN3_TRITON_RUNTIME_DIR). The model runs on the CPU, through ONNX Runtime or OpenVINO in
    Triton's Python backend, with the names, shapes and batching of the production server. Hidden
    states of the model in --model-dir are pooled there: vectors and fingerprint stay the same.

    \b
    Examples:
      qwen3-triton triton
      qwen3-triton triton --model-dir ./qwen3-embedding-0.6b --model-name qwen3_embed_onnx
      qwen3-triton triton --model-dir ./qwen3-embedding-0.6b --engine openvino
      qwen3-triton triton --model-repository ./model_repository --http-port 8000
    """
    from ..local_triton import run_foreground, unsupported_reason

    triton_flags = _pop_triton_flags(flags)
    with tool_errors():
        settings = read_settings(flags)
        if prepare:
            reason = unsupported_reason()
            if reason:
                click.echo(f"Not installed. {reason}", err=True)
            else:
                _install(with_openvino=choose_for_triton(settings).engine == "openvino")
            return
        if model_dir and model_repository:
            raise click.UsageError("Pass --model-dir or --model-repository, not both.")
        if model_repository and (flags["EMBED_ENGINE"] or flags["EMBED_PRECISION"]):
            msg = "A model repository has its own engine. Omit --engine and --precision."
            raise click.UsageError(msg)
        server = _local_triton(
            settings,
            report_progress,
            model_dir=model_dir,
            model_repository=model_repository,
            host=host.removeprefix("[").removesuffix("]"),
            **triton_flags,
        )
        sys.exit(run_foreground(server, on_ready=_show_addresses))


@click.command()
@setting_options
@_triton_options
def up(**flags: Any) -> None:
    """Run a local Triton and the gateway in front of it; one Ctrl-C stops both.

    Takes the flags of `triton` and of `serve`; --model-dir selects the model; the
    default is the bundled nano model. If the local Triton cannot run, the model runs in the
    gateway's process.

    \b
    Examples:
      qwen3-triton up
      qwen3-triton up --model-dir ./qwen3-embedding-0.6b --port 8101
      qwen3-triton up --model-dir ./qwen3-embedding-0.6b --engine openvino --precision bfloat16
    """
    from qwen3_triton_gateway.backends import with_bundled_model
    from qwen3_triton_gateway.server import configure_logging, run_gateway

    from ..local_triton import unsupported_reason

    triton_flags = _pop_triton_flags(flags)
    with tool_errors():
        settings = read_settings(flags)
        configure_logging(settings)
        warn_about_secret_flags(flags)
        if settings.triton_url:
            raise click.UsageError("`up` starts its own Triton; to use another one, run `serve`.")
        reason = unsupported_reason()
        if reason:
            click.echo(f"Running without Triton. {reason}", err=True)
            click.echo("The model runs in the gateway's process instead.", err=True)
            run_gateway(settings)
        else:
            server = _local_triton(
                settings, logger.info, model_dir=settings.model_dir, **triton_flags
            )
            _run_stack(with_bundled_model(settings), server)


def _pop_triton_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Separate the flags of `_triton_options` from the settings."""
    return {name: flags.pop(name) for name in TRITON_FLAGS}


def choose_for_triton(settings: Settings, machine: Machine | None = None) -> EngineChoice:
    """Decide what runs the model in Triton, whose environment gets the engine that is asked for.

    `auto` means what it means for `serve`: OpenVINO is not fetched unless it is installed here.

    Raises:
        StartupError: This machine or that engine cannot do it.
    """
    from qwen3_triton_gateway.backends.engines import Machine, choose_engine

    machine = machine or Machine.this()
    is_wanted = settings.engine == "openvino" or settings.precision in ("bfloat16", "int8")
    machine = replace(machine, has_openvino=machine.has_openvino or is_wanted)
    return choose_engine(settings.engine, settings.precision, machine)


def _openvino(settings: Settings, choice: EngineChoice) -> OpenVino | None:
    from qwen3_triton_gateway.backends.engines import openvino_options

    from ..local_triton import OpenVino

    if choice.engine == "onnxruntime":
        return None
    return OpenVino(
        precision=choice.precision,
        options=openvino_options(choice.precision),
        cache_dir=settings.engine_cache_dir,
    )


def _local_triton(
    settings: Settings,
    announce: Callable[[str], None],
    *,
    model_dir: Path | None,
    model_repository: Path | None = None,
    model_name: str | None,
    pool: bool,
    **options: Any,
) -> LocalTriton:
    from qwen3_triton_gateway.backends import NANO_MODEL_ID, nano_model_dir
    from qwen3_triton_gateway.container import thread_count

    from ..local_triton import LocalTriton, needs_openvino

    if model_repository:
        name = model_name or NANO_MODEL_ID
        runtime = _install(with_openvino=needs_openvino(model_repository))
        return LocalTriton(
            model_repository=model_repository, model_name=name, runtime=runtime, **options
        )
    choice = choose_for_triton(settings)
    announce(str(choice))
    openvino = _openvino(settings, choice)
    folder = model_dir or nano_model_dir()
    output, reason = _output_to_pool(folder, settings, wanted=pool)
    if reason:
        announce(f"The model is served as it is. {reason}")
    return LocalTriton(
        model_dir=folder,
        pooled_output=output,
        model_name=model_name or (model_dir.name if model_dir else NANO_MODEL_ID),
        intra_op_threads=thread_count(settings.threads),
        openvino=openvino,
        runtime=_install(with_openvino=openvino is not None),
        **options,
    )


def _output_to_pool(folder: Path, settings: Settings, *, wanted: bool) -> tuple[str | None, str]:
    from ..model.files import find_model
    from ..model.inspection import inspect_model
    from ..model.pooling_plan import output_to_pool

    return output_to_pool(inspect_model(find_model(folder)), settings.pooling, wanted=wanted)


def _install(*, with_openvino: bool) -> TritonRuntime:
    from ..local_triton import ensure_openvino, ensure_runtime

    runtime = ensure_runtime(report_progress)
    if with_openvino:
        ensure_openvino(runtime, report_progress)
    return runtime


def _run_stack(settings: Settings, triton: LocalTriton) -> None:
    """Serve `settings` in front of `triton` until SIGTERM or SIGINT, then stop both.

    A Triton that dies is restarted; until it is back, the gateway answers 503.

    Raises:
        LocalTritonError: Triton does not start.
        StartupError: The gateway does not start.
    """
    with triton:
        logger.info(
            "Triton serves %s at %s and %s, metrics at %s.",
            triton.model_name,
            triton.http_url,
            triton.grpc_url,
            triton.metrics_url,
        )
        update = {
            # gRPC has a little less overhead per call than HTTP (`bench/README.md`).
            "triton_url": [triton.grpc_url],
            "triton_model": triton.model_name,
            "tokenizer_path": settings.tokenizer_path or _tokenizer_of(settings.model_dir),
            "model_dir": None,
        }
        asyncio.run(_serve_both(settings.model_copy(update=update), triton))


def _tokenizer_of(model_dir: Path | None) -> Path | None:
    from qwen3_triton_gateway.model_files import tokenizer_of

    return tokenizer_of(model_dir) if model_dir else None


async def _serve_both(settings: Settings, triton: LocalTriton) -> None:
    from qwen3_triton_gateway.server import serve

    watcher = asyncio.create_task(_keep_running(triton))
    try:
        await serve(settings)
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _keep_running(triton: LocalTriton) -> None:
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        status = triton.poll()
        if status is None:
            continue
        logger.warning("Triton ended with status %d; restarting it.", status)
        try:
            await asyncio.to_thread(triton.start)
        except LocalTritonError as error:
            logger.error("Triton does not start: %s", error)


def _show_addresses(triton: LocalTriton) -> None:
    click.echo(f"Triton is serving {triton.model_name}; press Ctrl-C to stop it.", err=True)
    for url in (triton.http_url, triton.grpc_url, triton.metrics_url):
        click.echo(f"  {url}", err=True)
