"""Rerankers exported by torch, pooled by the product, against the code of the model card.

The export and the reference run here; the product runs in its own environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import make_classifier, make_reranker, write_reranker
from numpy.typing import NDArray
from onnx_runs import run_onnx
from served_product import product
from transformers import PreTrainedTokenizerFast, Qwen3PreTrainedModel

import qwen3_nano

# The bars that rerankers are judged by: scores from 0 to 1.
FLOAT32, FLOAT16 = 1e-4, 5e-3
QUERIES = ["What is the capital of China?", "Explain gravity", "渋谷はどこですか"]
DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
    "東京の渋谷区 😀",
    "x",
    "Москва — столица России. " * 10,
    "word " * 900,
]
PAIRS = [(query, document) for query in QUERIES[:2] for document in DOCUMENTS[:2]]
PAIRS += [(QUERIES[2], document) for document in DOCUMENTS[2:]]
BATCH = 4
MAX_LENGTH = 8192
SIDES = ("right", "left")


@dataclass(frozen=True, slots=True)
class Export:
    """An export: its folder, the model it was made from, and its tolerance."""

    folder: Path
    model: Qwen3PreTrainedModel
    tolerance: float

    @property
    def is_classifier(self) -> bool:
        return self.model.config.num_labels == 1


@pytest.fixture(
    name="export",
    scope="session",
    params=["tied", "untied", "float16", "dynamo", "dynamo-untied", "classifier"],
)
def _export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp(request.param) / "reranker"
    if request.param == "classifier":
        model: Any = make_classifier()
    else:
        model = make_reranker(tied="untied" not in request.param)
    if request.param == "float16":
        model = model.half()
    write_reranker(model, folder, "dynamo" if "dynamo" in request.param else "plain")
    return Export(folder, model, FLOAT16 if request.param == "float16" else FLOAT32)


@pytest.fixture(name="tokenizer", scope="session")
def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(qwen3_nano.model_dir() / "tokenizer.json"),
        pad_token="<|endoftext|>",
        padding_side="left",
    )


def card_inputs(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Tokenize as `process_inputs` of https://huggingface.co/Qwen/Qwen3-Reranker-0.6B does."""
    prefix = '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'  # noqa: E501
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    prefix_tokens = tokenizer.encode(prefix, add_special_tokens=False)
    suffix_tokens = tokenizer.encode(suffix, add_special_tokens=False)
    task = "Given a web search query, retrieve relevant passages that answer the query"
    pairs = [f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {doc}" for query, doc in PAIRS]
    inputs = tokenizer(
        pairs,
        padding=False,
        truncation="longest_first",
        return_attention_mask=False,
        # The reranker's own tokenizer appends nothing; the nano model's does.
        add_special_tokens=False,
        max_length=MAX_LENGTH - len(prefix_tokens) - len(suffix_tokens),
    )
    return [prefix_tokens + ids + suffix_tokens for ids in inputs["input_ids"]]


@torch.inference_mode()
def card_scores(export: Export, tokenizer: PreTrainedTokenizerFast) -> NDArray[Any]:
    """Score as `compute_logits` of the card does, each pair alone; a classifier by its sigmoid."""
    scores: list[float] = []
    for ids in card_inputs(tokenizer):
        logits = export.model(input_ids=torch.tensor([ids]), use_cache=False).logits.float()
        if export.is_classifier:
            scores.append(torch.sigmoid(logits[0, 0]).item())
            continue
        batch_scores = logits[:, -1, :]
        true_vector = batch_scores[:, tokenizer.convert_tokens_to_ids("yes")]
        false_vector = batch_scores[:, tokenizer.convert_tokens_to_ids("no")]
        stacked = torch.stack([false_vector, true_vector], dim=1)
        scores.append(torch.nn.functional.log_softmax(stacked, dim=1)[:, 1].exp().item())
    return np.array(scores)


def padded(rows: list[list[int]], side: str) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Pad rows of mixed lengths, some per batch."""
    batches: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for start in range(0, len(rows), BATCH):
        group = rows[start : start + BATCH]
        width = max(map(len, group))
        ids = np.zeros((len(group), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(group):
            part = slice(width - len(tokens), width) if side == "left" else slice(len(tokens))
            ids[row, part], mask[row, part] = tokens, 1
        batches[f"{start:03}"] = (ids, mask)
    return batches


def scores_of(logits: NDArray[Any]) -> NDArray[Any]:
    values = logits.astype(np.float64)
    margin = values[:, 0] if values.shape[1] == 1 else values[:, 1] - values[:, 0]
    return 1 / (1 + np.exp(-margin))


def test_an_export_is_inspected_as_what_it_is(export: Export) -> None:
    document = product("model", "inspect", str(export.folder), "--json")
    assert document["servable"] is True
    form = "seq-cls" if export.is_classifier else "causal"
    assert document["reranker"]["form"] == form
    assert document["reranker"]["pooled"] == export.is_classifier
    assert document["hidden_size"] == export.model.config.hidden_size
    assert not [f for f in document["findings"] if f["severity"] in ("error", "warning")]


def test_the_pooled_scores_are_those_of_the_card_s_code(
    export: Export, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pooled = product("model", "pool", str(export.folder), "-o", str(tmp_path / "m"), "--json")
    assert pooled["already_pooled"] == export.is_classifier
    assert not pooled["not_compared"]
    expected = card_scores(export, tokenizer)
    assert np.ptp(expected) > 0.01  # or the comparison would say nothing
    for side in SIDES:
        batches = padded(card_inputs(tokenizer), side)
        found = run_onnx(Path(pooled["path"]), batches, tmp_path, output="logits")
        scores = np.concatenate([scores_of(found[name]) for name in batches])
        assert np.abs(scores - expected).max() <= export.tolerance, side
