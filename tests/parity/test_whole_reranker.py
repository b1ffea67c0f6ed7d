"""All of Qwen3-Reranker-0.6B but its weights: 28 layers and its own 151,669 tokens.

It takes long, 10 GB of memory and 8 GB of disk, so it only runs when it is asked for:

    PARITY_TOKENIZER=tokenizer.json make parity ARGS="-m whole"

with the tokenizer of a model of the family, or what `qwen_tokenizer.py` writes. Measured with ONNX
Runtime on pairs of 79 to 507 tokens in batches of mixed lengths, pooled: scores differ by 8e-7 at
most in float32, by 4e-4 in float16; at 4,096 tokens in float32, by 5e-7.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from card_rerankers import (
    FLOAT16,
    FLOAT32,
    LONG,
    MAX_LENGTH,
    PAIRS,
    Pair,
    card_inputs,
    card_score,
)
from exported_models import make_reranker, store_weights, write_reranker
from numpy.typing import NDArray
from served_product import product, running, running_triton, score
from transformers import PreTrainedTokenizerFast

pytestmark = pytest.mark.whole

LAYERS, VOCABULARY = 28, 151_669
# Heads of random weights attend to all tokens alike. With this, scores are from 0.20 to 0.57;
# without, those of six of these pairs are from 0.31 to 0.41.
QUERY_GAIN = 2.0
TOLERANCES = {"float32": FLOAT32, "float16": FLOAT16}

Expected: TypeAlias = NDArray[np.float64]


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(name="expected", scope="module")
def _expected(root: Path) -> Expected:
    """The card's scores, once the model is exported to `root` in each of the dtypes."""
    path = Path(os.environ["PARITY_TOKENIZER"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), padding_side="left")
    assert len(tokenizer) == VOCABULARY
    model = make_reranker(vocab_size=VOCABULARY, num_hidden_layers=LAYERS)
    for layer in model.model.layers:
        layer.self_attn.q_norm.weight.data.fill_(QUERY_GAIN)
    write_reranker(model, root / "float32", "dynamo", tokenizer=path)
    store_weights(model, torch.float16)
    write_reranker(model, root / "float16", "plain", tokenizer=path)
    store_weights(model, torch.float32)
    model.set_attn_implementation("sdpa")  # needs no matrix of 4,096 x 4,096 for each head
    rows = card_inputs(tokenizer, [*PAIRS, LONG])
    return np.array([card_score(model, tokenizer, ids) for ids in rows])


def pooled(folder: Path) -> Path:
    """Return the folder that `model pool` makes of an export, once."""
    out = folder.with_name(f"{folder.name}-pooled")
    if not out.exists():
        product("model", "pool", str(folder), "-o", str(out), "--rerank", "--json")
    return out


def served_scores(folder: Path, engine: str, pairs: Sequence[Pair]) -> Expected:
    flags = ["--rerank-max-length", str(MAX_LENGTH), "--timeout-s", "3600"]
    with ExitStack() as stack:
        if engine == "triton":
            url = stack.enter_context(running_triton({"whole": folder}))
            flags += ["--triton-url", url, "--rerank-triton-model", "whole"]
            flags += ["--rerank-tokenizer-path", str(folder)]
        else:
            flags += ["--rerank-model-dir", str(folder)]
            flags += ["--engine", engine, "--precision", "float32"]
        log = folder.with_name(f"{folder.name}-{engine}.log")
        return score(stack.enter_context(running("serve", *flags, log=log)), [*pairs])


@pytest.mark.parametrize(
    ("dtype", "engine"),
    [
        *(("float32", engine) for engine in ("onnxruntime", "openvino", "triton")),
        *(("float16", engine) for engine in ("onnxruntime", "triton")),
    ],
)
def test_scores_of_28_layers_are_those_of_the_card_s_code(
    dtype: str,
    engine: str,
    root: Path,
    expected: Expected,
    record_property: Callable[[str, object], None],
) -> None:
    folder = pooled(root / dtype)
    pairs = [*PAIRS, LONG] if engine == "onnxruntime" else PAIRS
    scores = served_scores(folder, engine, pairs)
    differences = np.abs(scores - expected[: len(pairs)])
    record_property("differences", differences.tolist())  # in --junitxml
    assert np.ptp(expected) > 0.1  # or the comparison would say nothing
    assert differences.max() <= TOLERANCES[dtype]
