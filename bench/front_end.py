"""The gateway's own cost: its CPU time per request, with a model that costs nothing.

    python bench/front_end.py         # lone queries, requests of 64 texts, and 50 pairs to rerank
    python bench/front_end.py --rounds 9

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
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

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
HEADER = ("", "CPU of the gateway", "")


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

    def send(self, body: dict[str, object]) -> None:
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
def gateway(task: str = "embed") -> Generator[tuple[int, int]]:
    """Run a gateway that embeds or reranks on that backend, and yield its process ID and port."""
    command = [sys.executable, __file__, "--serve", task]
    # A file, since a pipe that is not read would block it: it logs every request.
    with (
        NamedTemporaryFile("w+") as log,
        subprocess.Popen(command, stderr=log) as process,
    ):
        try:
            yield process.pid, _wait_for_port(process, Path(log.name))
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


def measure(pid: int, port: int, bodies: list[dict[str, object]]) -> float:
    """Return the CPU seconds per request."""
    connection = Connection(port)
    for body in bodies[: int(WARM_UP * len(bodies))]:
        connection.send(body)
    before = cpu_seconds(pid)
    for body in bodies:
        connection.send(body)
    spent = cpu_seconds(pid) - before
    connection.close()
    return spent / len(bodies)


def plain_texts(count: int, length: int = WORDS) -> list[str]:
    """Cut texts of the same number of words from the bundled documents."""
    words = " ".join(mixed_texts(200)).split()
    starts = np.random.default_rng(3).integers(0, len(words) - length, count).tolist()
    return [" ".join(words[at : at + length]) for at in starts]


@click.command(help=__doc__)
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table there, too.")
@click.option("--serve", type=click.Choice(["embed", "rerank"]), hidden=True)
def main(rounds: int, markdown: Path | None, serve: str | None) -> None:
    if serve:
        _serve(serve)
        return
    base64 = {"encoding_format": "base64"}
    queries: list[dict[str, object]] = [
        {"texts": [text], "input_type": "query"} | base64 for text in plain_texts(QUERIES)
    ]
    requests: list[dict[str, object]] = [
        {"texts": texts} | base64
        for texts in chunks(plain_texts(REQUESTS * TEXTS_PER_REQUEST), TEXTS_PER_REQUEST)
    ]
    questions = plain_texts(REQUESTS, QUERY_WORDS)
    documents = chunks(plain_texts(REQUESTS * PAIRS_PER_REQUEST, PAIR_WORDS), PAIRS_PER_REQUEST)
    reranked: list[dict[str, object]] = [
        {"query": query, "texts": texts} for query, texts in zip(questions, documents, strict=True)
    ]
    lone, each, pair = list[float](), list[float](), list[float]()
    with gateway() as embeds, gateway("rerank") as reranks:
        for _ in range(rounds):
            lone.append(1000 * measure(*embeds, queries))
            each.append(1e6 * measure(*embeds, requests) / TEXTS_PER_REQUEST)
            pair.append(1e6 * measure(*reranks, reranked) / PAIRS_PER_REQUEST)
    rows = [
        Row(
            f"a lone query of {WORDS} words",
            f"{statistics.median(lone):.2f} ms",
            "",
            spread(lone),
            f"at most {MAX_QUERY_MS} ms",
            statistics.median(lone) <= MAX_QUERY_MS,
        ),
        Row(
            f"a text of {WORDS} words in requests of {TEXTS_PER_REQUEST}",
            f"{statistics.median(each):.0f} µs",
            "",
            spread(each, 0),
            f"at most {MAX_TEXT_US} µs",
            statistics.median(each) <= MAX_TEXT_US,
        ),
        Row(
            f"a pair of {QUERY_WORDS} and {PAIR_WORDS} words in requests of {PAIRS_PER_REQUEST}",
            f"{statistics.median(pair):.0f} µs",
            "",
            spread(pair, 0),
        ),
    ]
    show(rows, Console(), HEADER)
    if markdown:
        write_markdown(rows, markdown, HEADER)


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
