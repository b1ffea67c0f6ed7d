"""`qwen3-triton triton` and `up`: a real Triton on this machine, alone or with the gateway."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
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
from .triton_models import (
    WantedModels,
    choose_for_triton,
    install,
    local_triton,
    repository_triton,
)

if TYPE_CHECKING:
    from qwen3_triton_gateway.settings import Settings

    from ..local_triton import LocalTriton

logger: logging.Logger = logging.getLogger(__name__)

_WATCH_SECONDS = 0.5

Command = TypeVar("Command", bound=Callable[..., Any])

PORTS = {"http": 8200, "grpc": 8201, "metrics": 8202}
PORT_FLAGS = tuple(f"{service}_port" for service in PORTS)
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
    command = click.option(
        "--rerank-model-name", help="Name of the reranker in Triton; default: that of its folder."
    )(command)
    command = click.option(
        "--rerank",
        is_flag=True,
        help="Serve a reranker too: that of --rerank-model-dir, else the nano reranker.",
    )(command)
    return click.option("--model-name", help="Name of the model in Triton.")(command)


@click.command()
@click.option("--model-dir", type=FOLDER, help="Folder with model.onnx; default: the nano model.")
@click.option(
    "--rerank-model-dir", type=FOLDER, help="Folder with a reranker's model.onnx, to serve it too."
)
@click.option("--model-repository", type=FOLDER, help="A complete Triton model repository instead.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--prepare", is_flag=True, help="Only install the files of the local Triton.")
@some_setting_options(*SHARED_SETTINGS)
@_triton_options
def triton(
    *,
    model_dir: Path | None,
    rerank_model_dir: Path | None,
    model_repository: Path | None,
    host: str,
    prepare: bool,
    **flags: Any,
) -> None:
    """Run a real Triton Inference Server on this machine, without Docker, in the foreground.

    Linux x86-64. The server is installed once into the user's cache folder (or
    QWEN3_TRITON_RUNTIME_DIR). The model runs on the CPU, through ONNX Runtime or OpenVINO in
    Triton's Python backend, with the names, shapes and batching of the production server. Hidden
    states of the model in --model-dir are pooled there: vectors and fingerprint stay the same. A
    reranker's vocabulary head keeps the rows of "no" and "yes" only.

    \b
    Examples:
      qwen3-triton triton
      qwen3-triton triton --model-dir ./qwen3-embedding-0.6b --model-name qwen3_embed_onnx
      qwen3-triton triton --model-dir ./qwen3-embedding-0.6b --engine openvino
      qwen3-triton triton --model-dir ./qwen3-embedding-0.6b \\
          --rerank-model-dir ./qwen3-reranker-0.6b
      qwen3-triton triton --model-repository ./model_repository --http-port 8000
    """
    from ..local_triton import run_foreground, unsupported_reason

    rerank, names, ports = _pop_triton_flags(flags)
    with tool_errors():
        settings = read_settings(flags)
        if prepare:
            reason = unsupported_reason()
            if reason:
                click.echo(f"Not installed. {reason}", err=True)
            else:
                install(with_openvino=choose_for_triton(settings).engine == "openvino")
            return
        if model_dir and model_repository:
            raise click.UsageError("Pass --model-dir or --model-repository, not both.")
        if model_repository and (flags["EMBED_ENGINE"] or flags["EMBED_PRECISION"]):
            msg = "A model repository has its own engine. Omit --engine and --precision."
            raise click.UsageError(msg)
        if model_repository and (rerank or rerank_model_dir or names["rerank_model_name"]):
            msg = "A model repository has all its models. Omit --rerank, or put the reranker there."
            raise click.UsageError(msg)
        options = ports | {"host": host.removeprefix("[").removesuffix("]")}
        if model_repository:
            server = repository_triton(model_repository, names["model_name"], **options)
            sys.exit(run_foreground(server, on_ready=_show_addresses))
        wanted = WantedModels(
            model_dir=model_dir,
            rerank=rerank or rerank_model_dir is not None,
            rerank_model_dir=rerank_model_dir,
            **names,
        )
        with local_triton(wanted, settings, report_progress, **options) as server:
            sys.exit(run_foreground(server, on_ready=_show_addresses))


@click.command()
@setting_options
@_triton_options
def up(**flags: Any) -> None:
    """Run a local Triton and the gateway in front of it; one Ctrl-C stops both.

    Takes the flags of `triton` and of `serve`. --model-dir selects the model, by default the
    bundled nano model. With --rerank or --rerank-model-dir, the same Triton serves a reranker, and
    the gateway both. If the local Triton cannot run, the models run in the gateway's process.

    \b
    Examples:
      qwen3-triton up
      qwen3-triton up --model-dir ./qwen3-embedding-0.6b --port 8101
      qwen3-triton up --model-dir ./qwen3-embedding-0.6b --engine openvino --precision bfloat16
      qwen3-triton up --rerank
      qwen3-triton up --model-dir ./qwen3-embedding-0.6b --rerank-model-dir ./qwen3-reranker-0.6b
    """
    from qwen3_triton_gateway.backends import with_bundled_model, with_nano_reranker
    from qwen3_triton_gateway.server import configure_logging, run_gateway

    from ..local_triton import unsupported_reason

    rerank, names, ports = _pop_triton_flags(flags)
    with tool_errors():
        settings = read_settings(flags)
        configure_logging(settings)
        warn_about_secret_flags(flags)
        if settings.triton_url:
            raise click.UsageError("`up` starts its own Triton; to use another one, run `serve`.")
        wanted = WantedModels(
            model_dir=settings.model_dir,
            rerank=rerank or settings.serves_reranker,
            rerank_model_dir=settings.rerank_model_dir,
            **names,
        )
        settings = with_bundled_model(with_nano_reranker(settings) if rerank else settings)
        reason = unsupported_reason()
        if reason:
            click.echo(f"Running without Triton. {reason}", err=True)
            click.echo("The models run in the gateway's process instead.", err=True)
            run_gateway(settings)
            return
        with local_triton(wanted, settings, logger.info, **ports) as server:
            _run_stack(settings, server)


def _pop_triton_flags(flags: dict[str, Any]) -> tuple[bool, dict[str, Any], dict[str, int]]:
    """Separate the flags of `_triton_options` from the settings.

    Returns:
        Whether a reranker is served, arguments of `WantedModels`, and the ports.
    """
    names = {name: flags.pop(name) for name in ("model_name", "rerank_model_name", "pool")}
    return flags.pop("rerank"), names, {name: flags.pop(name) for name in PORT_FLAGS}


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
            triton.model_names,
            triton.http_url,
            triton.grpc_url,
            triton.metrics_url,
        )
        update: dict[str, Any] = {
            # gRPC has a little less overhead per call than HTTP (`bench/README.md`).
            "triton_url": [triton.grpc_url],
            "triton_model": triton.model_name,
            "tokenizer_path": settings.tokenizer_path or _tokenizer_of(settings.model_dir),
            "model_dir": None,
        }
        if triton.reranker:
            update |= {
                "rerank_triton_model": triton.reranker.model_name,
                "rerank_tokenizer_path": settings.rerank_tokenizer_path
                or _tokenizer_of(settings.rerank_model_dir),
                "rerank_model_dir": None,
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
        reason = triton.end_reason or f"Triton ended with status {status}."
        logger.warning("%s Restarting it.", reason)
        try:
            await asyncio.to_thread(triton.start)
        except LocalTritonError as error:
            logger.error("Triton does not start: %s", error)


def _show_addresses(triton: LocalTriton) -> None:
    click.echo(f"Triton is serving {triton.model_names}; press Ctrl-C to stop it.", err=True)
    for url in (triton.http_url, triton.grpc_url, triton.metrics_url):
        click.echo(f"  {url}", err=True)
