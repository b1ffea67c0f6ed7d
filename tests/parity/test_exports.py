"""Exports by torch of transformers' Qwen3, inspected, pooled and served by the product.

The export and the reference run here; the product runs in its own environment.
"""

from __future__ import annotations

import os
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
    TOKENIZER,
    VOCABULARY,
    make_model,
    write_export,
)
from numpy.typing import NDArray
from onnx_runs import run_onnx
from served_product import Vectors, embed, product, running
from transformers import PreTrainedTokenizerFast, Qwen3Model

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
    """An export: its folder, the model it was made from, and its tolerance."""

    folder: Path
    model: Qwen3Model
    past: bool
    min_cosine: float


@pytest.fixture(name="export", scope="session", params=["plain", "past", "float16", "dynamo"])
def _export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    if request.param == "dynamo":
        return Export(*request.getfixturevalue("dynamo_export"), False, FLOAT32_COSINE)
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model()
    if request.param == "float16":
        model = model.half()
    write_export(model, folder, "past" if request.param == "past" else "plain")
    cosine = FLOAT16_COSINE if request.param == "float16" else FLOAT32_COSINE
    return Export(folder, model, request.param == "past", cosine)


@pytest.fixture(name="pooled", scope="session")
def _pooled(export: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same export with pooling appended by the product."""
    out = tmp_path_factory.mktemp("pooled") / "model"
    document = product("model", "pool", str(export.folder), "-o", str(out), "--json")
    assert document["hidden_size"] == HIDDEN_SIZE
    return out


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
    """The gateway in front of a real Triton, which runs this folder with ONNX Runtime."""
    flags = ("--model-dir", folder, "--tokenizer-path", folder, "--engine", "onnxruntime")
    return running("up", *flags, log=folder.parent / f"{folder.name}.log")


def sentence_transformer(model: Qwen3Model, folder: Path) -> Any:
    """Load the same weights with sentence-transformers, pooled at the last token."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER),
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
    vectors = run_onnx(pooled / "model.onnx", batches, pooled.parent)
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
