"""Exports by torch of transformers' Qwen3, inspected, pooled and served by the product.

Random weights in the layer shapes of Qwen3-Embedding-0.6B, with fewer layers and the nano model's
vocabulary. The export and the reference run here; the product runs in its own environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from served_product import Vectors, embed, running
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model
from transformers.cache_utils import DynamicCache

import qwen3_nano

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"

# config.json of Qwen/Qwen3-Embedding-0.6B with fewer layers and tokens, for two cores.
HIDDEN_SIZE, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE_SIZE = 1024, 2, 16, 8, 128, 3072
VOCABULARY = 24_000
# With equal float32 weights on both sides, only the order of summation differs.
FLOAT32_COSINE = 0.99999
# Ten bits of mantissa through two layers, with different kernels on each side.
FLOAT16_COSINE = 0.999
PADDINGS = ("right", "left", "mixed")
TEXTS = [
    "tea",
    "A sentence of middling length about the weather.",
    "word " * 150,
    "日本語の文章とемодзи 😀",
    "What is the capital of China?",
]


class Plain(torch.nn.Module):
    """The graph of optimum's feature-extraction task: three inputs, no cache."""

    def __init__(self, model: Qwen3Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any) -> Any:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(**inputs, position_ids=position_ids, use_cache=False).last_hidden_state


class WithPast(Plain):
    """The graph of onnx-community: a past per layer as input, a present per layer as output."""

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
        cache = DynamicCache(config=self.model.config)
        for layer in range(LAYERS):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        answer = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return (answer.last_hidden_state, *present)


@dataclass(frozen=True, slots=True)
class Export:
    """An export: its folder, the model it was made from, and its tolerance."""

    folder: Path
    model: Qwen3Model
    past: bool
    min_cosine: float


def make_model() -> Qwen3Model:
    torch.manual_seed(11)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=2048,
        rope_theta=1e6,
        attn_implementation="eager",
    )
    return Qwen3Model(config).eval()


def export_onnx(model: Qwen3Model, folder: Path, *, past: bool) -> None:
    """Export with torch's TorchScript exporter, as optimum does, with external weights."""
    length, past_length = 7, 3
    total = length + past_length if past else length
    tokens = {0: "batch", 1: "sequence"}
    axes = {"input_ids": tokens, "position_ids": tokens, "last_hidden_state": tokens}
    axes["attention_mask"] = {0: "batch", 1: "total"} if past else tokens
    arguments = [
        torch.randint(0, VOCABULARY, (2, length)),
        torch.ones((2, total), dtype=torch.long),
        torch.arange(total - length, total).repeat(2, 1),
    ]
    inputs, outputs = ["input_ids", "attention_mask", "position_ids"], ["last_hidden_state"]
    if past:
        for layer in range(LAYERS):
            for kind in ("key", "value"):
                shape = (2, KV_HEADS, past_length, HEAD_DIM)
                arguments.append(torch.randn(shape, dtype=model.dtype))
                inputs.append(f"past_key_values.{layer}.{kind}")
                outputs.append(f"present.{layer}.{kind}")
                axes[inputs[-1]] = {0: "batch", 2: "past"}
                axes[outputs[-1]] = {0: "batch", 2: "total"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            (WithPast if past else Plain)(model),
            tuple(arguments),
            str(folder / "whole.onnx"),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,  # the other one needs onnxscript
        )
    onnx.save_model(
        onnx.load(folder / "whole.onnx"),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
    )
    (folder / "whole.onnx").unlink()


@pytest.fixture(name="export", scope="session", params=["plain", "past", "float16"])
def _export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model()
    if request.param == "float16":
        model = model.half()
    past = request.param == "past"
    export_onnx(model, folder, past=past)
    shutil.copyfile(qwen3_nano.model_dir() / "tokenizer.json", folder / "tokenizer.json")
    model.config.save_pretrained(folder)
    cosine = FLOAT16_COSINE if request.param == "float16" else FLOAT32_COSINE
    return Export(folder, model, past, cosine)


@pytest.fixture(name="pooled", scope="session")
def _pooled(export: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same export with pooling appended by the product."""
    out = tmp_path_factory.mktemp("pooled") / "model"
    document = product("model", "pool", str(export.folder), "-o", str(out), "--json")
    assert document["hidden_size"] == HIDDEN_SIZE
    return out


def product(*arguments: str) -> Any:
    done = subprocess.run(
        [BIN / "qwen3-triton", *arguments], capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    return json.loads(done.stdout)


def padded(padding: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random rows of 1 to 40 tokens, padded on one side or alternately on both."""
    random = np.random.default_rng(5)
    width, counts = 40, (40, 1, 17, 5)
    ids = random.integers(1, VOCABULARY, (len(counts), width))
    mask = np.zeros_like(ids)
    for row, count in enumerate(counts):
        left = padding == "left" or (padding == "mixed" and row % 2 == 0)
        mask[row, width - count :] = left
        mask[row, :count] |= not left
    return ids, mask


def run_onnx(path: Path, batches: dict[str, tuple[NDArray[Any], NDArray[Any]]]) -> Any:
    """Run `sentence_embedding` with ONNX Runtime, in the product's environment."""
    script = """
import sys
import numpy as np, onnxruntime
path, feed, results = sys.argv[1:]
session = onnxruntime.InferenceSession(path)
types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
stored, pooled = np.load(feed), {}
for name in {key.partition("/")[0] for key in stored}:
    ids, mask = stored[name + "/ids"], stored[name + "/mask"]
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    arrays = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for entry in session.get_inputs():
        if entry.name not in arrays:
            shape = (len(ids), entry.shape[1], 0, entry.shape[3])
            arrays[entry.name] = np.empty(shape, types[entry.type])
    [pooled[name]] = session.run(["sentence_embedding"], arrays)
np.savez(results, **pooled)
"""
    feed, results = path.parent / "feed.npz", path.parent / "pooled.npz"
    arrays = {f"{name}/ids": ids for name, (ids, _) in batches.items()}
    np.savez(feed, **arrays | {f"{name}/mask": mask for name, (_, mask) in batches.items()})
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    command = [BIN / "python", "-c", script, path, feed, results]
    subprocess.run(command, check=True, timeout=120, env=environment)
    return np.load(results)


@torch.inference_mode()
def reference_states(model: Qwen3Model, ids: NDArray[Any], mask: NDArray[Any]) -> Vectors:
    """Return transformers' state of the last token of each row, run alone and unpadded."""
    rows: list[Vectors] = []
    for row, real in zip(ids, mask, strict=True):
        tokens = torch.from_numpy(row[real == 1])[None]
        states = model(input_ids=tokens, use_cache=False).last_hidden_state
        rows.append(states[0, -1].float().numpy())
    return np.stack(rows)


def worst_cosine(left: Vectors, right: Vectors) -> float:
    a, b = left.astype(np.float64), right.astype(np.float64)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosines.min())


def serving(folder: Path) -> AbstractContextManager[str]:
    """The gateway in front of a real Triton, both on this folder."""
    flags = ("--model-dir", folder, "--tokenizer-path", folder)
    return running("up", *flags, log=folder.parent / f"{folder.name}.log")


def sentence_transformer(model: Qwen3Model, folder: Path) -> Any:
    """Load the same weights with sentence-transformers, pooled at the last token."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(qwen3_nano.model_dir() / "tokenizer.json"),
        pad_token="<|endoftext|>",
        padding_side="left",  # as the family's own configuration has it
    )
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=1024)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


def test_an_export_is_inspected_correctly(export: Export) -> None:
    document = product("model", "inspect", str(export.folder), "--json")
    float16 = export.model.dtype == torch.float16
    assert document["servable"] is True
    assert document["hidden_size"] == HIDDEN_SIZE
    assert document["producer"].startswith("pytorch")
    assert document["pooled"] is False
    assert document["past_key_values"] == (2 * LAYERS if export.past else 0)
    assert document["precision"]["compute"] == ("float16" if float16 else "float32")
    assert document["positions"] == "input"
    assert document["embedding_rows"] == VOCABULARY
    assert [file["is_whole"] for file in document["external_files"]] == [True]
    parameters = sum(parameter.numel() for parameter in export.model.parameters())
    assert document["precision"]["parameters"] == pytest.approx(parameters, rel=0.01)
    assert not [found for found in document["findings"] if found["severity"] != "note"]


def test_the_pooled_graph_returns_the_last_state_of_transformers(
    export: Export, pooled: Path
) -> None:
    batches = {padding: padded(padding) for padding in PADDINGS}
    vectors = run_onnx(pooled / "model.onnx", batches)
    for padding, (ids, mask) in batches.items():
        assert vectors[padding].dtype == np.float32
        expected = reference_states(export.model, ids, mask)
        assert worst_cosine(vectors[padding], expected) >= export.min_cosine, padding


def test_vectors_through_a_real_triton_match_sentence_transformers(
    export: Export, pooled: Path, tmp_path: Path
) -> None:
    encoder = sentence_transformer(export.model, tmp_path)
    expected = encoder.encode(TEXTS, batch_size=2, normalize_embeddings=True)
    is_plain = not export.past and export.model.dtype == torch.float32
    for folder in (pooled, export.folder) if is_plain else (pooled,):
        with serving(folder) as url:
            assert worst_cosine(embed(url, TEXTS), expected) >= export.min_cosine
