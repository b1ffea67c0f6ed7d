"""One gateway, and two behind nginx: what they answer, how late, and at which CPU time.

    PYTHONPATH=tests/support:examples python bench/gateways.py               # ten minutes
    PYTHONPATH=tests/support:examples python bench/gateways.py --seconds 2 --rounds 1

First with a model that costs nothing, and each gateway held to half a core, so that two of them,
nginx and the callers fit on two cores. Then in front of a local Triton with the nano model, which
is the bottleneck with one gateway as with two. At last, one of two gateways is restarted under
load. nginx has the configuration of `deploy/nginx.conf`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import httpx2
import numpy as np
from front_end import cpu_seconds, gateway
from overload import choose_flags, half_a_core
from report import Row, show, spread, write_markdown
from rich.console import Console

from gateway_process import GatewayProcess, MortalGateway, running_gateway
from load_generator import KINDS, run_load, start_load
from nginx_proxy import MISSING, find_nginx, running_nginx

# Every gateway admits as many of each kind, whatever it has to do.
CALLERS = 16
# One text, many short ones, many long ones: what tells requests, texts and tokens apart.
FREE_LOADS = ("short", "bulk", "long")
MODEL_LOADS = ("short", "documents")
WARM_UP_SECONDS = 2.0
MIN_SCALING = 1.8
MIN_SHARED = 0.9
HEADER = ("", "two behind nginx", "one gateway")


@dataclass(frozen=True, slots=True)
class Side:
    """What callers talk to, and the processes behind it.

    Attributes:
        url: Where requests are sent.
        gateways: Process id and address of each gateway.
        nginx_pid: None without nginx.
    """

    url: str
    gateways: tuple[tuple[int, str], ...]
    nginx_pid: int | None = None

    def cpu_seconds(self) -> float:
        return sum(cpu_seconds(pid) for pid, _ in self.gateways)

    def nginx_seconds(self) -> float:
        return cpu_seconds(self.nginx_pid) if self.nginx_pid else 0.0

    def count(self, metric: str) -> float:
        """Read a counter of the gateways, summed over them and its labels."""
        lines = [line for _, url in self.gateways for line in _metrics(url)]
        values = (line.split() for line in lines if line.startswith((f"{metric}{{", f"{metric} ")))
        return sum(float(value) for _, value in values)


def _metrics(url: str) -> list[str]:
    return httpx2.get(f"{url}/metrics", verify=False).text.splitlines()


@dataclass(frozen=True, slots=True)
class Reading:
    """What one load showed.

    Attributes:
        rate: Texts per second.
        p99: In seconds.
        gateway_cpu: CPU seconds of the gateways per text.
        nginx_cpu: The same of nginx.
        tokens: Tokens per text.
    """

    rate: float
    p99: float
    gateway_cpu: float
    nginx_cpu: float
    tokens: float


def measure(side: Side, kind: str, seconds: float) -> Reading:
    """Load one side with callers that wait for their answers.

    Raises:
        RuntimeError: A request was not answered with 200.
    """
    run_load(side.url, WARM_UP_SECONDS, kind=kind, callers=CALLERS)
    names = "qwen3_triton_texts_total", "qwen3_triton_tokens_total"
    before = side.cpu_seconds(), side.nginx_seconds(), *map(side.count, names)
    outcome = run_load(side.url, seconds, kind=kind, callers=CALLERS)
    after = side.cpu_seconds(), side.nginx_seconds(), *map(side.count, names)
    if outcome.statuses.keys() != {200}:
        raise RuntimeError(f"The callers got {outcome.statuses}.")
    gateway_cpu, nginx_cpu, texts, tokens = np.subtract(after, before).tolist()
    return Reading(
        outcome.answered_per_second,
        outcome.seconds[1],
        gateway_cpu / texts,
        nginx_cpu / texts,
        tokens / texts,
    )


def measure_all(
    sides: Sequence[Side], kind: str, seconds: float, rounds: int
) -> list[list[Reading]]:
    """Measure the sides in turn, and return the rounds of each."""
    found: list[list[Reading]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, readings in zip(sides, found, strict=True):
            readings.append(measure(side, kind, seconds))
    return found


def compare(model: str, kind: str, two: list[Reading], one: list[Reading], least: float) -> Row:
    """Compare texts per second."""
    ratios = [ours.rate / other.rate for ours, other in zip(two, one, strict=True)]
    return Row(
        f"{model}: {_load(kind, one)}",
        _describe(two),
        _describe(one),
        f"{spread(ratios)} times the texts/s",
        f"at least {least:g}",
        statistics.median(ratios) >= least,
    )


def _load(kind: str, readings: list[Reading]) -> str:
    texts = KINDS[kind][0]
    size = f"{texts} texts" if texts > 1 else "one text"
    return f"requests of {size} of {readings[0].tokens:.0f} tokens"


def _describe(readings: list[Reading]) -> str:
    rate, p99, cpu, nginx = (
        statistics.median(getattr(reading, name) for reading in readings)
        for name in ("rate", "p99", "gateway_cpu", "nginx_cpu")
    )
    with_nginx = f", nginx {1e6 * nginx:.0f} µs" if nginx else ""
    return f"{rate:.0f} texts/s, p99 {1000 * p99:.0f} ms; {1e6 * cpu:.0f} µs a text{with_nginx}"


def cost_row(found: dict[str, list[Reading]]) -> Row:
    """Divide the gateway's CPU time among requests, texts and tokens: the constants of sizing.md.

    Args:
        found: The readings of one gateway by load.
    """
    sizes: list[list[float]] = []
    costs: list[float] = []
    for kind, readings in found.items():
        texts = KINDS[kind][0]
        sizes.append([1, texts, texts * readings[0].tokens])
        costs.append(texts * statistics.median(reading.gateway_cpu for reading in readings))
    request, text, token = np.linalg.solve(np.array(sizes), np.array(costs)).tolist()
    return Row(
        "CPU of a gateway",
        "",
        "",
        f"{1e6 * request:.0f} µs per request, {1e6 * text:.0f} µs per text, "
        f"{1e6 * token:.2f} µs per token",
    )


def free_rows(seconds: float, rounds: int) -> list[Row]:
    """Measure gateways that have nothing to wait for."""
    with ExitStack() as stack:
        gateways: list[tuple[int, str]] = []
        for _ in range(2):
            pid, port = stack.enter_context(gateway())
            stack.enter_context(half_a_core(pid))
            gateways.append((pid, f"http://127.0.0.1:{port}"))
        single = stack.enter_context(running_nginx([gateways[0][1]]))
        double = stack.enter_context(running_nginx([url for _, url in gateways]))
        sides = (
            Side(gateways[0][1], (gateways[0],)),
            Side(single.url, (gateways[0],), single.pid),
            Side(double.url, tuple(gateways), double.pid),
        )
        found = {kind: measure_all(sides, kind, seconds, rounds) for kind in FREE_LOADS}
    rows = [cost_row({kind: readings[0] for kind, readings in found.items()})]
    for kind, (direct, behind, two) in found.items():
        rows.append(compare("no model", kind, two, direct, MIN_SCALING))
        rows.append(
            Row(f"no model: {_load(kind, direct)}, one behind nginx", "", _describe(behind), "")
        )
    return rows


def model_rows(seconds: float, rounds: int) -> list[Row]:
    """Measure gateways that share a Triton, then restart one."""
    with ExitStack() as stack:
        flags = choose_flags(stack, triton=True)
        first = stack.enter_context(running_gateway(*flags))
        second = MortalGateway(*flags)
        stack.callback(second.stop)
        second.wait_ready()
        nginx = stack.enter_context(running_nginx([first.url, second.url]))
        sides = (
            Side(first.url, (_process(first),)),
            Side(nginx.url, (_process(first), _process(second.process)), nginx.pid),
        )
        rows: list[Row] = []
        for kind in MODEL_LOADS:
            one, two = measure_all(sides, kind, seconds, rounds)
            rows.append(compare("qwen3-nano", kind, two, one, MIN_SHARED))
        return [*rows, restart_row(nginx.url, second, seconds)]


def _process(process: GatewayProcess) -> tuple[int, str]:
    return process.process.pid, process.url


def restart_row(url: str, restarted: MortalGateway, seconds: float) -> Row:
    """Restart one of two gateways between requests of one text."""
    load = start_load(url, 4 * seconds, kind="short", callers=CALLERS)
    time.sleep(seconds)
    began = time.perf_counter()
    restarted.stop()
    restarted.restart()
    away = time.perf_counter() - began
    outcome = load()
    return Row(
        "one of two is restarted under load",
        f"statuses {outcome.statuses}, p99 {1000 * outcome.seconds[1]:.0f} ms",
        "",
        f"it is away for {away:.1f} s",
        "all 200",
        outcome.statuses.keys() == {200},
    )


@click.command(help=__doc__)
@click.option("--seconds", default=10.0, show_default=True, help="Length of each load.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table there, too.")
def main(seconds: float, rounds: int, markdown: Path | None) -> None:
    if find_nginx() is None:
        click.echo(MISSING)
        return
    rows = free_rows(seconds, rounds) + model_rows(seconds, rounds)
    show(rows, Console(), HEADER)
    if markdown is not None:
        write_markdown(rows, markdown, HEADER)


if __name__ == "__main__":
    sys.exit(main())
