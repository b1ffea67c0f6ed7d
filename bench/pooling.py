"""What hidden states cost the gateway: its CPU time per text, unpooled and pooled, through Triton.

    PYTHONPATH=tests/support python bench/pooling.py                   # 32, 128 and 512 tokens
    PYTHONPATH=tests/support python bench/pooling.py --protocol http

Two gateways, each in front of a Triton of its own: one gets hidden states with 2,560 dimensions in
float16, as those of the 4B model, the other gets vectors, pooled in Triton. The model is a table of
tokens and a sum, so that the gateways do not wait for it. What counts is the CPU time of the
gateway's process, kernel included: so the machine may be busy otherwise.
"""

from __future__ import annotations

import statistics
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from front_end import Connection, cpu_seconds
from onnx import TensorProto, helper, numpy_helper
from report import Row, show, spread, write_markdown
from rich.console import Console

import qwen3_nano
from gateway_process import GatewayProcess, running_gateway, triton_flags
from qwen3_triton_gateway.tokenization import TextTokenizer
from qwen3_triton_tools.local_triton import LocalTriton
from qwen3_triton_tools.tune.texts import chunks, mixed_texts

TEXTS_PER_REQUEST = 32
# Texts of each length.
TEXTS = {32: 2048, 128: 1024, 512: 512}
HIDDEN_SIZE, TABLE_SIZE = 2560, 64
# What a token counts that is not the last.
EARLIER = 0.1
MODEL = "table"
HEADER = ("", "vectors", "hidden states")


@contextmanager
def written_model() -> Generator[Path]:
    """Yield a folder with a model whose states depend on a token, and less on those before it."""
    rows = TextTokenizer(qwen3_nano.model_dir(), max_length=8).vocabulary_size
    table = np.random.default_rng(7).normal(size=(rows, TABLE_SIZE)).astype(np.float32)
    stored = {
        "table": table,
        "axis": np.array(1),
        "earlier": np.array(EARLIER, dtype=np.float32),
        "repeats": np.array([1, 1, HIDDEN_SIZE // TABLE_SIZE]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("CumSum", ["tokens", "axis"], ["sums"]),
        helper.make_node("Mul", ["sums", "earlier"], ["weighed"]),
        helper.make_node("Add", ["tokens", "weighed"], ["added"]),
        helper.make_node("Cast", ["added"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Tile", ["narrow", "repeats"], ["last_hidden_state"]),
    ]
    tokens = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        MODEL,
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, tokens)
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info(
                "last_hidden_state", TensorProto.FLOAT16, [*tokens, HIDDEN_SIZE]
            )
        ],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(model.SerializeToString())
        yield Path(folder)


@contextmanager
def stack(folder: Path, protocol: str, pooled_output: str | None) -> Generator[GatewayProcess]:
    """Run the gateway in front of a Triton that pools an output, or returns it as it is."""
    with LocalTriton(model_dir=folder, model_name=MODEL, pooled_output=pooled_output) as triton:
        url = triton.grpc_url if protocol == "grpc" else triton.http_url
        with running_gateway(*triton_flags(url, MODEL)) as gateway:
            yield gateway


def texts_of(length: int, count: int) -> list[str]:
    """Cut the bundled documents into texts of this many tokens."""
    tokenizer = TextTokenizer(qwen3_nano.model_dir(), max_length=1 << 20)
    words = " ".join(mixed_texts(400)).split()
    [whole] = tokenizer.token_ids([" ".join(words)])
    words_per_token = len(words) / len(whole)
    size = round(length * words_per_token)
    return [
        " ".join(words[at : at + size])
        for at in (start * size % (len(words) - size) for start in range(count))
    ]


def milliseconds_per_text(gateway: GatewayProcess, texts: list[str]) -> float:
    """Return the CPU time of the gateway's process."""
    connection = Connection(int(gateway.url.rpartition(":")[2]))
    before = cpu_seconds(gateway.process.pid)
    for part in chunks(texts, TEXTS_PER_REQUEST):
        connection.send({"texts": part, "encoding_format": "base64"})
    spent = cpu_seconds(gateway.process.pid) - before
    connection.close()
    return 1000 * spent / len(texts)


@click.command(help=__doc__)
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--protocol", type=click.Choice(["grpc", "http"]), default="grpc", show_default=True)
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table there, too.")
def main(rounds: int, protocol: str, markdown: Path | None) -> None:
    rows: list[Row] = []
    with (
        written_model() as folder,
        stack(folder, protocol, "last_hidden_state") as pooled,
        stack(folder, protocol, None) as unpooled,
    ):
        for length, count in TEXTS.items():
            texts = texts_of(length, count)
            for gateway in (pooled, unpooled):
                milliseconds_per_text(gateway, texts[:TEXTS_PER_REQUEST])
            pairs = [
                (milliseconds_per_text(pooled, texts), milliseconds_per_text(unpooled, texts))
                for _ in range(rounds)
            ]
            ours, other = (statistics.median(side) for side in zip(*pairs, strict=True))
            rows.append(
                Row(
                    f"CPU of the gateway for a text of {length} tokens, {protocol}",
                    f"{ours:.2f} ms",
                    f"{other:.2f} ms",
                    f"{spread([states / vectors for vectors, states in pairs], 1)} times",
                )
            )
    show(rows, Console(), HEADER)
    if markdown:
        write_markdown(rows, markdown, HEADER)


if __name__ == "__main__":
    main()
