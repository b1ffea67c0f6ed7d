"""The gateway's own cost: its CPU time per request, with a model that costs nothing.

    python bench/front_end.py         # lone queries, requests of 64 texts, and 50 pairs to rerank
    python bench/front_end.py --rounds 9
    python bench/front_end.py --against ../before   # compared in turns with another checkout

The gateway runs in a process of its own, complete but for the backends, which return rows of a
table. What counts is that process's CPU time, kernel included, and not how long a request takes: so
the machine may be busy otherwise.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple, TypeAlias

import click
import numpy as np
from report import Row, show, spread, write_markdown
from rich.console import Console

import qwen3_nano
from qwen3_triton_gateway import server
from qwen3_triton_gateway.backends.base import ModelSpec, TensorSpec
from qwen3_triton_gateway.backends.interface import describe_model, wrap_output
from qwen3_triton_gateway.settings import Settings
from qwen3_triton_gateway.tensors import HiddenStates, PooledStates, TokenBatch
from qwen3_triton_tools.local_triton.launch import answers_ok
from qwen3_triton_tools.tune.texts import chunks, mixed_texts

HIDDEN_SIZE, ROWS = 1024, 1024
WORDS, TEXTS_PER_REQUEST = 40, 64
QUERY_WORDS, PAIR_WORDS, PAIRS_PER_REQUEST = 10, 150, 50
QUERIES, REQUESTS, WARM_UP = 500, 25, 0.2
MAX_QUERY_MS, MAX_TEXT_US = 0.7, 100
# Two gateways that are compared take turns this often in a round.
TURNS = 12
HEADER = ("", "CPU of the gateway", "CPU of the other")
TASKS = ("embed", "rerank")
ROOT = Path(__file__).resolve().parents[1]
Body: TypeAlias = dict[str, Any]


class Gateway(NamedTuple):
    """A running gateway: its process, and its port on this machine."""

    pid: int
    port: int


class Case(NamedTuple):
    """A kind of request whose cost is measured, per text or pair.

    Attributes:
        what: What costs that, for the table.
        task: The gateway that answers it.
        bodies: The requests.
        items: The texts or pairs of each.
        unit: The unit of the table: ms or µs.
        digits: Its decimals.
        target: The maximum in that unit, if there is one.
    """

    what: str
    task: str
    bodies: Sequence[Body]
    items: int
    unit: str
    digits: int
    target: float | None = None


class TableBackend:
    """A model whose vectors are rows of a table, chosen by all tokens of a text.

    A reranker's vectors have one dimension, its logit.
    """

    def __init__(self, hidden_size: int) -> None:
        self.generation = self.doubts = 0
        self.description = "rows of a table"
        self.states = {"table": True}
        self.problems: dict[str, str] = {}
        self.max_output_bytes: int | None = None
        self.run_memory = None
        self._table = np.random.default_rng(7).normal(size=(ROWS, hidden_size)).astype(np.float32)
        int64 = np.dtype(np.int64)
        names = ("input_ids", "attention_mask")
        self.spec = describe_model(
            name="table",
            inputs=[TensorSpec(name, int64, (-1, -1)) for name in names],
            outputs=[TensorSpec("sentence_embedding", np.dtype(np.float32), (-1, hidden_size))],
            max_batch_size=TEXTS_PER_REQUEST,
            instance_count=1,
            weights_digest="table",
        )

    async def connect(self) -> ModelSpec:
        return self.spec

    async def adopt_canary(self, canary: TokenBatch) -> bool:
        del canary
        return False

    async def infer(
        self, batch: TokenBatch, *, timeout_seconds: float, priority: int
    ) -> HiddenStates | PooledStates:
        del timeout_seconds, priority
        places = 1 + np.arange(batch.input_ids.shape[1])
        keys = ((batch.input_ids + 1) * batch.attention_mask) @ places
        return wrap_output(self.spec, batch, self._table[keys % ROWS])

    async def is_ready(self) -> bool:
        return True

    async def close(self) -> None:
        pass


class Connection:
    """One kept connection that sends the same kind of request again and again."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))

    def send(self, body: Body) -> None:
        """Send one request to embed texts or to rerank them, and read its response to the end.

        Raises:
            RuntimeError: The status is not 200.
        """
        content = json.dumps(body).encode()
        path = "/rerank" if "query" in body else "/embed"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        self._socket.sendall(head.encode() + content)
        answer = b""
        while not _is_whole(answer):
            part = self._socket.recv(1 << 20)
            answer += part
            if not part or not answer.startswith(b"HTTP/1.1 200"[: len(answer)]):
                raise RuntimeError(f"The gateway answered {answer[:200]!r}.")

    def close(self) -> None:
        self._socket.close()


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(end) and (
        len(body) >= int(length[1]) if length else answer.endswith(b"\r\n0\r\n\r\n")
    )


@contextmanager
def gateway(task: str, checkout: Path = ROOT) -> Generator[Gateway]:
    """Run a gateway of a checkout that embeds or reranks on that backend."""
    command = [sys.executable, "bench/front_end.py", "--serve", task]
    sources = [checkout / "server" / "src", *checkout.glob("packages/*/src")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources))}
    # A file, since a pipe that is not read would block it: it logs every request.
    with (
        NamedTemporaryFile("w+") as log,
        subprocess.Popen(command, stderr=log, cwd=checkout, env=environment) as process,
    ):
        try:
            yield Gateway(process.pid, _wait_for_port(process, Path(log.name)))
        finally:
            process.send_signal(signal.SIGINT)


def _wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    while process.poll() is None:
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())
        if found and answers_ok(f"http://127.0.0.1:{found[1]}/health/ready"):
            return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(f"The gateway did not start:\n{log.read_text()}")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, in its own code and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(gateways: Sequence[Gateway], bodies: Sequence[Body]) -> list[float]:
    """Return the CPU seconds per request of each gateway, which take turns."""
    connections = [Connection(gateway.port) for gateway in gateways]
    for connection in connections:
        for body in bodies[: int(WARM_UP * len(bodies))]:
            connection.send(body)
    spent = [-cpu_seconds(gateway.pid) for gateway in gateways]
    for turn in chunks(bodies, max(1, len(bodies) // TURNS)):
        for connection in connections:
            for body in turn:
                connection.send(body)
    spent = [time + cpu_seconds(gateway.pid) for time, gateway in zip(spent, gateways, strict=True)]
    for connection in connections:
        connection.close()
    return [time / len(bodies) for time in spent]


def plain_texts(count: int, length: int = WORDS) -> list[str]:
    """Cut texts of the same number of words from the bundled documents."""
    words = " ".join(mixed_texts(200)).split()
    starts = np.random.default_rng(3).integers(0, len(words) - length, count).tolist()
    return [" ".join(words[at : at + length]) for at in starts]


def build_cases() -> list[Case]:
    """Build the requests of each row."""
    base64 = {"encoding_format": "base64"}
    queries: list[Body] = [
        {"texts": [text], "input_type": "query"} | base64 for text in plain_texts(QUERIES)
    ]
    texts = chunks(plain_texts(REQUESTS * TEXTS_PER_REQUEST), TEXTS_PER_REQUEST)
    questions = plain_texts(REQUESTS, QUERY_WORDS)
    documents = chunks(plain_texts(REQUESTS * PAIRS_PER_REQUEST, PAIR_WORDS), PAIRS_PER_REQUEST)
    pairs = zip(questions, documents, strict=True)
    return [
        Case(f"a lone query of {WORDS} words", "embed", queries, 1, "ms", 2, MAX_QUERY_MS),
        Case(
            f"a text of {WORDS} words in requests of {TEXTS_PER_REQUEST}",
            "embed",
            [{"texts": some} | base64 for some in texts],
            TEXTS_PER_REQUEST,
            "µs",
            0,
            MAX_TEXT_US,
        ),
        Case(
            f"a pair of {QUERY_WORDS} and {PAIR_WORDS} words in requests of {PAIRS_PER_REQUEST}",
            "rerank",
            [{"query": query, "texts": some} for query, some in pairs],
            PAIRS_PER_REQUEST,
            "µs",
            0,
        ),
    ]


@click.command(help=__doc__)
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table there, too.")
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="A checkout of another commit, which runs on this one's packages.",
)
@click.option("--serve", type=click.Choice(TASKS), hidden=True)
def main(rounds: int, markdown: Path | None, against: Path | None, serve: str | None) -> None:
    if serve:
        _serve(serve)
        return
    checkouts = [ROOT, against] if against else [ROOT]
    cases = build_cases()
    spent: list[list[list[float]]] = [[] for _ in cases]
    with ExitStack() as stack:
        gateways = {
            task: [stack.enter_context(gateway(task, checkout)) for checkout in checkouts]
            for task in TASKS
        }
        for _ in range(rounds):
            for case, rows in zip(cases, spent, strict=True):
                rows.append(measure(gateways[case.task], case.bodies))
    table = [_row(case, rows) for case, rows in zip(cases, spent, strict=True)]
    show(table, Console(), HEADER)
    if markdown:
        write_markdown(table, markdown, HEADER)


def _row(case: Case, spent: Sequence[Sequence[float]]) -> Row:
    """Build the row of a case: without another checkout, its result is the time itself."""
    scale = {"ms": 1e3, "µs": 1e6}[case.unit] / case.items
    sides = [[scale * time for time in side] for side in zip(*spent, strict=True)]
    medians = [statistics.median(side) for side in sides]
    ours, other, *_ = [*(f"{median:.{case.digits}f} {case.unit}" for median in medians), ""]
    ratios = [ours / theirs for ours, theirs in spent] if len(sides) > 1 else []
    result = spread(ratios) if ratios else spread(sides[0], case.digits)
    if case.target is None:
        return Row(case.what, ours, other, result)
    target = f"at most {case.target} {case.unit}"
    return Row(case.what, ours, other, result, target, medians[0] <= case.target)


def _serve(task: str) -> None:
    is_reranker = task == "rerank"
    model = (
        {"RERANK_TRITON_MODEL": "table", "RERANK_TOKENIZER_PATH": qwen3_nano.model_dir()}
        if is_reranker
        else {"TOKENIZER_PATH": qwen3_nano.model_dir()}
    )
    settings = Settings.model_validate({"TRITON_URL": "http://unused", "EMBED_PORT": 0, **model})
    server.configure_logging(settings)
    # All else is what `serve` runs.
    server.choose_backend = lambda *_: TableBackend(1 if is_reranker else HIDDEN_SIZE)
    server.run_gateway(settings)


if __name__ == "__main__":
    main()
