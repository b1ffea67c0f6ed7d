"""All of Qwen3-Reranker-0.6B and Qwen3-Embedding-0.6B but their weights.

28 layers and the family's own 151,669 tokens, served and compared with transformers on pairs and
texts of up to 4,096 tokens. It takes an hour of a core, 10 GB of memory and 12 GB of disk, so it
only runs when it is asked for:

    PARITY_TOKENIZER=tokenizer.json PARITY_WHOLE=folder make parity ARGS="-m whole"

with the tokenizer of a model of the family, or what `qwen_tokenizer.py` writes. In the folder, the
exports and the reference's answers are kept, so that a run that was stopped continues. What was
measured is in `docs/not-run.md`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from card_rerankers import (
    FLOAT16,
    FLOAT32,
    LONG,
    MAX_LENGTH,
    PAIRS,
    card_inputs,
    card_score,
    score_differences,
)
from exported_models import VOCABULARY, make_reranker, store_weights, write_export, write_reranker
from numpy.typing import NDArray
from served_product import Vectors, embed, product, running, running_triton
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, Qwen3Model

pytestmark = pytest.mark.whole

LAYERS = 28
# Heads of random weights attend to all tokens alike. With this, scores are from 0.20 to 0.57;
# without, those of six of these pairs are from 0.31 to 0.41.
QUERY_GAIN = 2.0
TOLERANCES = {"float32": FLOAT32, "float16": FLOAT16}
MIN_COSINE = 0.99999
TEXTS = [document for _, document in [*PAIRS, LONG]]

WAYS = [
    *(("float32", "pooled", engine) for engine in ("triton", "openvino", "onnxruntime")),
    *(("float32", "whole", engine) for engine in ("triton", "onnxruntime")),
    *(("float16", "pooled", engine) for engine in ("onnxruntime", "triton")),
]
# LONG takes longer than all others. Of a whole graph, it has 2.5 GB of logits.
LONG_WAYS = {(dtype, "pooled", "onnxruntime") for dtype in TOLERANCES}

RecordProperty: TypeAlias = Callable[[str, object], None]


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("PARITY_WHOLE") or tmp_path_factory.mktemp("whole"))


@pytest.fixture(name="scores", scope="module")
def _scores(root: Path, tokenizer: PreTrainedTokenizerFast) -> NDArray[np.float64]:
    """The card's scores of PAIRS and LONG, once the reranker is exported in each of the dtypes."""
    path = root / "scores.npy"
    if not path.exists():
        model = make_whole()
        for dtype, form in (("float16", "plain"), ("float32", "dynamo")):
            store_weights(model, getattr(torch, dtype))  # and back, since nothing is lost
            if is_missing(root / dtype):
                write_reranker(model, root / dtype, form)
        model.set_attn_implementation("sdpa")  # needs no matrix of 4,096 x 4,096 for each head
        rows = card_inputs(tokenizer, [*PAIRS, LONG])
        np.save(path, [card_score(model, tokenizer, ids) for ids in rows])
    return np.load(path)


@pytest.fixture(name="vectors", scope="module")
def _vectors(root: Path, tokenizer: PreTrainedTokenizerFast) -> Vectors:
    """The unit vectors of TEXTS, each computed alone, once the embedding model is exported."""
    path = root / "vectors.npy"
    if not path.exists():
        model = make_whole().model
        if is_missing(root / "embedding"):
            write_export(model, root / "embedding", "dynamo")
        model.set_attn_implementation("sdpa")
        np.save(path, reference_vectors(model, tokenizer))
    return np.load(path)


def make_whole() -> Qwen3ForCausalLM:
    assert VOCABULARY == 151_669, "Set PARITY_TOKENIZER to a tokenizer of the family."
    model = make_reranker(num_hidden_layers=LAYERS)
    for layer in model.model.layers:
        layer.self_attn.q_norm.weight.data.fill_(QUERY_GAIN)
    return model


def is_missing(export: Path) -> bool:
    """Return whether an export has to be made, without what an interrupted one left."""
    if (export / "config.json").exists():  # written last
        return False
    shutil.rmtree(export, ignore_errors=True)
    return True


@torch.inference_mode()
def reference_vectors(model: Qwen3Model, tokenizer: PreTrainedTokenizerFast) -> Vectors:
    rows: list[Any] = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)[: MAX_LENGTH - 1]
        ids.append(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
        states = model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
        rows.append(torch.nn.functional.normalize(states[0, -1], dim=0).numpy())
    return np.stack(rows)


def graph_of(export: Path, graph: str) -> Path:
    """Return the folder of an export, or the one that `model pool` makes of it, once."""
    out = export.with_name(f"{export.name}-{graph}")
    if graph == "whole":
        return export
    if not out.exists():
        kind = () if export.name == "embedding" else ("--rerank",)
        product("model", "pool", str(export), "-o", str(out), *kind, "--json")
    return out


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_scores_of_28_layers_are_those_of_the_card_s_code(
    way: tuple[str, str, str],
    root: Path,
    scores: NDArray[np.float64],
    record_property: RecordProperty,
) -> None:
    dtype, graph, engine = way
    folder = graph_of(root / dtype, graph)
    flags = ["--rerank-max-length", str(MAX_LENGTH), "--timeout-s", "3600"]
    pairs = [*PAIRS, LONG] if way in LONG_WAYS else PAIRS
    with ExitStack() as stack:
        if engine == "triton":
            url = stack.enter_context(running_triton({"whole": folder}))
            flags += ["--triton-url", url, "--rerank-triton-model", "whole"]
            flags += ["--rerank-tokenizer-path", str(folder)]
        else:
            flags += ["--rerank-model-dir", str(folder)]
            flags += ["--engine", engine, "--precision", "float32"]
        url = stack.enter_context(running("serve", *flags, log=root / f"{'-'.join(way)}.log"))
        differences = score_differences(url, pairs, scores[: len(pairs)])
    record_property("differences", differences)  # in --junitxml
    assert np.ptp(scores) > 0.1  # or the comparison would say nothing
    assert max(differences) <= TOLERANCES[dtype]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_vectors_of_28_layers_are_those_of_transformers(
    engine: str, root: Path, vectors: Vectors, record_property: RecordProperty
) -> None:
    folder = graph_of(root / "embedding", "pooled")
    flags = ["--model-dir", str(folder), "--max-length", str(MAX_LENGTH), "--timeout-s", "3600"]
    flags += ["--engine", engine, "--precision", "float32"]
    with running("serve", *flags, log=root / f"embedding-{engine}.log") as url:
        served = embed(url, TEXTS, truncate=True)
    cosines = (served.astype(np.float64) * vectors).sum(axis=1)
    record_property("1 - cosine", (1 - cosines).tolist())
    record_property("differences", np.abs(served - vectors).max(axis=1).tolist())
    assert (vectors @ vectors.T).min() < 0.9  # or the comparison would say nothing
    assert cosines.min() >= MIN_COSINE
