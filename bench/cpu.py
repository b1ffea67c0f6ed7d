"""Engines and precisions on this machine's CPU, each behind a gateway, in one run.

    PYTHONPATH=tests/support .venv/bin/python bench/cpu.py              # the bars: 4 layers
    PYTHONPATH=tests/support .venv/bin/python bench/cpu.py --peers      # and sentence-transformers
    PYTHONPATH=tests/support .venv/bin/python bench/cpu.py --triton     # in the local Triton
    PYTHONPATH=tests/support .venv/bin/python bench/cpu.py --layers 28  # the whole 0.6B model
    PYTHONPATH=tests/support .venv/bin/python bench/cpu.py --model nano
    PYTHONPATH=tests/support .venv/bin/python bench/cpu.py --quick      # a minute, for a first look

The model has the layers of Qwen3-Embedding-0.6B with random weights in float32, and the nano
model's tokenizer and token table. Rounds alternate between the gateways; medians are reported.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import psutil
from heavy import write_heavy_model
from load import LoadClient, Report, closed_loop
from peers import measure_peers
from report import Row, show, spread, write_markdown
from rich.console import Console
from rich.progress import track

import qwen3_nano
from gateway_process import GatewayProcess, running_gateway, running_stack
from qwen3_triton_gateway.backends.engines import Machine
from qwen3_triton_tools.model.quantize import quantize_model
from qwen3_triton_tools.tune.texts import QUERY, chunks, mixed_texts

CALLERS, TEXTS_PER_REQUEST = 8, 8
TEXTS, ROUNDS, LAYERS, QUERIES = 240, 5, 4, 30
QUICK = {"texts": 48, "rounds": 2, "layers": 2}
BASE = "ONNX Runtime float32"
# Times the texts per second of ONNX Runtime in float32, cosine to it, times its latency.
BARS = {
    "OpenVINO bfloat16": (2.2, 0.9998, 0.6),
    "OpenVINO int8": (2.8, 0.998, 0.45),
}
# Times the texts per second of sentence-transformers.
PEER_BARS = {
    ("OpenVINO bfloat16", "sentence-transformers"): 2.4,
    ("OpenVINO int8", "sentence-transformers"): 3.0,
    ("OpenVINO bfloat16", "sentence-transformers-bfloat16"): 1.25,
    ("OpenVINO int8", "sentence-transformers-bfloat16"): 1.5,
}


@dataclass
class Side:
    """A gateway and what was measured of it."""

    name: str
    gateway: GatewayProcess
    rates: list[float] = field(default_factory=list[float])
    latencies_ms: list[float] = field(default_factory=list[float])
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    resident_mib: int = 0

    async def run(self, texts: list[str]) -> None:
        """Measure one round: documents by several callers, then one query after the other."""
        async with LoadClient(self.gateway.url) as client:
            requests = chunks(texts, TEXTS_PER_REQUEST)
            report = await closed_loop(client, requests, CALLERS, encoding_format="base64")
            check(report, len(texts))
            self.rates.append(report.texts_per_second)
            queries = [[f"{QUERY} {number}"] for number in range(QUERIES)]
            lone = await closed_loop(client, queries, 1, encoding_format="base64")
            check(lone, QUERIES)
            self.latencies_ms.append(lone.percentile_ms(50))

    async def embed(self, texts: list[str]) -> None:
        """Keep the vectors, and warm up: each shape is compiled when it comes first."""
        async with LoadClient(self.gateway.url) as client:
            parts = [
                json.loads(await client.post_texts(part))["embeddings"] for part in chunks(texts, 8)
            ]
            await closed_loop(client, chunks(texts, TEXTS_PER_REQUEST), CALLERS)
        self.vectors = np.concatenate(parts)
        process = psutil.Process(self.gateway.process.pid)
        processes = [process, *process.children(recursive=True)]
        self.resident_mib = sum(each.memory_info().rss for each in processes) >> 20


def check(report: Report, texts: int) -> None:
    if report.texts != texts:
        raise RuntimeError(f"{report.texts} of {texts} texts were answered: {report.statuses}.")


def start(stack: ExitStack, model_dir: Path, folder: Path, *, triton: bool) -> list[Side]:
    """Start a gateway for each engine and precision that this machine has.

    The engine runs in the gateway's process, or in a `triton` of its own.
    """
    machine = Machine.this()
    int8_dir = model_dir
    # The nano model's weights are int8 already.
    if model_dir != qwen3_nano.model_dir() and not machine.why_not("int8"):
        int8_dir = quantize_model(model_dir / "model.onnx", folder / "int8").path.parent
    wanted = [
        (BASE, model_dir, "onnxruntime", "auto"),
        ("OpenVINO float32", model_dir, "openvino", "float32"),
        ("OpenVINO bfloat16", model_dir, "openvino", "bfloat16"),
        ("OpenVINO int8", int8_dir, "openvino", "int8"),
    ]
    sides: list[Side] = []
    for name, path, engine, precision in wanted:
        if precision in ("bfloat16", "int8") and (why := machine.why_not(precision)):
            print(f"{name} is not measured: {why}.", file=sys.stderr)
            continue
        flags = ("--model-dir", str(path), "--engine", engine, "--precision", precision)
        flags += ("--threads", "0")
        running = running_stack(*flags) if triton else running_gateway(*flags)
        sides.append(Side(name, stack.enter_context(running)))
    return sides


def lowest_cosine(left: np.ndarray, right: np.ndarray) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / norms).min())


def rows_of(sides: list[Side]) -> list[Row]:
    base, *others = sides
    rows: list[Row] = []
    for side in others:
        rate, cosine_bar, latency_bar = BARS.get(side.name, (None, None, None))
        ratios = [ours / theirs for ours, theirs in zip(side.rates, base.rates, strict=True)]
        pairs = zip(side.latencies_ms, base.latencies_ms, strict=True)
        latencies = [ours / theirs for ours, theirs in pairs]
        cosine = lowest_cosine(side.vectors, base.vectors)
        rows += [
            row(side, base, "texts/s", side.rates, base.rates, ratios, rate),
            row(side, base, "ms", side.latencies_ms, base.latencies_ms, latencies, latency_bar),
            Row(
                f"{side.name}: lowest cosine",
                f"{cosine:.5f}",
                base.name,
                f"{cosine:.5f}",
                f"at least {cosine_bar}" if cosine_bar else "",
                cosine >= cosine_bar if cosine_bar else None,
            ),
        ]
    rows += [
        Row(f"{side.name}: resident memory", f"{side.resident_mib} MiB", "", "") for side in sides
    ]
    return rows


def row(
    side: Side,
    base: Side,
    unit: str,
    ours: list[float],
    theirs: list[float],
    ratios: list[float],
    bar: float | None,
) -> Row:
    is_rate = unit == "texts/s"
    middle = statistics.median(ratios)
    met = None if bar is None else (middle >= bar if is_rate else middle <= bar)
    return Row(
        f"{side.name}: {'documents' if is_rate else 'a lone query, p50'}",
        f"{statistics.median(ours):.1f} {unit}",
        f"{base.name}: {statistics.median(theirs):.1f} {unit}",
        spread(ratios),
        "" if bar is None else f"at {'least' if is_rate else 'most'} {bar}",
        met,
    )


def peer_rows(sides: list[Side], model_dir: Path, texts: list[str]) -> list[Row]:
    engines = ("sentence-transformers", "sentence-transformers-bfloat16", "infinity", "llama")
    peers = measure_peers(model_dir, texts, engines)
    rows: list[Row] = []
    for side in sides:
        for name, peer in peers.items():
            ours = statistics.median(side.rates)
            theirs = statistics.median(peer.texts_per_second)
            bar = PEER_BARS.get((side.name, name))
            rows.append(
                Row(
                    f"{side.name}: documents",
                    f"{ours:.1f} texts/s",
                    f"{name}, one call: {theirs:.1f} texts/s",
                    f"{ours / theirs:.2f}",
                    f"at least {bar}" if bar else "",
                    ours / theirs >= bar if bar else None,
                )
            )
    return rows


@click.command()
@click.option("--model", type=click.Choice(["heavy", "nano"]), default="heavy", show_default=True)
@click.option("--layers", default=LAYERS, show_default=True)
@click.option("--texts", "text_count", default=TEXTS, show_default=True)
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--triton", is_flag=True, help="Run the engines in the local Triton.")
@click.option("--peers", is_flag=True, help="Also sentence-transformers, infinity and llama.cpp.")
@click.option("--quick", is_flag=True, help="Fewer layers, texts and rounds.")
@click.option("--markdown", type=click.Path(path_type=Path))
def main(
    *,
    model: str,
    layers: int,
    text_count: int,
    rounds: int,
    triton: bool,
    peers: bool,
    quick: bool,
    markdown: Path | None,
) -> None:
    """Measure engines and precisions on this CPU."""
    if quick:
        layers, text_count, rounds = QUICK["layers"], QUICK["texts"], QUICK["rounds"]
    texts = mixed_texts(text_count)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model_dir = qwen3_nano.model_dir()
        if model == "heavy":
            model_dir = write_heavy_model(folder / "model", layers=layers, quantized=False)
        sides = start(stack, model_dir, folder, triton=triton)

        async def measure() -> None:
            for side in sides:
                await side.embed(texts)
            for _ in track(range(rounds), "Measuring", console=Console(stderr=True)):
                for side in sides:
                    await side.run(texts)

        asyncio.run(measure())
        rows = rows_of(sides)
        stack.close()
        if peers:
            rows += peer_rows(sides, model_dir, texts)
    show(rows, Console(), ("", "ours", "compared with"))
    if markdown:
        write_markdown(rows, markdown, ("", "ours", "compared with"))


if __name__ == "__main__":
    main()
