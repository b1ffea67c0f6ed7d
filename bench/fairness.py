"""What a caller waits for, and gets, while others send far more.

    python bench/fairness.py                     # half a minute for each part
    python bench/fairness.py --seconds 10        # shorter
    python bench/fairness.py --triton            # before a local Triton instead of in-process

One short text over OpenAI's API, which says nothing about its type, next to bulk callers, and two
API keys of which one has sixteen times the callers. The sides of a row are measured in one run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from overload import batch_totals, choose_flags, seconds_per_batch
from report import Row, show, write_markdown
from rich.console import Console

from gateway_process import GatewayProcess, running_gateway
from load_generator import run_load, start_load

MAX_BATCHES = 4.0
MIN_BULK_SHARE = 0.9
MIN_KEY_SHARE = 0.4
RATE = 5.0
WARM_UP_SECONDS = 5.0
KEYS = {"lone": "bench-key-of-the-lone", "many": "bench-key-of-the-many"}
HEADER = ("", "next to others", "alone")


def plain_rows(
    name: str, gateway: GatewayProcess, seconds: float, kind: str, callers: int
) -> list[Row]:
    """Measure single texts next to bulk callers, and these before, during and after."""
    run_load(gateway.url, WARM_UP_SECONDS, kind=kind, callers=callers)
    bulk = start_load(gateway.url, 2 * seconds + 3 * WARM_UP_SECONDS, kind=kind, callers=callers)
    time.sleep(WARM_UP_SECONDS)
    first = Reading.of(gateway)
    time.sleep(seconds / 2)
    second = Reading.of(gateway)
    plain = run_load(gateway.url, seconds, kind="plain", rate=RATE)
    third = Reading.of(gateway)
    time.sleep(seconds / 2)
    last = Reading.of(gateway)
    bulk()
    alone = (second.rate_since(first) + last.rate_since(third)) / 2
    shared = third.rate_since(second) - RATE
    batch_seconds = seconds_per_batch(second.batches, third.batches)
    batches = plain.seconds[1] / batch_seconds
    return [
        Row(
            f"{name}: one text of 12 words",
            f"p50 {1000 * plain.seconds[0]:.0f} ms, p99 {1000 * plain.seconds[1]:.0f} ms, "
            f"statuses {plain.statuses}",
            f"a batch takes {1000 * batch_seconds:.0f} ms",
            f"p99 is {batches:.1f} batches",
            f"at most {MAX_BATCHES:g}, none refused",
            batches <= MAX_BATCHES and plain.statuses.keys() == {200},
        ),
        Row(
            f"{name}: their throughput",
            f"{shared:.0f} texts/s",
            f"{alone:.0f} texts/s",
            f"{shared / alone:.2f}",
            f"at least {MIN_BULK_SHARE:g}",
            shared >= MIN_BULK_SHARE * alone,
        ),
    ]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model has done so far: answers of large requests come too rarely to be counted."""

    when: float
    texts: float
    batches: tuple[float, float]

    @classmethod
    def of(cls, gateway: GatewayProcess) -> Reading:
        texts = gateway.metric("qwen3_triton_batch_rows_sum")
        return cls(time.perf_counter(), texts, batch_totals(gateway))

    def rate_since(self, other: Reading) -> float:
        """Return the texts per second."""
        return (self.texts - other.texts) / (self.when - other.when)


def key_row(gateway: GatewayProcess, seconds: float) -> Row:
    """Measure how two keys share the model: the lone one's answers, and all that the model does."""
    many = start_load(
        gateway.url, seconds + 2 * WARM_UP_SECONDS, kind="bulk", key=KEYS["many"], callers=16
    )
    time.sleep(WARM_UP_SECONDS)
    before = Reading.of(gateway)
    lone = run_load(gateway.url, seconds, kind="bulk", key=KEYS["lone"], callers=1)
    rate = Reading.of(gateway).rate_since(before)
    many()
    share = lone.answered_per_second / rate
    return Row(
        "two API keys, with 1 and 16 callers of 128 texts",
        f"the lone caller: {lone.answered_per_second:.0f} texts/s",
        f"both: {rate:.0f} texts/s",
        f"{share:.2f} of all",
        f"at least {MIN_KEY_SHARE:g}",
        share >= MIN_KEY_SHARE,
    )


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="Length of each part.")
@click.option("--triton", is_flag=True, help="Use a local Triton.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table there, too.")
def main(seconds: float, triton: bool, markdown: Path | None) -> None:
    """Send unequal loads, and print what each caller gets."""
    rows: list[Row] = []
    with ExitStack() as stack:
        flags = choose_flags(stack, triton=triton)
        with running_gateway(*flags) as gateway:
            four = "next to 4 callers with 128 texts"
            rows += plain_rows(four, gateway, seconds, "bulk", 4)
            rows += plain_rows("next to one request of 2,048", gateway, seconds, "huge", 1)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = folder / "keys"
        keys.write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
        keys.chmod(0o600)
        with running_gateway(*flags, "--api-keys-file", str(keys)) as gateway:
            gateway.api_key = KEYS["lone"]
            rows.append(key_row(gateway, seconds))
    show(rows, Console(), HEADER)
    if markdown is not None:
        write_markdown(rows, markdown, HEADER)


if __name__ == "__main__":
    sys.exit(main())
