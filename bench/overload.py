"""Goodput, latency, memory and readiness when more requests come than can be answered.

    python bench/overload.py                     # a minute each of 2, 4 and 10 times the rate
    python bench/overload.py --seconds 10        # shorter
    python bench/overload.py --triton            # before a local Triton instead of in-process

The rate that can be sustained is measured first, with callers that wait for their answers. Then
requests come at random times at a multiple of it, whatever happens to them. All of it once with the
whole machine, and once with the gateway held to half a core. The generator has a lower priority
than the gateway. The machine has to be idle otherwise.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from report import Row, show, write_markdown
from rich.console import Console

import qwen3_nano
from gateway_process import GatewayProcess, running_gateway, triton_flags
from load_generator import Outcome, Watch, run_load, start_load, watching
from qwen3_triton_tools.local_triton import LocalTriton

CALLERS = 32
# Share of the sustained rate that must remain, by the multiple of it that comes in.
TARGETS = {2: 0.9, 4: 0.8, 10: 0.5}
MAX_ANSWER_SECONDS = 3.0
MAX_MIB = 300
MAX_QUERY_BATCHES = 3.0
QUERY_RATE = 5.0
RECOVERY_SECONDS = 5.0
RECOVERED = 0.9
PERIOD_SECONDS = 0.1
CGROUPS = Path("/sys/fs/cgroup")
HEADER = ("", "under overload", "sustained")


@contextmanager
def half_a_core(pid: int) -> Generator[str]:
    """Hold a process to half a core; return how."""
    period = int(PERIOD_SECONDS * 1e6)
    is_second_version = (CGROUPS / "cgroup.controllers").exists()
    parent = CGROUPS if is_second_version else CGROUPS / "cpu"
    group = parent / f"half-a-core-{pid}"
    try:
        group.mkdir()
        if is_second_version:
            (group / "cpu.max").write_text(f"{period // 2} {period}")
        else:
            (group / "cpu.cfs_quota_us").write_text(str(period // 2))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        with _stopped_half_of_the_time(pid):
            yield "SIGSTOP for half of the time"
        return
    try:
        yield "CPU quota"
    finally:
        (parent / "cgroup.procs").write_text(str(pid))
        group.rmdir()


@contextmanager
def _stopped_half_of_the_time(pid: int) -> Generator[None]:
    ended = threading.Event()

    def alternate() -> None:
        # Two cores: a quarter of the time is half a core.
        share = 0.5 / (os.cpu_count() or 1)
        while not ended.wait(share * PERIOD_SECONDS):
            os.kill(pid, signal.SIGSTOP)
            ended.wait((1 - share) * PERIOD_SECONDS)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def overload_row(
    name: str, times: int, outcome: Outcome, sustained: float, watch: Watch, recovered: float
) -> Row:
    """Compare one overload with the sustained rate; everything that was promised has to hold."""
    ratio = outcome.answered_per_second / sustained
    median, high, _ = outcome.seconds
    told = ", ".join(f"{seconds} s: {count}" for seconds, count in outcome.retry_after.items())
    details = (
        f"{outcome.answered_per_second:.0f} texts/s; answered p50 {median:.2f}, p99 {high:.2f} s; "
        f"refused p99 {outcome.refused_seconds[1]:.2f} s; statuses {outcome.statuses}; "
        f"sent {outcome.sent_per_second:.0f}/s, {outcome.not_sent} not sent; Retry-After {told}; "
        f"generator late by {outcome.lag_seconds:.2f} s; peak {watch.peak_mib:.0f} MiB; "
        f"slowest probe {watch.slowest_seconds:.2f} s; "
        f"afterwards {recovered / sustained:.2f} of the rate"
    )
    is_met = (
        ratio >= TARGETS[times]
        and high <= MAX_ANSWER_SECONDS
        and outcome.statuses.keys() <= {200, 429}
        and watch.not_ready == 0
        and watch.peak_mib < MAX_MIB
        and recovered >= RECOVERED * sustained
    )
    return Row(
        f"{name}: {times} times the rate",
        details,
        f"{sustained:.0f} texts/s",
        f"{ratio:.2f}, never not ready" if not watch.not_ready else f"{ratio:.2f}, NOT READY",
        f"at least {TARGETS[times]}, p99 at most {MAX_ANSWER_SECONDS:g} s",
        is_met,
    )


def query_row(name: str, gateway: GatewayProcess, seconds: float) -> Row:
    """Measure queries while ten times the documents come that the model can do."""
    alone = run_load(gateway.url, seconds / 2, kind="documents", callers=CALLERS // 4)
    bulk = start_load(
        gateway.url, seconds, kind="documents", rate=10 * alone.answered_per_second / 8
    )
    before = batch_totals(gateway)
    queries = run_load(gateway.url, seconds, kind="query", rate=QUERY_RATE)
    batch_seconds = seconds_per_batch(before, batch_totals(gateway))
    bulk()
    batches = queries.seconds[1] / batch_seconds
    refused = sum(count for status, count in queries.statuses.items() if status != 200)
    return Row(
        f"{name}: queries during ten times the bulk load",
        f"p50 {1000 * queries.seconds[0]:.0f} ms, p99 {1000 * queries.seconds[1]:.0f} ms, "
        f"statuses {queries.statuses}",
        f"a document batch takes {1000 * batch_seconds:.0f} ms",
        f"p99 is {batches:.1f} batches",
        f"at most {MAX_QUERY_BATCHES:g}, none refused",
        batches <= MAX_QUERY_BATCHES and not refused,
    )


def choose_flags(stack: ExitStack, *, triton: bool) -> tuple[str, ...]:
    """Return the gateway's flags: in-process, or before a local Triton that lives with `stack`."""
    if not triton:
        return ()
    server = LocalTriton(model_dir=qwen3_nano.model_dir(), model_name=qwen3_nano.MODEL_ID)
    return triton_flags(stack.enter_context(server).grpc_url)


def batch_totals(gateway: GatewayProcess) -> tuple[float, float]:
    """Read the seconds that batches of documents have taken, and their number."""
    names = ("qwen3_triton_batch_seconds_sum", "qwen3_triton_batch_seconds_count")
    total, count = (gateway.metric(name, lane="document") for name in names)
    return total, count


def seconds_per_batch(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return how long a batch took on average between two readings of `batch_totals`."""
    return (after[0] - before[0]) / max(1.0, after[1] - before[1])


def measure(name: str, gateway: GatewayProcess, seconds: float) -> list[Row]:
    """Measure the sustained rate, then every multiple of it."""
    run_load(gateway.url, RECOVERY_SECONDS, callers=CALLERS)  # warm-up
    closed = run_load(gateway.url, max(RECOVERY_SECONDS, seconds / 4), callers=CALLERS)
    rate = closed.answered_per_second
    rows: list[Row] = []
    for times in TARGETS:
        with watching(gateway.url, gateway.process.pid) as watch:
            outcome = run_load(gateway.url, seconds, rate=times * rate)
        recovered = run_load(gateway.url, RECOVERY_SECONDS, callers=CALLERS).answered_per_second
        rows.append(overload_row(name, times, outcome, rate, watch, recovered))
    return [*rows, query_row(name, gateway, seconds)]


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Length of each overload.")
@click.option("--triton", is_flag=True, help="Use a local Triton, which is not held back.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table there, too.")
def main(seconds: float, triton: bool, markdown: Path | None) -> None:
    """Send more than the gateway can answer, and print what it does."""
    console = Console()
    rows: list[Row] = []
    with ExitStack() as stack:
        flags = choose_flags(stack, triton=triton)
        with running_gateway(*flags) as gateway:
            rows += measure("the whole machine", gateway, seconds)
        with running_gateway(*flags) as gateway, half_a_core(gateway.process.pid) as how:
            rows += measure(f"half a core ({how})", gateway, seconds)
    show(rows, console, HEADER)
    if markdown is not None:
        write_markdown(rows, markdown, HEADER)


if __name__ == "__main__":
    sys.exit(main())
