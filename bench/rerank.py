"""Reranking next to embedding with the same trunk: pairs per second, latency, queries in between.

    PYTHONPATH=tests/support python bench/rerank.py                # 4 layers of 0.6B
    PYTHONPATH=tests/support python bench/rerank.py --triton       # both models in a local Triton
    PYTHONPATH=tests/support python bench/rerank.py --model nano
    PYTHONPATH=tests/support python bench/rerank.py --quick        # two minutes, for a first look

One gateway serves both models. Each round sends one request of 50 documents of 200 tokens to be
embedded, one of 50 texts that are as long as the pairs are, prompt included, and one of the same 50
documents to be reranked. Then queries are embedded while four callers rerank. On a busy machine,
read the CPU time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
import httpx2
import numpy as np
from front_end import cpu_seconds
from heavy import write_heavy_model
from report import Row, show, spread, write_markdown
from rich.console import Console
from rich.progress import track

import qwen3_nano
from gateway_process import GatewayProcess, running_gateway, triton_flags
from load_generator import RERANK_QUERY, run_load, start_load
from qwen3_nano.weights import load_weights
from qwen3_triton_gateway.tokenization import TextTokenizer
from qwen3_triton_tools.local_triton import LocalTriton, write_repository
from qwen3_triton_tools.tune.texts import mixed_texts
from reranker_graph import tokenize_as_the_card, write_reranker

DOCUMENTS, DOCUMENT_TOKENS = 50, 200
LAYERS, ROUNDS, SECONDS = 4, 5, 60.0
QUICK_LAYERS, QUICK_ROUNDS, QUICK_SECONDS = 1, 2, 15.0
CALLERS, QUERY_RATE, WARM_UP_SECONDS = 4, 5.0, 5.0
MIN_RATIO, MAX_QUERY_BATCHES = 0.9, 3.0
EMBEDDER, RERANKER = "trunk", "reranker"
TIMEOUT_SECONDS = 600.0
HEADER = ("", "reranking", "compared with")


@dataclass
class Side:
    """One kind of request, and what was measured of it.

    Attributes:
        rates: Texts per second, by round.
        cpu_ms: CPU time of the gateway's process per text, by round.
        padding: Padded tokens per token, over all rounds.
    """

    gateway: GatewayProcess
    path: str
    field_name: str
    body: dict[str, Any]
    metric: str
    rates: list[float] = field(default_factory=list[float])
    cpu_ms: list[float] = field(default_factory=list[float])
    tokens: dict[str, float] = field(default_factory=lambda: {"text": 0.0, "padding": 0.0})

    @property
    def padding(self) -> float:
        return self.tokens["padding"] / self.tokens["text"]

    @property
    def milliseconds(self) -> float:
        """The median time of a request."""
        return 1000 * DOCUMENTS / statistics.median(self.rates)

    def run(self, texts: list[str]) -> None:
        """Send one request, and measure it.

        Raises:
            HTTPStatusError: It was not answered with 200.
        """
        pid = self.gateway.process.pid
        before, cpu = self._count(), cpu_seconds(pid)
        began = time.perf_counter()
        response = httpx2.post(
            self.gateway.url + self.path,
            json=self.body | {self.field_name: texts},
            timeout=TIMEOUT_SECONDS,
            verify=False,
        )
        seconds = time.perf_counter() - began
        response.raise_for_status()
        self.rates.append(len(texts) / seconds)
        self.cpu_ms.append(1000 * (cpu_seconds(pid) - cpu) / len(texts))
        for kind, count in self._count().items():
            self.tokens[kind] += count - before[kind]

    def _count(self) -> dict[str, float]:
        return {kind: self.gateway.metric(self.metric, kind=kind) for kind in self.tokens}


def texts_of(tokenizer: TextTokenizer, tokens: int, seed: int) -> Iterator[str]:
    """Cut the bundled documents into texts of exactly this many tokens."""
    words = " ".join(mixed_texts(400)).split()
    random = np.random.default_rng(seed)
    while True:
        start = int(random.integers(0, len(words) - tokens))
        low, high = 1, tokens
        while low < high:
            middle = (low + high) // 2
            [ids] = tokenizer.token_ids([" ".join(words[start : start + middle])])
            low, high = (middle + 1, high) if len(ids) < tokens else (low, middle)
        text = " ".join(words[start : start + low])
        if len(tokenizer.token_ids([text])[0]) == tokens:
            yield text


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts of one round.

    Attributes:
        documents: To be embedded and reranked.
        pairs: Texts as long as the pairs.
    """

    documents: list[str]
    pairs: list[str]


def make_texts(rounds: int) -> list[Texts]:
    """Make the texts of so many rounds, each with texts of its own."""
    tokenizer = TextTokenizer(qwen3_nano.model_dir(), max_length=1 << 20)
    # An embedded text has an end token, too.
    documents = texts_of(tokenizer, DOCUMENT_TOKENS - 1, seed=3)
    pairs = texts_of(tokenizer, pair_tokens() - 1, seed=4)
    return [
        Texts([*islice(documents, DOCUMENTS)], [*islice(pairs, DOCUMENTS)]) for _ in range(rounds)
    ]


def pair_tokens() -> int:
    """Return the tokens of a pair, prompt included."""
    return len(tokenize_as_the_card(RERANK_QUERY, "")) + DOCUMENT_TOKENS - 1


def start(stack: ExitStack, trunk: Path, reranker: Path, *, triton: bool) -> GatewayProcess:
    """Start a gateway with both models."""
    flags = ("--timeout-s", f"{TIMEOUT_SECONDS:g}", "--threads", "0")
    if not triton:
        flags += ("--model-dir", str(trunk), "--rerank-model-dir", str(reranker))
        return stack.enter_context(running_gateway(*flags, "--model-id", EMBEDDER))
    repository = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    # As `model repository` does, hidden states are pooled on their way to Triton.
    write_repository(trunk, repository, model_name=EMBEDDER, pooled_output="last_hidden_state")
    write_repository(reranker, repository, model_name=RERANKER)
    server = stack.enter_context(LocalTriton(model_repository=repository))
    flags += (*triton_flags(server.grpc_url, EMBEDDER), "--rerank-triton-model", RERANKER)
    return stack.enter_context(running_gateway(*flags))


def compare(what: str, ours: Side, other: Side, unit: str, least: float | None) -> Row:
    """Compare texts per second, and the CPU time of the gateway."""
    ratios = [mine / theirs for mine, theirs in zip(ours.rates, other.rates, strict=True)]
    middle = statistics.median(ratios)
    return Row(
        what,
        f"{statistics.median(ours.rates):.1f} pairs/s, {100 * ours.padding:.0f} % padding",
        f"{statistics.median(other.rates):.1f} {unit}, {100 * other.padding:.0f} % padding",
        spread(ratios),
        "" if least is None else f"at least {least:g}",
        None if least is None else middle >= least,
    )


def rate_rows(gateway: GatewayProcess, rounds: int, *, triton: bool) -> list[Row]:
    """Measure requests of 50 documents, one after the other."""
    embed = ("/embed", "texts", {"encoding_format": "base64"}, "qwen3_triton_batch_tokens_total")
    short, long = Side(gateway, *embed), Side(gateway, *embed)
    pairs = Side(
        gateway,
        "/rerank",
        "texts",
        {"query": RERANK_QUERY},
        "qwen3_triton_rerank_batch_tokens_total",
    )
    warm_up, *measured = make_texts(rounds + 1)
    for texts in [warm_up, *track(measured, "Measuring", console=Console(stderr=True))]:
        short.run(texts.documents)
        long.run(texts.pairs)
        pairs.run(texts.documents)
        if texts is warm_up:
            for side in (short, long, pairs):
                side.rates.clear()
                side.cpu_ms.clear()
    length = pair_tokens()
    rows = [
        compare(
            f"pairs of {length} tokens, and texts of as many",
            pairs,
            long,
            "texts/s",
            MIN_RATIO,
        ),
        compare(
            f"{DOCUMENTS} documents of {DOCUMENT_TOKENS} tokens, reranked and embedded",
            pairs,
            short,
            "texts/s",
            None,
        ),
        Row(
            f"latency of {DOCUMENTS} pairs",
            f"{pairs.milliseconds:.0f} ms",
            f"embedding {DOCUMENTS} such documents: {short.milliseconds:.0f} ms",
            "",
        ),
    ]
    costs = [statistics.median(side.cpu_ms) for side in (pairs, long)]
    rows.append(
        Row(
            f"CPU of the gateway{'' if triton else ', the models included'}",
            f"{costs[0]:.2f} ms a pair",
            f"{costs[1]:.2f} ms a text as long",
            f"{costs[0] / costs[1]:.2f}",
        )
    )
    return rows


def query_row(gateway: GatewayProcess, seconds: float) -> Row:
    """Measure queries that are embedded while the reranker never rests."""
    alone = run_load(gateway.url, seconds / 2, kind="query", rate=QUERY_RATE)
    load = start_load(gateway.url, seconds + 2 * WARM_UP_SECONDS, kind="rerank", callers=CALLERS)
    time.sleep(WARM_UP_SECONDS)
    before, began = _batches(gateway), time.perf_counter()
    queries = run_load(gateway.url, seconds, kind="query", rate=QUERY_RATE)
    # The time from one batch to the next: a batch's own contains that of the one before it.
    batch_seconds = (time.perf_counter() - began) / max(1.0, _batches(gateway) - before)
    load()
    batches = queries.seconds[1] / batch_seconds
    return Row(
        f"embedding queries next to {CALLERS} callers who rerank {DOCUMENTS}",
        f"p50 {1000 * queries.seconds[0]:.0f} ms, p99 {1000 * queries.seconds[1]:.0f} ms, "
        f"statuses {queries.statuses}; alone p99 {1000 * alone.seconds[1]:.0f} ms",
        f"a batch of pairs takes {1000 * batch_seconds:.0f} ms",
        f"p99 is {batches:.1f} batches",
        f"at most {MAX_QUERY_BATCHES:g}, none refused",
        batches <= MAX_QUERY_BATCHES and queries.statuses.keys() == {200},
    )


def _batches(gateway: GatewayProcess) -> float:
    return gateway.metric("qwen3_triton_rerank_batch_rows_count")


@click.command(help=__doc__)
@click.option("--model", type=click.Choice(["heavy", "nano"]), default="heavy", show_default=True)
@click.option("--layers", default=LAYERS, show_default=True)
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--seconds", default=SECONDS, show_default=True, help="Length of the load; 0: none.")
@click.option("--triton", is_flag=True, help="Run both models in a local Triton.")
@click.option("--quick", is_flag=True, help="One layer, fewer rounds, a shorter load.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table there, too.")
def main(
    *,
    model: str,
    layers: int,
    rounds: int,
    seconds: float,
    triton: bool,
    quick: bool,
    markdown: Path | None,
) -> None:
    if quick:
        layers, rounds, seconds = QUICK_LAYERS, QUICK_ROUNDS, QUICK_SECONDS
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trunk = qwen3_nano.model_dir()
        if model == "heavy":
            trunk = write_heavy_model(folder / EMBEDDER, layers=layers, quantized=False)
        reranker = write_reranker(folder / RERANKER, trunk=load_weights(trunk / "model.onnx"))
        gateway = start(stack, trunk, reranker, triton=triton)
        rows = rate_rows(gateway, rounds, triton=triton)
        if seconds:
            rows.append(query_row(gateway, seconds))
    show(rows, Console(), HEADER)
    if markdown:
        write_markdown(rows, markdown, HEADER)


if __name__ == "__main__":
    main()
