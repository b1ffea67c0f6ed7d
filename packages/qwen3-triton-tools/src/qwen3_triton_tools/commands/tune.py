"""`qwen3-triton tune`: the engine, precision and settings that are fastest on this machine."""

from __future__ import annotations

import asyncio
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from qwen3_triton_gateway.cli import read_settings, some_setting_options
from qwen3_triton_gateway.settings import Settings, WantedPrecision

from . import json_option, print_json, report_progress, tool_errors

if TYPE_CHECKING:
    from ..tune.candidates import Result
    from ..tune.search import Outcome

# What a candidate must have in common with the gateway that will serve.
SHARED = (
    *("EMBED_MODEL_DIR", "TOKENIZER_PATH", "EMBED_MAX_LENGTH", "EMBED_OUTPUT_DIM"),
    *("EMBED_POOLING", "EMBED_ENGINE_CACHE_DIR"),
)
PATHS = ("EMBED_MODEL_DIR", "TOKENIZER_PATH", "EMBED_ENGINE_CACHE_DIR")
PRECISIONS = [name for name in get_args(WantedPrecision) if name != "auto"]
FIRST_LINE = "# Written by `qwen3-triton tune`"
# Columns of the table after the engine: numbers, which do not wrap.
COLUMNS = ("texts/s", "spread", "lone query", "memory", "cosine")
MIB = 1 << 20
# Wide enough for every row where the output is a file.
MIN_WIDTH = 120


@click.command()
@some_setting_options(*SHARED)
@click.option(
    "--int8", is_flag=True, help="Also try int8; weights are quantized as by `model quantize`."
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Recommend only this one: vectors in a table stay valid in the precision that made them.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Time to measure; every engine gets one round, even if that takes longer.",
)
@click.option(
    "--write",
    "env_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the recommended settings as an environment file.",
)
@json_option
def tune(
    *,
    int8: bool,
    precision: WantedPrecision | None,
    minutes: float,
    env_file: Path | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Find the fastest engine, precision, threads and batch size for a model on this machine.

    Each candidate runs in a gateway of its own, with the same texts: eight callers with eight texts
    per request, then short queries one by one. The fastest is recommended whose vectors have a
    cosine of at least 0.99 to those in float32. int8 is only tried with --int8, or if the weights
    are in int8 already. Another precision is another embedding space, with another fingerprint.

    \b
    Examples:
      qwen3-triton tune --model-dir ./qwen3-embedding-0.6b
      qwen3-triton tune --model-dir ./qwen3-embedding-0.6b --int8 --minutes 10 --write gateway.env
      qwen3-triton tune --model-dir ./qwen3-embedding-0.6b --precision float32
      set -a; . ./gateway.env; set +a; qwen3-triton serve
    """
    from qwen3_triton_gateway.container import usable_cores

    from ..errors import ToolError
    from ..tune.machine import load_warning

    with tool_errors(), _stoppable(), ExitStack() as stack:
        settings = read_settings(flags)
        if settings.triton_url:
            raise click.UsageError(
                "TRITON_URL is set, and `tune` measures engines in the gateway's process. Unset it."
            )
        unfinished = _reserve(env_file, stack) if env_file else None
        cores = usable_cores()
        warnings = [warning] if (warning := load_warning(cores)) else []
        for warning in warnings:
            report_progress(f"Warning: {warning}")
        shared = _shared_settings(settings)
        outcome = _search(settings, shared, precision, minutes * 60, cores, int8=int8)
        chosen = shared | outcome.best.candidate.settings() if outcome.best else {}
        if as_json:
            print_json(_document(outcome, chosen, cores, warnings))
        else:
            _print(outcome, chosen)
        if outcome.best is None:
            raise ToolError("Nothing that was measured can be recommended.")
        if unfinished:
            unfinished.write_text(_env_file(chosen, outcome.best))
    if env_file and not as_json:
        click.echo(f"Wrote {env_file}. To serve with it:")
        click.echo(
            f"  set -a; . {shlex.quote(str(env_file.absolute()))}; set +a; qwen3-triton serve"
        )


def _reserve(env_file: Path, stack: ExitStack) -> Path:
    """Open the file for the length of the command: what cannot be written fails at its start."""
    from ..errors import ModelError
    from ..writing import replacing_file

    if env_file.exists() and not env_file.read_text(errors="replace").startswith(FIRST_LINE):
        msg = f"{env_file} exists, and `tune` did not write it. Choose another name, or remove it."
        raise ModelError(msg)
    return stack.enter_context(replacing_file(env_file))


def _shared_settings(settings: Settings) -> dict[str, str]:
    """Return the variables that were set by flags or the environment."""
    fields = {str(field.validation_alias): name for name, field in Settings.model_fields.items()}
    values = {
        variable: getattr(settings, fields[variable])
        for variable in SHARED
        if fields[variable] in settings.model_fields_set
    }
    return {
        variable: str(Path(value).absolute() if variable in PATHS else value)
        for variable, value in values.items()
        if value is not None
    }


def _search(
    settings: Settings,
    shared: dict[str, str],
    precision: WantedPrecision | None,
    seconds: float,
    cores: int,
    *,
    int8: bool,
) -> Outcome:
    from qwen3_triton_gateway.backends import with_bundled_model
    from qwen3_triton_gateway.backends.engines import Machine

    from ..model.files import find_model
    from ..model.quantize import is_quantized
    from ..onnx_model import read_model
    from ..tune.candidates import engine_candidates
    from ..tune.search import Search

    model_dir = with_bundled_model(settings).model_dir
    assert model_dir is not None, "there is no Triton"
    model_path = find_model(model_dir)
    machine = Machine.this()
    is_int8 = is_quantized(read_model(model_path))
    wants_int8 = int8 or precision == "int8"
    runs_int8 = machine.has_openvino and not machine.why_not("int8")
    engines = engine_candidates(
        machine,
        has_onnxruntime=find_spec("onnxruntime") is not None,
        precision=precision,
        int8_dir=_int8_folder(model_path) if wants_int8 and runs_int8 and not is_int8 else None,
        tries_int8=wants_int8 or is_int8,
    )
    with _progress_bar(seconds) as on_progress:
        search = Search(
            shared, seconds=seconds, cores=cores, precision=precision, on_progress=on_progress
        )
        return asyncio.run(search.run(engines))


def _int8_folder(model_path: Path) -> Path:
    """Return the folder with weights in int8, which is written unless it exists."""
    from ..model.quantize import default_folder, quantize_model

    folder = default_folder(model_path)
    if folder.exists():
        report_progress(f"The weights in int8 are those in {folder}.")
    else:
        report_progress(f"Quantizing {model_path} to {folder}.")
        quantize_model(model_path, folder)
    return folder


@contextmanager
def _progress_bar(seconds: float) -> Generator[Callable[[str], None]]:
    """Show the time that is used, and what is measured, on standard error if it is a terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    began = time.monotonic()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=seconds)

        def show(activity: str) -> None:
            passed = min(time.monotonic() - began, seconds)
            bar.update(task, description=activity, completed=passed)

        yield show


@contextmanager
def _stoppable() -> Generator[None]:
    """Let SIGTERM do what Ctrl-C does: end the gateways that are measured, then this command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Raised as SIGINT, for which asyncio cancels the search. An exception in the middle of it could
    # come between the start of a gateway and the line that remembers its process.
    before = {
        signal.SIGTERM: signal.signal(
            signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT)
        ),
        # A shell starts background jobs with SIGINT ignored.
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _env_file(chosen: dict[str, str], best: Result) -> str:
    """Write the settings for a shell, Compose, Docker and systemd."""
    lines = [f"{FIRST_LINE} on this machine: {_summary(best)}."]
    if best.precision != "float32":
        lines.append(f"# {_space(best)}")
    lines += [f"{name}={shlex.quote(value)}" for name, value in chosen.items()]
    return "\n".join(lines) + "\n"


def _space(result: Result) -> str:
    return (
        f"Vectors in {result.precision} are an embedding space of their own, with a fingerprint of "
        "their own: tables filled in another precision must be re-embedded."
    )


def _summary(result: Result) -> str:
    parts = [
        f"{result.texts_per_second:.1f} texts/s",
        f"a lone query in {result.latency_ms:.1f} ms",
        f"{result.memory_bytes // MIB:,} MiB" if result.memory_bytes else "",
    ]
    return f"{_title(result)}, {', '.join(filter(None, parts))}"


def _title(result: Result) -> str:
    return ", ".join(filter(None, (result.candidate.name, result.candidate.changes)))


def _print(outcome: Outcome, chosen: dict[str, str]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    console.print(_table(outcome))
    for result in outcome.results:
        if not result.is_measured:
            reason = result.problem.removesuffix(".")
            click.secho(f"{_title(result)} was not measured: {reason}.", fg="yellow")
    for note in outcome.notes:
        click.echo(note)
    best = outcome.best
    if best is None:
        return
    if best.precision != "float32":
        assert best.loss is not None, "it is safe"
        click.echo(f"{best.candidate.name} against float32: {best.loss}.")
        click.echo(f"{_space(best)} To keep one valid, pass its precision as --precision.")
    click.echo("\nRecommended settings:")
    for name, value in chosen.items():
        click.echo(f"  {name}={shlex.quote(value)}")


def _table(outcome: Outcome) -> Table:
    table = Table("engine, precision", box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in outcome.results:
        if not result.is_measured:
            continue
        is_best = result is outcome.best
        cells = [
            _title(result),
            f"{result.texts_per_second:.1f}",
            f"{(max(result.rates) - min(result.rates)) / result.texts_per_second:.0%}",
            f"{result.latency_ms:.1f} ms",
            f"{result.memory_bytes // MIB:,} MiB" if result.memory_bytes else "unknown",
            f"{result.loss.lowest_cosine:.5f}" if result.loss else "reference",
        ]
        verdict = "recommended" if is_best else "" if result.is_safe else "loses too much"
        table.add_row(*cells, verdict, style="green" if is_best else None)
    return table


def _document(
    outcome: Outcome, chosen: dict[str, str], cores: int, warnings: list[str]
) -> dict[str, Any]:
    from qwen3_triton_gateway.container import cpu_quota

    from ..tune.machine import processor_name

    quota = cpu_quota()
    machine = {
        "processor": processor_name(),
        "cores": cores,
        "cpu_quota": None if math.isinf(quota) else quota,
    }
    return (
        {"machine": machine, "warnings": warnings}
        | outcome.document()
        | {"settings": chosen or None}
    )
