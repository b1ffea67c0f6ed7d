"""A model so heavy that inference dominates: random weights in Qwen3-Embedding-0.6B's shapes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

import qwen3_nano
from qwen3_nano.graph import build_graph
from qwen3_nano.weights import NanoLayer, NanoWeights, Quantized, load_weights

MODEL_NAME = "heavy"
# config.json of Qwen/Qwen3-Embedding-0.6B, with as many layers as two cores can handle.
HIDDEN_SIZE, QUERY_HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE_SIZE = 1024, 16, 8, 128, 3072
LAYERS = 3
INITIALIZER_RANGE = 0.02


def write_heavy_model(folder: Path, *, layers: int = LAYERS, quantized: bool = True) -> Path:
    """Write `model.onnx`, `config.json` and the nano model's tokenizer, and return the folder.

    Without `quantized`, the matrices are float32, as in most exports.
    """
    nano_dir = qwen3_nano.model_dir()
    nano = load_weights(nano_dir / "model.onnx")
    random = np.random.default_rng(3)

    def matrix(rows: int, columns: int) -> Quantized:
        values = random.normal(scale=INITIALIZER_RANGE, size=(rows, columns))
        matrix = values.astype(np.float32)
        return Quantized.of(matrix) if quantized else Quantized(matrix)

    weights = NanoWeights(
        embedding=nano.embedding,
        projection=matrix(HIDDEN_SIZE, nano.embedding.values.shape[1]),
        layers=tuple(_layer(matrix) for _ in range(layers)),
        norm=np.ones(HIDDEN_SIZE, dtype=np.float32),
        head_dim=HEAD_DIM,
        rope_theta=nano.rope_theta,
        rms_norm_eps=nano.rms_norm_eps,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(build_graph(weights).SerializeToString())
    shutil.copyfile(nano_dir / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((nano_dir / "config.json").read_text()) | {
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": QUERY_HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTERMEDIATE_SIZE,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _layer(matrix: Callable[[int, int], Quantized]) -> NanoLayer:
    ones = np.ones(HEAD_DIM, dtype=np.float32)
    norm = np.ones(HIDDEN_SIZE, dtype=np.float32)
    return NanoLayer(
        input_norm=norm,
        q=matrix(QUERY_HEADS * HEAD_DIM, HIDDEN_SIZE),
        k=matrix(KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
        v=matrix(KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
        q_norm=ones,
        k_norm=ones,
        o=matrix(HIDDEN_SIZE, QUERY_HEADS * HEAD_DIM),
        post_norm=norm,
        gate=matrix(INTERMEDIATE_SIZE, HIDDEN_SIZE),
        up=matrix(INTERMEDIATE_SIZE, HIDDEN_SIZE),
        down=matrix(HIDDEN_SIZE, INTERMEDIATE_SIZE),
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", default=LAYERS, show_default=True)
def main(*, folder: Path, layers: int) -> None:
    """Write the model in float32, to serve it or to tune for it."""
    write_heavy_model(folder, layers=layers, quantized=False)


if __name__ == "__main__":
    main()
