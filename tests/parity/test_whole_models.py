"""All of Qwen3-Reranker-0.6B and Qwen3-Embedding-0.6B but their weights.

28 layers and the family's own 151,669 tokens, served and compared with transformers on pairs and
texts of up to 4,096 tokens. It takes an hour of a core, 7 GB of memory and 6 GB of disk, so it
only runs when it is asked for:

    PARITY_TOKENIZER=tokenizer.json PARITY_WHOLE=folder make parity ARGS="-m whole"

with the tokenizer of a model of the family, or what `qwen_tokenizer.py` writes. In the folder, the
exports and the reference's answers are kept, so that a run that was stopped continues. What was
measured is in `docs/not-run.md`.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
from served_product import Vectors, embed, product, running, running_triton, score
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, Qwen3Model

pytestmark = pytest.mark.whole

LAYERS = 28
# Heads of random weights attend to all tokens alike. With this, scores are from 0.20 to 0.57;
# without, those of six of these pairs are from 0.31 to 0.41.
QUERY_GAIN = 2.0
TOLERANCES = {"float32": FLOAT32, "float16": FLOAT16}
MIN_COSINE = 0.99999
# LONG takes longer than all others, so that it is served in fewer ways.
PAIRS_BY_LENGTH = {"short": PAIRS, "long": [LONG]}

Way: TypeAlias = tuple[str, str, str]
RecordProperty: TypeAlias = Callable[[str, object], None]

# Of a whole graph, LONG has 2.5 GB of logits.
LONG_WAYS: list[Way] = [
    ("float32", "pooled", "grpc"),
    *(("float16", "pooled", engine) for engine in ("onnxruntime", "http")),
    ("float32", "pooled", "onnxruntime"),
]
WAYS: list[Way] = [
    *LONG_WAYS,
    ("float32", "pooled", "openvino"),
    *(("float32", "whole", engine) for engine in ("http", "onnxruntime")),
]


@dataclass(frozen=True, slots=True)
class Kept:
    """The exports and the reference's answers, each made when it is first asked for."""

    root: Path
    tokenizer: PreTrainedTokenizerFast

    def graph(self, name: str, graph: str) -> Path:
        """Return the folder of an export, or of what `model pool` makes of it."""
        export, out = self.root / name, self.root / f"{name}-{graph}"
        if not (export / "config.json").exists():  # written last
            shutil.rmtree(export, ignore_errors=True)
            write_whole(name, export)
        if graph == "whole":
            return export
        if not out.exists():
            kind = () if name == "embedding" else ("--rerank",)
            product("model", "pool", str(export), "-o", str(out), *kind, "--json")
        return out

    def scores(self, length: str) -> NDArray[np.float64]:
        """Return the card's scores of pairs, each computed alone."""
        path = self.root / f"scores-{length}.npy"
        if not path.exists():
            model = make_whole()
            model.set_attn_implementation("sdpa")  # needs no 4,096 x 4,096 numbers for each head
            rows = card_inputs(self.tokenizer, PAIRS_BY_LENGTH[length])
            np.save(path, [card_score(model, self.tokenizer, ids) for ids in rows])
        return np.load(path)

    def vectors(self, length: str) -> Vectors:
        """Return the unit vectors of the pairs' documents, each computed alone."""
        path = self.root / f"vectors-{length}.npy"
        if not path.exists():
            model = make_whole().model
            model.set_attn_implementation("sdpa")
            np.save(path, reference_vectors(model, self.tokenizer, documents_of(length)))
        return np.load(path)


def make_whole() -> Qwen3ForCausalLM:
    assert VOCABULARY == 151_669, "Set PARITY_TOKENIZER to a tokenizer of the family."
    model = make_reranker(num_hidden_layers=LAYERS)
    for layer in model.model.layers:
        layer.self_attn.q_norm.weight.data.fill_(QUERY_GAIN)
    return model


def write_whole(name: str, folder: Path) -> None:
    model = make_whole()
    if name == "embedding":
        write_export(model.model, folder, "dynamo")
    elif name == "float16":
        store_weights(model, torch.float16)
        write_reranker(model, folder, "plain")
    else:
        write_reranker(model, folder, "dynamo")


def documents_of(length: str) -> list[str]:
    return [document for _, document in PAIRS_BY_LENGTH[length]]


@torch.inference_mode()
def reference_vectors(
    model: Qwen3Model, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> Vectors:
    rows: list[Any] = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)[: MAX_LENGTH - 1]
        ids.append(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
        states = model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
        rows.append(torch.nn.functional.normalize(states[0, -1], dim=0).numpy())
    return np.stack(rows)


@pytest.fixture(name="kept", scope="module")
def _kept(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    root = os.environ.get("PARITY_WHOLE")
    return Kept(Path(root) if root else tmp_path_factory.mktemp("whole"), tokenizer)


@pytest.fixture(name="url", scope="module")
def _url(way: Way, kept: Kept) -> Generator[str]:
    """The URL of a gateway that serves the reranker in one of WAYS."""
    dtype, graph, engine = way
    folder = kept.graph(dtype, graph)
    kept.scores("short")
    gc.collect()  # the reference, before a server takes as much memory
    flags = ["--rerank-max-length", str(MAX_LENGTH), "--timeout-s", "3600"]
    with ExitStack() as stack:
        if engine in ("grpc", "http"):
            urls = stack.enter_context(running_triton({"whole": folder}))
            flags += ["--triton-url", urls[engine], "--rerank-triton-model", "whole"]
            flags += ["--rerank-tokenizer-path", str(folder)]
        else:
            flags += ["--rerank-model-dir", str(folder)]
            flags += ["--engine", engine, "--precision", "float32"]
        log = kept.root / f"{'-'.join(way)}.log"
        yield stack.enter_context(running("serve", *flags, log=log))


@pytest.fixture(name="embedding_url", scope="module")
def _embedding_url(engine: str, kept: Kept) -> Generator[str]:
    flags = ["--model-dir", str(kept.graph("embedding", "pooled")), "--timeout-s", "3600"]
    flags += ["--max-length", str(MAX_LENGTH), "--engine", engine, "--precision", "float32"]
    with running("serve", *flags, log=kept.root / f"embedding-{engine}.log") as url:
        yield url


# Each server answers both tests before the next starts.
@pytest.mark.parametrize("way", WAYS, ids="-".join, scope="module")
def test_scores_of_28_layers_are_those_of_the_card_s_code(
    way: Way, kept: Kept, url: str, record_property: RecordProperty
) -> None:
    expected = kept.scores("short")
    assert np.ptp(expected) > 0.1  # or the comparison would say nothing
    differences = score_differences(url, PAIRS, expected)
    record_property("differences", differences)  # in --junitxml
    assert max(differences) <= TOLERANCES[way[0]]


@pytest.mark.parametrize("way", LONG_WAYS, ids="-".join, scope="module")
def test_the_score_of_4096_tokens_in_28_layers_is_that_of_the_card_s_code(
    way: Way, kept: Kept, url: str, record_property: RecordProperty
) -> None:
    expected = kept.scores("long")
    [difference] = np.abs(score(url, [LONG]) - expected)
    record_property("difference", float(difference))
    assert difference <= TOLERANCES[way[0]]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"], scope="module")
@pytest.mark.parametrize("length", PAIRS_BY_LENGTH)
def test_vectors_of_28_layers_are_those_of_transformers(
    length: str, kept: Kept, embedding_url: str, record_property: RecordProperty
) -> None:
    expected = kept.vectors(length)
    served = embed(embedding_url, documents_of(length), truncate=True)
    cosines = (served.astype(np.float64) * expected).sum(axis=1)
    record_property("1 - cosine", (1 - cosines).tolist())
    record_property("differences", np.abs(served - expected).max(axis=1).tolist())
    assert len(expected) == 1 or (expected @ expected.T).min() < 0.9  # or it would say nothing
    assert cosines.min() >= MIN_COSINE
