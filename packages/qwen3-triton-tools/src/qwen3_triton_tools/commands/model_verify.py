"""`qwen3-triton model verify`."""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen3_triton_gateway.cli import plain_errors

from .output import json_option, print_json

if TYPE_CHECKING:
    from ..model.checks import Check
    from ..model.verification import Report

COLORS = {"pass": "green", "fail": "red", "skipped": "yellow"}
CARDS = ("0.6b", "4b", "8b", "nano", "none")
MIN_WIDTH, MAX_WIDTH = 80, 116
STATUS_WIDTH = 9


@click.command()
@click.argument("target", metavar="URL|PATH")
@click.option(
    "--card",
    type=click.Choice(CARDS, case_sensitive=False),
    help="Compare with this model's golden values; by default told from the model's name and size.",
)
@click.option(
    "--api-key",
    envvar="QWEN3_TRITON_API_KEY",
    show_envvar=True,
    help="Key of a gateway that asks for one.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=120.0,
    show_default=True,
    help="Longest wait for one answer.",
)
@json_option
def verify(
    *, target: str, card: str | None, api_key: str | None, timeout_seconds: float, as_json: bool
) -> None:
    """Check that a gateway, or the model in a folder, gives right vectors.

    URL is that of a running gateway. PATH is a folder with model.onnx and tokenizer.json, which is
    served in this process for the time of the check. Ends with 0 if no check fails, else with 1;
    each failure names its likely cause and the remedy.

    \b
    Examples:
      qwen3-triton model verify http://localhost:8101
      qwen3-triton model verify ./qwen3-embedding-0.6b
      qwen3-triton model verify https://embed.example.com --card 4b --json
    """
    from qwen3_triton_gateway.errors import StartupError

    from ..model.errors import ModelToolError
    from ..model.gateway_client import GatewayClient, GatewayError
    from ..model.verification import CHECKS
    from ..model.verification import verify as ask

    with plain_errors(StartupError, ModelToolError, GatewayError), _served(target) as url:
        client = GatewayClient(url, api_key=api_key, timeout_seconds=timeout_seconds)
        with _progress(len(CHECKS)) as done:
            report = ask(client, card_name=card, target=target, on_check=done)
    if as_json:
        print_json(report.document())
    else:
        _print_report(report)
    sys.exit(0 if report.ok else 1)


def _served(target: str) -> AbstractContextManager[str]:
    """Give the URL to ask: the target itself, or that of a gateway for its folder."""
    if target.startswith(("http://", "https://")):
        return nullcontext(target)
    folder = Path(target)
    if not folder.exists():
        msg = f"{target!r} is neither a URL (http://…) nor a folder that is here."
        raise click.BadParameter(msg, param_hint="URL|PATH")
    from ..model.local_gateway import folder_settings, local_gateway
    from ..model.manifest import model_name

    return local_gateway(folder_settings(folder, model_id=model_name(folder)))


@contextmanager
def _progress(count: int) -> Generator[Callable[[object], None]]:
    """Show how many checks are done, on a terminal: a large model takes minutes on a CPU."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=count, label="Checking", file=sys.stderr) as bar:
        yield lambda _: bar.update(1)


def _print_report(report: Report) -> None:
    card = f"card {report.card.name}" if report.card else "no card"
    click.echo(f"{report.target}: {report.served.model_id or 'a model without a name'}, {card}\n")
    names = max(len(check.name) for check in report.checks)
    columns = shutil.get_terminal_size((MAX_WIDTH, 24)).columns
    rest = max(MIN_WIDTH, min(MAX_WIDTH, columns)) - STATUS_WIDTH - names - 4
    widths = (names, rest * 5 // 9, rest - rest * 5 // 9)
    click.echo(_line(" " * STATUS_WIDTH, ("check", "measured", "allowed"), widths))
    for check in report.checks:
        _print_check(check, widths)
    counts = ", ".join(
        f"{report.count(status)} {word}"
        for status, word in (("pass", "passed"), ("fail", "failed"), ("skipped", "skipped"))
    )
    click.echo(f"\n{counts}.")


def _print_check(check: Check, widths: tuple[int, int, int]) -> None:
    outcome = check.outcome
    word = click.style(f"{outcome.status:<{STATUS_WIDTH}}", fg=COLORS[outcome.status])
    cells = [textwrap.wrap(outcome.measured, widths[1]), textwrap.wrap(outcome.allowed, widths[2])]
    rows = itertools.zip_longest([check.name], *cells, fillvalue="")
    for index, row in enumerate(rows):
        click.echo(_line(word if index == 0 else " " * STATUS_WIDTH, row, widths))
    if outcome.status == "fail":
        indent = " " * (STATUS_WIDTH + widths[0] + 2)
        for line in (f"cause: {outcome.cause}", f"remedy: {outcome.remedy}"):
            room = widths[1] + widths[2] + 2
            click.echo(
                textwrap.fill(
                    line, room + len(indent), initial_indent=indent, subsequent_indent=indent
                )
            )


def _line(word: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
    return (word + "  ".join(padded)).rstrip()
