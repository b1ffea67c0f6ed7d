"""Exports by torch of transformers' Qwen3, inspected, pooled and served by the product.

The export and the reference run here; the product runs in its own environment.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import (
    HIDDEN_SIZE,
    LAYERS,
    VOCABULARY,
    sentence_transformer,
    store_weights,
    write_export,
)
from numpy.typing import NDArray
from onnx_runs import run_onnx
from served_product import Vectors, embed, product, running, worst_cosine
from transformers import Qwen3ForCausalLM

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


@dataclass(frozen=True, slots=True)
class Export:
    """An export of the model: its form, its folder, and its tolerance."""

    form: str
    folder: Path
    min_cosine: float


@pytest.fixture(name="export", scope="session", params=["plain", "past", "float16", "dynamo"])
def _export(
    request: pytest.FixtureRequest,
    model: Qwen3ForCausalLM,
    tmp_path_factory: pytest.TempPathFactory,
) -> Export:
    form: str = request.param
    if form == "dynamo":
        return Export(form, request.getfixturevalue("dynamo_export"), FLOAT32_COSINE)
    folder = tmp_path_factory.mktemp(form)
    if form == "float16":
        store_weights(model, torch.float16)  # and back, since nothing is lost
    write_export(model.model, folder, "past" if form == "past" else "plain")
    store_weights(model, torch.float32)
    return Export(form, folder, FLOAT16_COSINE if form == "float16" else FLOAT32_COSINE)


@pytest.fixture(name="pooled", scope="session")
def _pooled(export: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same export with pooling appended by the product."""
    out = tmp_path_factory.mktemp("pooled") / "model"
    document = product("model", "pool", str(export.folder), "-o", str(out), "--json")
    assert document["hidden_size"] == HIDDEN_SIZE
    return out


@pytest.fixture(name="encoded", scope="session")
def _encoded(model: Qwen3ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    """What sentence-transformers makes of TEXTS."""
    encoder = sentence_transformer(model.model, tmp_path_factory.mktemp("encoder"))
    return encoder.encode(TEXTS, batch_size=2, normalize_embeddings=True)


def random_rows() -> list[NDArray[Any]]:
    random = np.random.default_rng(5)
    return [random.integers(1, VOCABULARY, count) for count in (40, 1, 17, 5)]


def padded(padding: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the rows padded on one side, or alternately on both, and their mask."""
    rows, width = random_rows(), 40
    ids = np.ones((len(rows), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        left = padding == "left" or (padding == "mixed" and row % 2 == 0)
        part = slice(width - len(tokens), width) if left else slice(len(tokens))
        ids[row, part], mask[row, part] = tokens, 1
    return ids, mask


@pytest.fixture(name="states", scope="session")
@torch.inference_mode()
def _states(model: Qwen3ForCausalLM) -> Vectors:
    """transformers' state of the last token of each row, run alone and unpadded."""
    rows = [torch.from_numpy(row)[None] for row in random_rows()]
    states = [model.model(input_ids=row, use_cache=False).last_hidden_state for row in rows]
    return np.stack([values[0, -1].numpy() for values in states])


def serving(folder: Path) -> AbstractContextManager[str]:
    """The gateway in front of a real Triton, which runs this folder with ONNX Runtime."""
    flags = ("--model-dir", folder, "--tokenizer-path", folder, "--engine", "onnxruntime")
    return running("up", *flags, log=folder.parent / f"{folder.name}.log")


def test_an_export_is_inspected_correctly(export: Export, model: Qwen3ForCausalLM) -> None:
    document = product("model", "inspect", str(export.folder), "--json")
    assert document["servable"] is True
    assert document["hidden_size"] == HIDDEN_SIZE
    assert document["producer"].startswith("pytorch")
    assert document["pooled"] is False
    assert document["past_key_values"] == (2 * LAYERS if export.form == "past" else 0)
    compute = "float16" if export.form == "float16" else "float32"
    assert document["precision"]["compute"] == compute
    assert document["positions"] == "input"
    assert document["embedding_rows"] == VOCABULARY
    assert [file["is_whole"] for file in document["external_files"]] == [True]
    parameters = model.model.num_parameters()
    assert document["precision"]["parameters"] == pytest.approx(parameters, rel=0.01)
    assert not [found for found in document["findings"] if found["severity"] != "note"]


def test_the_pooled_graph_returns_the_last_state_of_transformers(
    export: Export, pooled: Path, states: Vectors
) -> None:
    batches = {padding: padded(padding) for padding in PADDINGS}
    vectors = run_onnx(pooled / "model.onnx", batches, pooled.parent)
    for padding in PADDINGS:
        assert vectors[padding].dtype == np.float32
        assert worst_cosine(vectors[padding], states) >= export.min_cosine, padding


def test_vectors_through_a_real_triton_match_sentence_transformers(
    export: Export, pooled: Path, encoded: Vectors
) -> None:
    for folder in (pooled, export.folder) if export.form == "plain" else (pooled,):
        with serving(folder) as url:
            assert worst_cosine(embed(url, TEXTS), encoded) >= export.min_cosine
